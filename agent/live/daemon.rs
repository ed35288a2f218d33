//! The daemon among several programs of which one leaks.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    journal, lab,
    program::{self, Program},
    server::Server,
    trial,
};

/// From start to the leaking program's end.
const WATCHED: Duration = Duration::from_secs(40);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("daemon::finds_the_one_that_leaks", finds),
        trial("daemon::bad_settings", bad_settings),
        trial("daemon::says_once_that_breakpoints_are_gone", vanished),
    ]
}

/// A daemon with a journal of its own.
pub(crate) struct Daemon {
    child: Child,
    journal: PathBuf,
    log: PathBuf,
    metrics: PathBuf,
    settings: PathBuf,
    /// Where it remembers what died.
    pub(crate) state: PathBuf,
}

impl Daemon {
    pub(crate) fn start(settings: &str) -> Result<Self> {
        let directory = lab::fresh("daemon")?;
        let journal = directory.join("journal");
        fs::create_dir_all(&journal)?;
        let metrics = directory.join("lingerscope.prom");
        let file = directory.join("lingerscope.yaml");
        write(&file, settings, &metrics)?;
        let state = directory.join("state");
        let log = directory.join("log");
        let child = Command::new(lab::programs().join("with-journald"))
            .arg(&journal)
            .arg(journal::catalogue()?)
            .arg(lab::lingerscope()?)
            .args(["daemon", "--config"])
            .arg(&file)
            .env("STATE_DIRECTORY", &state)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("cannot start the daemon")?;
        Ok(Self {
            child,
            journal,
            log,
            metrics,
            settings: file,
            state,
        })
    }

    /// Gives it other settings, which it reads when it is told to.
    pub(crate) fn set(&self, settings: &str) -> Result<()> {
        write(&self.settings, settings, &self.metrics)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Process id of lingerscope itself: a child of the script.
    pub(crate) fn pid(&self) -> Result<u32> {
        let script = self.child.id();
        let children = format!("/proc/{script}/task/{script}/children");
        let list = fs::read_to_string(&children).with_context(|| children.clone())?;
        list.split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .find(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim() == "lingerscope")
            })
            .with_context(|| format!("no daemon runs\n{}", self.log()))
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
        program::signal(self.pid()?, libc::SIGTERM)?;
        let Some(status) = program::wait(&mut self.child, Duration::from_secs(20))? else {
            bail!("the daemon does not end\n{}", self.log());
        };
        ensure!(status.success(), "the daemon: {status}\n{}", self.log());
        Ok(())
    }

    /// Every message in the journal that is about a process.
    pub(crate) fn alerts(&self) -> Result<Vec<Value>> {
        let lines = lab::run(
            Command::new("journalctl")
                .arg("--directory")
                .arg(&self.journal)
                .args([
                    "--output=json",
                    "--all",
                    "--no-pager",
                    "SYSLOG_IDENTIFIER=lingerscope",
                ]),
        )?;
        String::from_utf8(lines)?
            .lines()
            .map(|line| serde_json::from_str(line).context("journalctl printed no JSON"))
            .collect()
    }
}

fn write(file: &Path, settings: &str, metrics: &Path) -> Result<()> {
    let text = format!(
        "{settings}\nmetrics:\n  textfile: {}\n  interval: 1s\n",
        metrics.display()
    );
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = self.pid() {
            drop(program::signal(pid, libc::SIGKILL));
        }
        drop(program::wait(&mut self.child, Duration::from_secs(5)));
    }
}

