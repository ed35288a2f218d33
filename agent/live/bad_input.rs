//! Wrong targets and wrong arguments: one sentence with the mend, and the
//! right exit status.

use std::{
    path::PathBuf,
    process::{Command, Output},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::{
    allocators::{SmallLeak, plain},
    breakpoints,
    inspection::{Inspection, Report},
    lab,
    program::Program,
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("bad_input::no_such_process", no_such_process),
        trial("bad_input::itself", itself),
        trial("bad_input::kernel_thread", || {
            refused(&["-p", "2"], &[4], &["kernel thread"])
        }),
        trial("bad_input::duration", || {
            for garbage in ["soon", "-3s", "", "10 parsecs", "99999999999999999999s"] {
                refused(&[&format!("--for={garbage}"), "-p", "1"], &[2], &["--for"])?;
            }
            Ok(())
        }),
        trial("bad_input::process_id", || {
            for garbage in ["server", "-1", "99999999999"] {
                refused(&[&format!("--pid={garbage}")], &[2], &["-p"])?;
            }
            Ok(())
        }),
        trial("bad_input::no_target", || refused(&[], &[2], &["-p"])),
        trial("bad_input::unknown_flag", || {
            refused(&["--frobnicate"], &[2], &["--frobnicate"])
        }),
        trial("bad_input::no_such_name", || {
            refused(
                &["--name", "no-such-program-here"],
                &[4],
                &["no-such-program"],
            )
        }),
        trial("bad_input::no_allocator", no_allocator),
        trial("bad_input::go_program", go_program),
        trial("bad_input::exits_meanwhile", exits_meanwhile),
        trial("bad_input::not_root", not_root),
    ]
}

/// Runs `inspect` with only these arguments; all `words` must be in the
/// message, which is short and says nothing of this program's insides.
fn refused(arguments: &[&str], codes: &[i32], words: &[&str]) -> Result<()> {
    let mut command = Command::new(lab::lingerscope()?);
    command.arg("inspect").args(arguments);
    if !arguments
        .iter()
        .any(|argument| argument.starts_with("--for"))
    {
        command.args(["--for", "2s"]);
    }
    let output = command.output().context("cannot start lingerscope")?;
    let message = message(&output);
    let about = format!("{command:?}: {}\n{message}", output.status);
    ensure!(
        output
            .status
            .code()
            .is_some_and(|code| codes.contains(&code)),
        "exit status of {about}"
    );
    for word in words {
        ensure!(message.contains(word), "{word:?} is missing from {about}");
    }
    sober(&message, &about)
}

/// What a person reads: standard output and standard error.
fn message(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes))
        .concat()
}

fn sober(message: &str, about: &str) -> Result<()> {
    ensure!(!message.trim().is_empty(), "no message: {about}");
    ensure!(!message.contains("panicked"), "a panic: {about}");
    Ok(())
}

fn check_report(report: &Report, codes: &[i32], words: &[&str]) -> Result<()> {
    report.expect_code(codes)?;
    let message = report.message();
    for word in words {
        ensure!(
            message.contains(word),
            "{word:?} is missing from the message\n{report}"
        );
    }
    sober(&message, &report.to_string())
}

/// A process id that was in use a moment ago.
fn no_such_process() -> Result<()> {
    let mut program = Program::start(&plain()?, &["1", "1", "60"])?;
    let pid = program.pid();
    program.kill()?;
    refused(&["-p", &pid.to_string()], &[4], &[&pid.to_string()])
}

/// A shell that becomes lingerscope knows its process id before.
fn itself() -> Result<()> {
    let mut command = Command::new("sh");
    let binary = lab::lingerscope()?;
    command
        .args(["-c", "exec \"$0\" inspect -p $$ --for 2s"])
        .arg(binary);
    let output = command.output()?;
    let message = message(&output);
    let about = format!(
        "lingerscope inspect -p itself: {}\n{message}",
        output.status
    );
    ensure!(output.status.code() == Some(4), "exit status of {about}");
    ensure!(message.contains("itself"), "the reason is missing: {about}");
    sober(&message, &about)
}

