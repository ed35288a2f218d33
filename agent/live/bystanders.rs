//! Processes that lingerscope does not look at pay nothing: what it has in the
//! kernel is there only while somebody is followed, and no program that starts
//! wakes it.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;

use crate::{allocators, daemon::Daemon, lab, program, program::Program, trial};

/// Events of processes, which are on while one is followed.
const PROCESS_EVENTS: [&str; 3] = [
    "sched_process_exec",
    "sched_process_exit",
    "sched_process_fork",
];
/// Programs that are executed to see whether the daemon is woken.
const EXECUTIONS: u32 = 300;
/// A process that was probed until lately may still die of it for a minute, and
/// ten seconds after its fault.
const LATELY: Duration = Duration::from_secs(72);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("bystanders::only_while_somebody_is_followed", follows),
        trial("bystanders::nothing_is_loaded_in_watch_mode", watches),
    ]
}

/// What a process holds of the kernel's: names of its descriptors.
fn held(pid: u32) -> Result<Vec<String>> {
    let mut held = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may have closed one meanwhile.
        let Ok(name) = fs::read_link(entry?.path()) else {
            continue;
        };
        let name = name.to_string_lossy().into_owned();
        if name.contains("bpf") || name.contains("perf_event") {
            held.push(name);
        }
    }
    Ok(held)
}

/// Tracepoints that call programs of a process.
fn tracepoints(pid: u32) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let name = text.lines().find_map(|line| line.strip_prefix("tp_name:"));
        names.extend(name.map(|name| name.trim().to_owned()));
    }
    Ok(names)
}

/// Waits until the tracepoints are as wanted; how long that took.
fn until(
    daemon: &Daemon,
    limit: Duration,
    what: &str,
    wanted: impl Fn(&BTreeSet<String>) -> bool,
) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let on = tracepoints(daemon.pid()?)?;
        if wanted(&on) {
            return Ok(began.elapsed());
        }
        if began.elapsed() > limit {
            bail!("{what}: after {limit:?}, {on:?} are on\n{}", daemon.log());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn all_of_processes(on: &BTreeSet<String>) -> bool {
    PROCESS_EVENTS.iter().all(|name| on.contains(*name))
}

/// Times that a process went to sleep, which is how often it was woken.
fn wakes(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count: u64 = count
            .context("the kernel counts no switches")?
            .trim()
            .parse()?;
        sum += count;
    }
    Ok(sum)
}

/// Programs that start, and end at once, do not wake the daemon.
fn sleeps_on(daemon: &Daemon) -> Result<()> {
    let pid = daemon.pid()?;
    let (began, before) = (Instant::now(), wakes(pid)?);
    for _ in 0..EXECUTIONS {
        ensure!(Command::new("true").status()?.success());
    }
    let woken = wakes(pid)?.saturating_sub(before);
    // Ticks, sweeps and judgements are a few a second.
    let by_itself = 20 * (began.elapsed().as_secs() + 1);
    ensure!(
        woken < by_itself + u64::from(EXECUTIONS) / 4,
        "{EXECUTIONS} executions woke it {woken} times\n{}",
        daemon.log()
    );
    Ok(())
}

/// Waits until the daemon has begun.
fn ready(daemon: &Daemon) -> Result<()> {
    said(daemon, "watching", Duration::from_secs(30))
}

fn said(daemon: &Daemon, word: &str, limit: Duration) -> Result<()> {
    let began = Instant::now();
    while !daemon.log().contains(word) {
        ensure!(
            began.elapsed() < limit,
            "the daemon does not say {word:?}\n{}",
            daemon.log()
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn follows() -> Result<()> {
    let path = lab::path("bystanders-pinned")?;
    fs::copy(allocators::plain()?, &path)?;
    let settings = "mode: full\nwatch:\n  interval: 1s\npinned:\n  name: ['bystanders-pin*']\n";
    let daemon = Daemon::start(settings)?;
    ready(&daemon)?;
    let pid = daemon.pid()?;
    // The programs are loaded, so what is not attached would be seen.
    ensure!(!held(pid)?.is_empty(), "nothing of the kernel's is seen");
    until(&daemon, Duration::from_secs(2), "idle", BTreeSet::is_empty)?;
    sleeps_on(&daemon)?;

    // It becomes the pinned program some time after its start.
    let truth = lab::fresh("bystanders-truth")?;
    let start = || {
        let mut command = Command::new("sh");
        let script = format!(
            "sleep 2.5; exec {} 100 1000 300 {}",
            path.display(),
            truth.display()
        );
        command.arg("-c").arg(script);
        Program::from_command(command)
    };
    let mut pinned = start()?;
    until(
        &daemon,
        Duration::from_secs(15),
        "followed",
        all_of_processes,
    )?;
    // Dead, it needs no watching.
    pinned.kill()?;
    let nothing = BTreeSet::is_empty;
    until(&daemon, Duration::from_secs(5), "its end", nothing)?;

    let mut pinned = start()?;
    until(
        &daemon,
        Duration::from_secs(15),
        "followed again",
        all_of_processes,
    )?;
    let word = format!("process {}: ", pinned.pid());
    said(&daemon, &word, Duration::from_secs(10))?;
    // Until it was probed.
    thread::sleep(Duration::from_secs(2));
    let excluded = format!("{settings}exclude:\n  name: ['bystanders-pin*']\n");
    daemon.set(&excluded)?;
    program::signal(pid, libc::SIGHUP)?;
    said(&daemon, "no longer following", Duration::from_secs(10))?;
    thread::sleep(Duration::from_secs(1));
    let on = tracepoints(pid)?;
    ensure!(
        ["sched_process_exit", "signal_generate"]
            .iter()
            .all(|name| on.contains(*name)),
        "a process that was probed until now is left alone: {on:?}\n{}",
        daemon.log()
    );
    until(&daemon, LATELY, "released", nothing)?;
    ensure!(pinned.is_running()?, "the program was harmed");
    sleeps_on(&daemon)
}

fn watches() -> Result<()> {
    let watch = "mode: watch\nwatch:\n  interval: 1s\n  min_growth: 64KiB\n";
    let mut daemon = Daemon::start(watch)?;
    ready(&daemon)?;
    let pid = daemon.pid()?;
    let leak = allocators::SmallLeak::start(
        &allocators::plain()?,
        &mut lab::random("bystanders::watches")?,
    )?;
    for _ in 0..20 {
        let held = held(pid)?;
        ensure!(held.is_empty(), "{held:?}\n{}", daemon.log());
        thread::sleep(Duration::from_millis(200));
    }
    sleeps_on(&daemon)?;
    // Another mode needs something, and none needs nothing again.
    for (settings, loaded) in [
        (watch.replace("watch\n", "survey\n"), true),
        (watch.to_owned(), false),
    ] {
        daemon.set(&settings)?;
        program::signal(pid, libc::SIGHUP)?;
        let began = Instant::now();
        while held(pid)?.is_empty() == loaded {
            ensure!(
                began.elapsed() < Duration::from_secs(30),
                "not as {settings:?} asks\n{}",
                daemon.log()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
    drop(leak);
    daemon.stop()
}
