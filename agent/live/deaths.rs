//! How processes end while they are observed, and which ends are put down to
//! the probes: faults of the process itself, never signals that it was sent.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    breakpoints,
    daemon::Daemon,
    inspection::{Inspection, Report},
    lab,
    program::{Program, signal},
    trial,
};

/// What is done to a program, and the signal that it ends by.
const FAULTS: [(&str, i32); 6] = [
    ("null", libc::SIGSEGV),
    ("ud2", libc::SIGILL),
    ("int3", libc::SIGTRAP),
    ("abort", libc::SIGABRT),
    ("bus", libc::SIGBUS),
    ("reraise", libc::SIGSEGV),
];
/// The same signals, from outside.
const SENT: [i32; 5] = [
    libc::SIGSEGV,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
];
const PATIENCE: Duration = Duration::from_secs(20);
/// Memory of the group that is too small.
const SMALL: u64 = 60 << 20;

pub(crate) fn trials() -> Vec<Trial> {
    let faults = FAULTS
        .into_iter()
        .map(|(kind, number)| trial(format!("deaths::fault_{kind}"), move || dies(kind, number)));
    let others = [
        trial("deaths::sent_signals_are_no_deaths", sent),
        trial("deaths::caught_faults_are_no_deaths", caught),
        trial("deaths::out_of_memory", out_of_memory),
        trial("deaths::killed_and_exited", killed_and_exited),
        trial("deaths::daemon_tells_at_once", daemon),
    ];
    faults.chain(others).collect()
}

/// The program that commits faults.
pub(crate) fn faults() -> Result<PathBuf> {
    lab::compile("cc", "faults.c", &["-Wl,--build-id"], "faults")
}

/// The end of a process, as the document tells it.
fn ended(report: &Report, pid: u32) -> Result<&Value> {
    Ok(&report.process(pid)?["ended"])
}

/// Observes a program, does something to it once it has probes, and waits for
/// the end of both.
fn observe(
    kind: &str,
    state: &Path,
    act: impl FnOnce(u32) -> Result<()>,
) -> Result<(u32, Report, std::process::ExitStatus)> {
    let mut program = Program::start(&faults()?, &["30", kind])?;
    let pid = program.pid();
    let running = Inspection::of(pid, 60)?
        .environment("STATE_DIRECTORY", state)
        .start()?;
    breakpoints::wait_for(pid, PATIENCE)?;
    act(pid)?;
    let status = program.wait(PATIENCE)?;
    let report = running.finish(PATIENCE)?;
    Ok((pid, report, status))
}

fn entries(state: &Path) -> Result<Vec<Value>> {
    let Ok(bytes) = fs::read(state.join("quarantine.json")) else {
        return Ok(Vec::new());
    };
    let list: Value = serde_json::from_slice(&bytes)?;
    Ok(list["entries"].as_array().context("no entries")?.clone())
}

fn dies(kind: &str, number: i32) -> Result<()> {
    let state = lab::fresh("state")?;
    let (pid, report, status) = observe(kind, &state, |pid| signal(pid, libc::SIGUSR1))?;
    ensure!(status.signal() == Some(number), "{status}\n{report}");
    let ended = ended(&report, pid)?;
    let death = &ended["under_probes"];
    ensure!(
        ended["how"] == "killed"
            && ended["signal"] == number
            && ended["oom"] == false
            && ended["exit_status"].is_null()
            && ended["after_s"].as_f64().is_some_and(|after| after < 30.0)
            && death["fault_signal"] == number
            && death["probes_off_s"].is_null(),
        "{ended}\n{report}"
    );
    let told = format!("died of a fault (signal {number}, ");
    for part in [&report.text, &report.log] {
        let text = String::from_utf8_lossy(part);
        ensure!(text.contains(&told), "{told:?} is not told\n{report}");
        ensure!(
            text.contains("lingerscope quarantine clear"),
            "no mend is told\n{report}"
        );
    }
    let entries = entries(&state)?;
    ensure!(
        entries.len() == 1
            && entries[0]["signal"] == number
            && entries[0]["uid"] == 0
            && entries[0]["exe"] == faults()?.to_string_lossy().as_ref()
            && entries[0]["build_id"]
                .as_str()
                .is_some_and(|id| id.len() >= 16),
        "{entries:?}"
    );
    Ok(())
}