fn no_allocator() -> Result<()> {
    let path = lab::compile(
        "cc",
        "no_allocator.c",
        &["-nostdlib", "-static", "-ffreestanding"],
        "no_allocator",
    )?;
    let program = Program::start(&path, &[])?;
    let report = Inspection::of(program.pid(), 2)?.run()?;
    check_report(&report, &[4], &["allocator"])
}

/// A real one where there is a Go toolchain, and in any case one with the
/// section that Go's linker always writes.
fn go_program() -> Result<()> {
    let path = lab::path("leak-go")?;
    if !path.exists() {
        let mut add = Command::new("objcopy");
        add.args(["--add-section", ".gopclntab=/etc/hostname"]);
        lab::run(add.arg(plain()?).arg(&path))?;
    }
    let mut paths = vec![path];
    paths.extend(real_go_program()?);
    for path in paths {
        let program = Program::start(&path, &["10", "100", "30"])?;
        let report = Inspection::of(program.pid(), 2)?.run()?;
        check_report(&report, &[4], &["Go program"])?;
    }
    Ok(())
}

/// `None` without a toolchain, which is too large to be installed for this.
fn real_go_program() -> Result<Option<PathBuf>> {
    if Command::new("go").arg("version").output().is_err() {
        return Ok(None);
    }
    let path = lab::path("leak-real-go")?;
    lab::run(
        Command::new("go")
            .env("GOCACHE", lab::path("go-cache")?)
            .env("GO111MODULE", "off")
            .args(["build", "-o"])
            .arg(&path)
            .arg(lab::programs().join("leak.go")),
    )?;
    Ok(Some(path))
}

/// A normal outcome: what was seen until then is reported.
fn exits_meanwhile() -> Result<()> {
    let mut small = SmallLeak::start(&plain()?, &mut lab::random("exits meanwhile")?)?;
    let pid = small.program.pid();
    let running = Inspection::of(pid, 40)?.start()?;
    breakpoints::wait_for(pid, Duration::from_secs(15))?;
    thread::sleep(Duration::from_secs(7));
    small.program.kill()?;
    let report = running
        .finish(Duration::from_secs(10))
        .context("after the target's end")?;
    report.expect_code(&[0, 3])?;
    let functions: Vec<_> = report
        .findings(pid)?
        .iter()
        .map(|found| found.first_user_function().to_owned())
        .collect();
    ensure!(
        functions.iter().any(|name| name.contains("leak_here")),
        "what was seen is lost\n{report}"
    );
    Ok(())
}

/// Without privileges, and with a target of the same user.
fn not_root() -> Result<()> {
    const DROP: [&str; 4] = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    // The lab's directory and the build's may be closed to others.
    let directory = std::env::temp_dir().join(format!("lingerscope-nobody-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let outcome = (|| {
        let binary = directory.join("lingerscope");
        let target = directory.join("leak");
        std::fs::copy(lab::lingerscope()?, &binary)?;
        std::fs::copy(plain()?, &target)?;
        for path in [&directory, &binary, &target] {
            lab::run(Command::new("chmod").arg("755").arg(path))?;
        }
        let mut start = Command::new("setpriv");
        start.args(DROP).arg(&target).args(["10", "100", "30"]);
        let program = Program::from_command(start)?;
        let mut command = Command::new("setpriv");
        command
            .args(DROP)
            .arg(&binary)
            .args(["inspect", "--for", "2s", "-p"]);
        command.arg(program.pid().to_string());
        let output = command.output()?;
        let message = message(&output);
        let about = format!("{command:?}: {}\n{message}", output.status);
        ensure!(output.status.code() == Some(1), "exit status of {about}");
        for capability in ["CAP_BPF", "CAP_PERFMON"] {
            ensure!(
                message.contains(capability),
                "{capability} is missing: {about}"
            );
        }
        sober(&message, &about)
    })();
    drop(std::fs::remove_dir_all(&directory));
    outcome
}