fn finds() -> Result<()> {
    let mut random = lab::random("daemon::finds")?;
    let mut daemon = Daemon::start(
        "mode: full\nwatch:\n  interval: 1s\nlog:\n  level: info\npinned:\n  name: ['server']\n",
    )?;
    thread::sleep(Duration::from_secs(3));
    // They start while it runs.
    let mut leaking = Server::start_slowly(
        "server",
        &["--leak", "arc-cycle"],
        &mut random,
        Duration::ZERO,
    )?;
    let healthy: Vec<Server> = [["--leak", "none"], ["--healthy", "sawtooth"]]
        .iter()
        .map(|arguments| Server::start_slowly("server", arguments, &mut random, Duration::ZERO))
        .collect::<Result<_>>()?;
    let pid = leaking.program.pid();
    thread::sleep(WATCHED);
    // Bad settings change nothing.
    let settings = fs::read_to_string(&daemon.settings)?;
    fs::write(&daemon.settings, "buget:\n  target_percent: 1\n")?;
    program::signal(daemon.pid()?, libc::SIGHUP)?;
    thread::sleep(Duration::from_secs(1));
    ensure!(
        daemon.log().contains("buget") && daemon.log().contains("budget"),
        "a wrong key is not told:\n{}",
        daemon.log()
    );
    fs::write(&daemon.settings, settings)?;
    let function = leaking.truth()?.function().to_owned();
    leaking.program.kill()?;
    thread::sleep(Duration::from_secs(4));
    let metrics = fs::read_to_string(&daemon.metrics)
        .with_context(|| format!("no metrics\n{}", daemon.log()))?;
    ensure!(metrics.contains("lingerscope_build_info"), "{metrics}");
    daemon.stop()?;

    let alerts = daemon.alerts()?;
    let of = |pid: u32| {
        let pid = pid.to_string();
        alerts
            .iter()
            .filter(move |alert| alert["LINGERSCOPE_PID"] == *pid)
    };
    let told = || format!("{alerts:#?}\n{}", daemon.log());
    let states: BTreeSet<&str> = of(pid)
        .filter_map(|alert| alert["LINGERSCOPE_STATE"].as_str())
        .collect();
    ensure!(
        states.contains("firing"),
        "the leak is not told\n{}",
        told()
    );
    ensure!(states.contains("ended"), "its end is not told\n{}", told());
    let firing: Vec<&Value> = of(pid)
        .filter(|alert| alert["LINGERSCOPE_STATE"] == "firing")
        .collect();
    ensure!(
        firing.iter().any(|alert| alert["LINGERSCOPE_STACK"]
            .as_str()
            .is_some_and(|stack| stack.contains(&function))),
        "no alert names {function}\n{}",
        told()
    );
    for other in &healthy {
        ensure!(
            of(other.program.pid()).next().is_none(),
            "an alert about a healthy program\n{}",
            told()
        );
    }
    Ok(())
}

/// A program that throws its pages away all the time.
fn vanished() -> Result<()> {
    const REASON: &str = "breakpoints from the code of its allocator";
    let mut daemon = Daemon::start(
        "mode: full\nwatch:\n  interval: 1s\nlog:\n  level: info\npinned:\n  name: ['rewrites']\n",
    )?;
    thread::sleep(Duration::from_secs(3));
    let path = lab::compile("cc", "rewrites.c", &["-fno-builtin", "-ldl"], "rewrites")?;
    let mut program = Program::start(&path, &["15", "drop", "0"])?;
    program.ends_well(Duration::from_secs(30))?;
    daemon.stop()?;
    let log = daemon.log();
    let told = log.lines().filter(|line| line.contains(REASON)).count();
    ensure!(told == 1, "it is told {told} times:\n{log}");
    ensure!(log.contains("no longer following"), "{log}");
    Ok(())
}

fn bad_settings() -> Result<()> {
    let mut daemon = Daemon::start("budget:\n  target_percent: many\n")?;
    let status = program::wait(&mut daemon.child, Duration::from_secs(10))?;
    let log = daemon.log();
    ensure!(
        status.is_some_and(|status| status.code() == Some(2)),
        "{status:?}\n{log}"
    );
    ensure!(
        log.contains("lingerscope.yaml:2") && log.contains("budget.target_percent"),
        "neither line nor key is named: {log}"
    );
    Ok(())
}
