//! A build that dies by a fault while it is probed is not probed again: by
//! its process id, after an exec, or behind `--`.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    breakpoints,
    inspection::{Inspection, Report},
    lab,
    program::Program,
    trial,
};

/// A null pointer's signal.
const SIGNAL: i64 = 11;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("quarantine::a_build_that_died", || {
        let path = lab::compile("cc", "dies.c", &["-Wl,--build-id"], "dies")?;
        let state = lab::fresh("state")?;
        dies(&path, &state)?;
        named(&path, &state)?;
        executed(&path, &state)?;
        started(&path, &state)
    })]
}

fn inspection(seconds: u32, state: &Path) -> Result<Inspection> {
    Ok(Inspection::new(seconds)?.environment("STATE_DIRECTORY", state))
}

/// The death ends the run, is told, and goes into the list.
fn dies(path: &Path, state: &Path) -> Result<()> {
    let program = Program::start(path, &["4"])?;
    let pid = program.pid();
    let report = inspection(30, state)?
        .arguments(["-p", &pid.to_string()])
        .run()?;
    report.expect_code(&[0, 4])?;
    ensure!(
        report
            .message()
            .contains(&format!("died by signal {SIGNAL}")),
        "the death is not told\n{report}"
    );
    let list = state.join("quarantine.json");
    let entries: Value = serde_json::from_slice(&fs::read(&list).context("no list")?)?;
    let entry = &entries[0];
    ensure!(
        entry["signal"] == SIGNAL
            && entry["exe"] == path.to_string_lossy().as_ref()
            && entry["build_id"].as_str().is_some_and(|id| id.len() >= 16),
        "{entries}"
    );
    Ok(())
}

fn refused(report: &Report, state: &Path) -> Result<()> {
    report.expect_code(&[4])?;
    let message = report.message();
    let list = state.join("quarantine.json");
    for word in [
        &format!("died by signal {SIGNAL}"),
        &list.display().to_string(),
    ] {
        ensure!(message.contains(word), "{word:?} is not told\n{report}");
    }
    Ok(())
}

fn named(path: &Path, state: &Path) -> Result<()> {
    let program = Program::start(path, &["20"])?;
    let report = inspection(5, state)?
        .arguments(["-p", &program.pid().to_string()])
        .run()?;
    refused(&report, state)
}

/// A shell that is observed becomes that program.
fn executed(path: &Path, state: &Path) -> Result<()> {
    let mut shell = Command::new("sh");
    let script = format!("echo READY; sleep 3; exec {} 20", path.display());
    shell.args(["-c", &script]);
    let mut program = Program::from_command(shell)?;
    let pid = program.pid();
    let running = inspection(8, state)?
        .arguments(["-p", &pid.to_string()])
        .start()?;
    breakpoints::wait_for(pid, Duration::from_secs(2))?;
    while fs::read_link(format!("/proc/{pid}/exe"))? != path {
        thread::sleep(Duration::from_millis(20));
    }
    breakpoints::wait_until_gone(pid, Duration::from_secs(2))?;
    let report = running.finish(Duration::from_secs(30))?;
    refused(&report, state)?;
    ensure!(program.is_running()?, "it ended early\n{report}");
    Ok(())
}

/// The command's own file is known before it runs.
fn started(path: &Path, state: &Path) -> Result<()> {
    let report = inspection(3, state)?
        .arguments(["--", &path.to_string_lossy(), "1"])
        .run()?;
    refused(&report, state)
}