/// Ends that are told as what they are, and have no consequence.
fn is_no_death(report: &Report, pid: u32, state: &Path) -> Result<()> {
    let ended = ended(report, pid)?;
    ensure!(ended["under_probes"].is_null(), "{ended}\n{report}");
    ensure!(
        !report.message().contains("died of a fault"),
        "a death is told\n{report}"
    );
    let entries = entries(state)?;
    ensure!(entries.is_empty(), "{entries:?}\n{report}");
    Ok(())
}

fn sent() -> Result<()> {
    for number in SENT {
        let state = lab::fresh("state")?;
        let (pid, report, status) = observe("null", &state, |pid| signal(pid, number))?;
        ensure!(status.signal() == Some(number), "{status}\n{report}");
        let ended = ended(&report, pid)?;
        ensure!(
            ended["how"] == "killed" && ended["signal"] == number && ended["oom"] == false,
            "{ended}\n{report}"
        );
        ensure!(
            report
                .message()
                .contains(&format!("The process was killed (signal {number}) after ")),
            "its end is not told\n{report}"
        );
        is_no_death(&report, pid, &state)?;
    }
    Ok(())
}

/// A thousand faults a second, all caught: the program goes on, and an end by
/// a signal from outside, of the same kind or not, is none by a fault.
fn caught() -> Result<()> {
    let state = lab::fresh("state")?;
    let mut program = Program::start(&faults()?, &["60", "caught"])?;
    let pid = program.pid();
    let report = Inspection::of(pid, 3)?
        .environment("STATE_DIRECTORY", &state)
        .run()?;
    ensure!(ended(&report, pid)?.is_null(), "it has not ended\n{report}");
    is_no_death(&report, pid, &state)?;
    signal(pid, libc::SIGUSR1)?;
    program.ends_well(PATIENCE)?;
    for number in [libc::SIGABRT, libc::SIGBUS, libc::SIGTERM] {
        let state = lab::fresh("state")?;
        let (pid, report, status) = observe("caught", &state, |pid| signal(pid, number))?;
        ensure!(status.signal() == Some(number), "{status}\n{report}");
        is_no_death(&report, pid, &state)?;
    }
    Ok(())
}

fn killed_and_exited() -> Result<()> {
    let state = lab::fresh("state")?;
    let (pid, report, _) = observe("null", &state, |pid| signal(pid, libc::SIGKILL))?;
    let end = ended(&report, pid)?;
    ensure!(end["signal"] == 9 && end["oom"] == false, "{end}\n{report}");
    ensure!(
        report.message().contains("was killed (signal 9) after"),
        "{report}"
    );
    is_no_death(&report, pid, &state)?;
    let command = ["--", "sh", "-c", "sleep 1; exit 7"];
    let report = Inspection::new(20)?
        .environment("STATE_DIRECTORY", &state)
        .arguments(command)
        .run()?;
    ensure!(
        report
            .message()
            .contains("The command ended with exit status 7 after "),
        "{report}"
    );
    let shell = report
        .processes()
        .iter()
        .find(|process| !process["command"].is_null())
        .with_context(|| format!("no command\n{report}"))?;
    ensure!(
        shell["ended"]["how"] == "exited" && shell["ended"]["exit_status"] == 7,
        "{}",
        shell["ended"]
    );
    Ok(())
}

/// A control group with little memory, removed at the end.
struct SmallGroup(PathBuf);

impl SmallGroup {
    fn make() -> Result<Self> {
        let name = format!("lingerscope-live-{}", std::process::id());
        let older = Path::new("/sys/fs/cgroup/memory");
        if older.join("cgroup.procs").exists() {
            let group = Self(older.join(name));
            fs::create_dir_all(&group.0)?;
            fs::write(group.0.join("memory.limit_in_bytes"), SMALL.to_string())?;
            return Ok(group);
        }
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .map(Path::new)
            .find(|root| root.join("cgroup.controllers").exists())
            .context("no control groups are mounted here")?;
        fs::write(root.join("cgroup.subtree_control"), "+memory")
            .context("the memory controller cannot be used here")?;
        let group = Self(root.join(name));
        fs::create_dir_all(&group.0)?;
        fs::write(group.0.join("memory.max"), SMALL.to_string())?;
        drop(fs::write(group.0.join("memory.swap.max"), "0"));
        Ok(group)
    }
}

