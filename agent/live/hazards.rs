//! Programs that careless tracing kills, blocks or bloats.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::{
    breakpoints,
    inspection::{Inspection, Report},
    lab,
    program::{Program, signal},
    trial,
};

/// A program that is easily harmed.
struct Harmed {
    name: &'static str,
    source: &'static str,
    compiler: &'static str,
    /// Further arguments of the compiler.
    linked: &'static [&'static str],
}

const fn c(name: &'static str, source: &'static str) -> Harmed {
    Harmed {
        name,
        source,
        compiler: "cc",
        linked: &[],
    }
}

const fn cxx(name: &'static str, source: &'static str, linked: &'static [&'static str]) -> Harmed {
    Harmed {
        name,
        source,
        compiler: "c++",
        linked,
    }
}

const HARMED: [Harmed; 11] = [
    c("strict_seccomp", "strict_seccomp.c"),
    cxx("throwing_new", "throwing_new.cc", &[]),
    // Their operator new is no caller of malloc and throws itself.
    cxx(
        "throwing_new_jemalloc",
        "throwing_new.cc",
        &["-Wl,--no-as-needed", "-l:libjemalloc.so.2"],
    ),
    cxx(
        "throwing_new_tcmalloc",
        "throwing_new.cc",
        &["-Wl,--no-as-needed", "-l:libtcmalloc_minimal.so.4"],
    ),
    cxx("longjmp", "longjmp.cc", &[]),
    c("handler_stack", "handler_stack.c"),
    c("switching_malloc", "switching_malloc.c"),
    c("own_profiler", "own_profiler.c"),
    c("fork_loop", "fork_loop.c"),
    c("userfaultfd", "userfaultfd.c"),
    c("thread_storm", "thread_storm.c"),
];

/// Mode and further arguments: by itself, in windows or not as the budget
/// allows; all the time, by multi-point links or perf events.
const WAYS: [(&str, &str, &[&str]); 3] = [
    ("auto", "auto", &[]),
    ("trace", "trace", &[]),
    ("perf", "trace", &["--attach", "perf"]),
];

/// How long the programs run, and how long they are watched meanwhile: they
/// live through attach, load, reading and detach.
const LIFE: u32 = 6;
const WATCHED: u32 = 2;

/// Whether the programs live on.
pub(crate) fn trials() -> Vec<Trial> {
    let harmed = HARMED.iter().flat_map(|program| {
        WAYS.iter().map(move |(way, mode, arguments)| {
            trial(format!("hazards::{}_{way}", program.name), move || {
                survives(program, mode, arguments)
            })
        })
    });
    harmed.collect()
}

/// What observing costs others, which another load on the machine would hide.
pub(crate) fn measured() -> Vec<Trial> {
    vec![
        trial("hazards::copy_on_write_heap_stays_shared", shared_heap),
        trial(
            "hazards::forked_child_pays_nothing_after_the_end",
            child_cost,
        ),
    ]
}

/// Inspects the program in the middle of its life; it must end well by itself.
fn survives(harmed: &Harmed, mode: &str, arguments: &[&str]) -> Result<()> {
    let mut linked = vec!["-pthread"];
    linked.extend(harmed.linked);
    let path = lab::compile(
        harmed.compiler,
        harmed.source,
        &linked,
        &format!("harmed_{}", harmed.name),
    )?;
    let mut program = Program::start(&path, &[&LIFE.to_string()])?;
    let pid = program.pid();
    let report = Inspection::by_mode(mode, WATCHED)?
        .arguments(["-p", &pid.to_string()])
        .arguments(arguments)
        .run()?;
    let harm = program.ends_well(Duration::from_secs(u64::from(LIFE) + 20));
    harm.with_context(|| report.to_string())?;
    report.expect_code(&[0, 3, 4])?;
    observed_or_explained(&report, pid)
}

/// Either allocations were seen or a sentence says why not: a test in which
/// nothing was attached shows nothing.
fn observed_or_explained(report: &Report, pid: u32) -> Result<()> {
    if report.code() != Some(4) {
        let allocations = report.process(pid)?["capture"]["allocations"]
            .as_u64()
            .unwrap_or(0);
        ensure!(
            allocations > 0,
            "nothing was observed, and it does not say so\n{report}"
        );
        return Ok(());
    }
    ensure!(
        !report.message().trim().is_empty(),
        "exit status 4 without a word\n{report}"
    );
    Ok(())
}

/// Proportional share of resident memory in bytes.
fn pss(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Reading a worker's memory must not unshare it: the heap is 96 MiB.
fn shared_heap() -> Result<()> {
    const TOLERANCE: u64 = 6 << 20;
    let path = lab::compile("cc", "forked_workers.c", &[], "forked_workers")?;
    let mut program = Program::start(&path, &["16"])?;
    let workers = program.numbers("WORKER ");
    let worker = *workers.first().context("no worker")?;
    for pid in [program.pid(), worker] {
        let before = pss(pid)?;
        ensure!(
            before < 64 << 20,
            "the heap is not shared to begin with: {before} bytes"
        );
        let report = Inspection::of(pid, WATCHED)?.run()?;
        report.expect_code(&[0, 3, 4])?;
        let after = pss(pid)?;
        ensure!(
            after.abs_diff(before) < TOLERANCE,
            "inspecting {pid} changed its PSS from {before} to {after} bytes\n{report}"
        );
    }
    program.ends_well(Duration::from_secs(40))
}

/// A child forked while its parent is probed inherits the breakpoints, and is
/// rid of them when the window ends.
fn child_cost() -> Result<()> {
    const GENEROUS: f64 = 4.0;
    let path = lab::compile("cc", "child_cost.c", &[], "child_cost")?;
    let file = lab::fresh("cost")?;
    let mut program = Program::start(&path, &["14", &file.to_string_lossy()])?;
    let pid = program.pid();
    let running = Inspection::of(pid, 5)?.start()?;
    breakpoints::wait_for(pid, Duration::from_secs(10))?;
    thread::sleep(Duration::from_secs(1));
    signal(pid, libc::SIGUSR1)?;
    let report = running.finish(Duration::from_secs(30))?;
    report.expect_code(&[0, 3, 4])?;
    thread::sleep(Duration::from_secs(2));
    let lines_before = fs::read_to_string(&file)?.lines().count();
    program.ends_well(Duration::from_secs(30))?;

    let text = fs::read_to_string(&file)?;
    let number = |line: &str| {
        line.rsplit(' ')
            .next()
            .and_then(|cost| cost.parse::<f64>().ok())
    };
    let untraced = text
        .lines()
        .find(|line| line.starts_with("parent"))
        .and_then(number)
        .context("the parent did not measure")?;
    let later: Vec<f64> = text.lines().skip(lines_before).filter_map(number).collect();
    let best = later.iter().copied().fold(f64::INFINITY, f64::min);
    ensure!(later.len() > 3, "the child did not live to measure: {text}");
    ensure!(
        best < untraced * GENEROUS,
        "a malloc/free pair costs the child {best} ns after the end, untraced {untraced} ns\n{report}"
    );
    Ok(())
}
