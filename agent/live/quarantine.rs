//! A file that died of a fault while it was probed is not probed again for
//! that user: by its process id, after an exec, or behind `--`; until it is
//! taken off the list.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    breakpoints, deaths,
    inspection::{Inspection, Report},
    lab,
    program::{Program, signal},
    trial,
};

/// A null pointer's signal.
const SIGNAL: i64 = 11;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("quarantine::a_build_that_died", || {
            let path = deaths::faults()?;
            let state = lab::fresh("state")?;
            dies(&path, &state)?;
            named(&path, &state)?;
            another_user(&path, &state)?;
            another_file(&path, &state)?;
            executed(&path, &state)?;
            started(&path, &state)?;
            cleared(&path, &state)
        }),
        trial("quarantine::without_a_build_id", || {
            let path = lab::compile(
                "cc",
                "faults.c",
                &["-Wl,--build-id=none"],
                "faults-without-id",
            )?;
            let state = lab::fresh("state")?;
            dies(&path, &state)?;
            named(&path, &state)?;
            // The same contents, written anew, are another build.
            let bytes = fs::read(&path)?;
            fs::remove_file(&path)?;
            fs::write(&path, bytes)?;
            lab::run(Command::new("chmod").arg("755").arg(&path))?;
            observed(&path, &state)
        }),
        trial("quarantine::damaged_list", damaged),
    ]
}

fn inspection(seconds: u32, state: &Path) -> Result<Inspection> {
    Ok(Inspection::new(seconds)?.environment("STATE_DIRECTORY", state))
}

/// The death ends the run, is told, and goes into the list.
fn dies(path: &Path, state: &Path) -> Result<()> {
    let program = Program::start(path, &["60"])?;
    let pid = program.pid();
    let running = inspection(60, state)?
        .arguments(["-p", &pid.to_string()])
        .start()?;
    breakpoints::wait_for(pid, PATIENCE)?;
    signal(pid, libc::SIGUSR1)?;
    let report = running.finish(PATIENCE)?;
    report.expect_code(&[0, 4])?;
    ensure!(
        report
            .message()
            .contains(&format!("died of a fault (signal {SIGNAL}")),
        "the death is not told\n{report}"
    );
    let list = listed(state)?;
    let entry = &list["entries"][0];
    ensure!(
        entry["signal"] == SIGNAL && entry["exe"] == path.to_string_lossy().as_ref(),
        "{list}"
    );
    Ok(())
}

/// `lingerscope quarantine` with these arguments.
fn quarantine(state: &Path, arguments: &[&str]) -> Result<std::process::Output> {
    Command::new(lab::lingerscope()?)
        .arg("quarantine")
        .args(arguments)
        .env("STATE_DIRECTORY", state)
        .output()
        .context("cannot start lingerscope")
}

fn listed(state: &Path) -> Result<Value> {
    let output = quarantine(state, &["list", "--json"])?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn refused(report: &Report) -> Result<()> {
    report.expect_code(&[4])?;
    let message = report.message();
    for word in [
        &format!("died of a fault (signal {SIGNAL})"),
        "lingerscope quarantine clear",
    ] {
        ensure!(message.contains(word), "{word:?} is not told\n{report}");
    }
    Ok(())
}

fn inspected(program: &Program, state: &Path) -> Result<Report> {
    inspection(3, state)?
        .arguments(["-p", &program.pid().to_string()])
        .run()
}

fn named(path: &Path, state: &Path) -> Result<()> {
    let program = Program::start(path, &["60"])?;
    refused(&inspected(&program, state)?)
}

/// It is not refused.
fn observed(path: &Path, state: &Path) -> Result<()> {
    let program = Program::start(path, &["60"])?;
    let report = inspected(&program, state)?;
    let seen = report.process(program.pid())?["capture"]["allocations"].as_u64();
    ensure!(seen > Some(0), "nothing was seen\n{report}");
    Ok(())
}

fn another_user(path: &Path, state: &Path) -> Result<()> {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(path)
        .arg("60");
    let program = Program::from_command(command)?;
    let report = inspected(&program, state)?;
    let seen = report.process(program.pid())?["capture"]["allocations"].as_u64();
    ensure!(seen > Some(0), "another user's is refused\n{report}");
    Ok(())
}

fn another_file(path: &Path, state: &Path) -> Result<()> {
    let copy = lab::fresh("copy")?;
    fs::copy(path, &copy)?;
    observed(&copy, state)
}

/// A shell that is observed becomes that program.
fn executed(path: &Path, state: &Path) -> Result<()> {
    let mut shell = Command::new("sh");
    let gate = lab::fresh("gate")?;
    lab::run(Command::new("mkfifo").arg(&gate))?;
    let script = format!(
        "echo READY; read go <{}; exec {} 60",
        gate.display(),
        path.display()
    );
    shell.args(["-c", &script]);
    let mut program = Program::from_command(shell)?;
    let pid = program.pid();
    let running = inspection(8, state)?
        .arguments(["-p", &pid.to_string()])
        .start()?;
    breakpoints::wait_for(pid, PATIENCE)?;
    fs::write(&gate, "go\n")?;
    while fs::read_link(format!("/proc/{pid}/exe"))? != path {
        thread::sleep(Duration::from_millis(20));
    }
    breakpoints::wait_until_gone(pid, Duration::from_secs(2))?;
    let report = running.finish(PATIENCE)?;
    refused(&report)?;
    ensure!(program.is_running()?, "it ended early\n{report}");
    Ok(())
}

/// The command's own file is known before it runs.
fn started(path: &Path, state: &Path) -> Result<()> {
    let report = inspection(3, state)?
        .arguments(["--", &path.to_string_lossy(), "1"])
        .run()?;
    refused(&report)
}

/// The sentence's own command takes it off.
fn cleared(path: &Path, state: &Path) -> Result<()> {
    let list = listed(state)?;
    let id = list["entries"][0]["build_id"]
        .as_str()
        .context("no build id")?;
    let text = quarantine(state, &[])?;
    let said = String::from_utf8_lossy(&text.stdout);
    for word in [id, &path.to_string_lossy(), "user 0", "signal 11"] {
        ensure!(said.contains(word), "{word:?} is missing from {said}");
    }
    let unknown = quarantine(state, &["clear", "no-such-build"])?;
    let why = String::from_utf8_lossy(&unknown.stderr);
    ensure!(
        unknown.status.code() == Some(1) && why.contains("no-such-build") && why.contains(id),
        "{unknown:?}"
    );
    let usage = quarantine(state, &["clear"])?;
    ensure!(usage.status.code() == Some(2), "{usage:?}");
    let cleared = quarantine(state, &["clear", id])?;
    ensure!(cleared.status.code() == Some(0), "{cleared:?}");
    ensure!(
        listed(state)?["entries"] == Value::Array(Vec::new()),
        "it is still there"
    );
    observed(path, state)
}

/// What cannot be read is kept, told, and stops nothing.
fn damaged() -> Result<()> {
    let path = deaths::faults()?;
    let state = lab::fresh("state")?;
    fs::create_dir_all(&state)?;
    let list = state.join("quarantine.json");
    fs::write(&list, "{\"format\": 2, \"entr")?;
    let program = Program::start(&path, &["60"])?;
    let report = inspected(&program, &state)?;
    let seen = report.process(program.pid())?["capture"]["allocations"].as_u64();
    ensure!(seen > Some(0), "nothing was seen\n{report}");
    ensure!(
        report.message().contains("quarantine.json.damaged"),
        "it is not told\n{report}"
    );
    ensure!(!list.exists() && state.join("quarantine.json.damaged").exists());
    Ok(())
}