impl Drop for SmallGroup {
    fn drop(&mut self) {
        // Its last process may not be gone yet.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn out_of_memory() -> Result<()> {
    let group = SmallGroup::make()?;
    let state = lab::fresh("state")?;
    let (pid, report, status) = observe("grow", &state, |pid| {
        fs::write(group.0.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move {pid} to {}", group.0.display()))
    })?;
    ensure!(status.signal() == Some(9), "{status}\n{report}");
    let end = ended(&report, pid)?;
    ensure!(
        end["how"] == "killed" && end["signal"] == 9 && end["oom"] == true,
        "{end}\n{report}"
    );
    ensure!(
        report
            .message()
            .contains("The process was killed (out of memory, signal 9) after "),
        "{report}"
    );
    is_no_death(&report, pid, &state)
}

/// Waits until a message about a process's death is in the journal.
fn told(daemon: &Daemon, pid: u32) -> Result<Value> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let pid = pid.to_string();
    loop {
        let found = daemon.alerts()?.into_iter().find(|message| {
            message["LINGERSCOPE_PID"] == *pid && !message["LINGERSCOPE_FAULT"].is_null()
        });
        if let Some(message) = found {
            return Ok(message);
        }
        ensure!(
            Instant::now() < deadline,
            "the death of {pid} is not told\n{}",
            daemon.log()
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// While probes are on, and when they have come off; a signal from outside is
/// not told.
fn daemon() -> Result<()> {
    let settings = "watch:\n  interval: 1s\nlog:\n  level: info\n";
    let pinned = "pinned:\n  name: ['faults']\n";
    let mut daemon = Daemon::start(&format!("mode: full\n{settings}{pinned}"))?;
    thread::sleep(Duration::from_secs(3));
    // Each user has a quarantine of his own.
    let start = |uid: u32| -> Result<Program> {
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--clear-groups", "--regid=65534"])
            .arg(format!("--reuid={uid}"))
            .arg("--")
            .arg(faults()?)
            .args(["60", "null"]);
        Program::from_command(command)
    };
    let (mut sent, mut probed, mut lately) = (start(61_001)?, start(61_002)?, start(61_003)?);
    for program in [&sent, &probed, &lately] {
        breakpoints::wait_for(program.pid(), PATIENCE)
            .with_context(|| format!("no probes\n{}", daemon.log()))?;
    }
    signal(sent.pid(), libc::SIGSEGV)?;
    sent.wait(PATIENCE)?;
    signal(probed.pid(), libc::SIGUSR1)?;
    probed.wait(PATIENCE)?;
    let message = told(&daemon, probed.pid())?;
    for (field, value) in [
        ("PRIORITY", "4"),
        ("LINGERSCOPE_SIGNAL", "11"),
        ("LINGERSCOPE_COMM", "faults"),
    ] {
        ensure!(message[field] == value, "{field} in {message}");
    }
    ensure!(
        message["LINGERSCOPE_QUARANTINE"]
            .as_str()
            .is_some_and(|text| text.contains("user 61002") && text.contains("quarantine clear")),
        "{message}"
    );
    // Followed no more, and dead some seconds later.
    daemon.set(&format!(
        "mode: full\n{settings}exclude:\n  name: ['faults']\n"
    ))?;
    signal(daemon.pid()?, libc::SIGHUP)?;
    breakpoints::wait_until_gone(lately.pid(), PATIENCE)?;
    for number in [libc::SIGUSR1, libc::SIGUSR2] {
        signal(daemon.pid()?, number)?;
    }
    thread::sleep(Duration::from_secs(2));
    signal(lately.pid(), libc::SIGUSR1)?;
    lately.wait(PATIENCE)?;
    let message = told(&daemon, lately.pid())?;
    ensure!(
        message["MESSAGE"]
            .as_str()
            .is_some_and(|text| text.contains("after its probes came off")),
        "{message}"
    );
    let about_sent = sent.pid().to_string();
    let alerts = daemon.alerts()?;
    ensure!(
        !alerts.iter().any(|message| {
            message["LINGERSCOPE_PID"] == *about_sent && !message["LINGERSCOPE_FAULT"].is_null()
        }),
        "a signal from outside is told: {alerts:?}"
    );
    let users: Vec<u64> = entries(&daemon.state)?
        .iter()
        .filter_map(|entry| entry["uid"].as_u64())
        .collect();
    ensure!(users == [61_002, 61_003], "{users:?}");
    daemon.stop()
}
