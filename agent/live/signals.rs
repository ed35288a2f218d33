//! Signals to lingerscope itself: a run that ends early writes what it has.

use std::{
    fs::{self, File},
    io::Read as _,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
    ptr, thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    breakpoints, deaths, lab,
    program::{self, Program, signal},
    trial,
};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("signals::lost_terminal", || lost_terminal(&[])),
        trial("signals::lost_terminal_json", || lost_terminal(&["--json"])),
        trial("signals::closed_pipe", closed_pipe),
        trial("signals::no_meaning", no_meaning),
        trial("signals::second_interrupt", second_interrupt),
    ]
}

/// Ended with the test.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn inspect(pid: u32, document: &Path) -> Result<Command> {
    let mut command = Command::new(lab::lingerscope()?);
    command
        .args(["inspect", "--mode", "trace", "--for", "60s", "-p"])
        .arg(pid.to_string())
        .arg("--json-file")
        .arg(document)
        .env("STATE_DIRECTORY", lab::fresh("state")?)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command)
}

/// The document is there, whole, and holds what was seen.
fn is_written(document: &Path, pid: u32) -> Result<()> {
    let bytes = fs::read(document).context("the document is lost")?;
    let document: Value = serde_json::from_slice(&bytes)?;
    let process = &document["processes"][0];
    ensure!(
        process["pid"] == pid && process["capture"]["allocations"].as_u64() > Some(0),
        "{document:#}"
    );
    Ok(())
}

fn ended(run: &mut Run) -> Result<std::process::ExitStatus> {
    program::wait(&mut run.0, PATIENCE)?.context("it goes on")
}

/// A terminal: our end of it, and the other one's.
fn terminal() -> Result<(OwnedFd, OwnedFd)> {
    let (mut ours, mut theirs) = (0, 0);
    // SAFETY: two valid places; no name and no settings are asked for.
    let opened = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            ptr::null_mut(),
            ptr::null(),
            ptr::null(),
        )
    };
    ensure!(
        opened == 0,
        "no terminal: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: open, and nobody else's.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    // SAFETY: sets a flag of an open descriptor.
    unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    Ok((ours, theirs))
}

/// The terminal that it runs on, and writes to, goes away.
fn lost_terminal(arguments: &[&str]) -> Result<()> {
    let target = Program::start(&deaths::faults()?, &["60", "null"])?;
    let document = lab::fresh("document.json")?;
    let (ours, theirs) = terminal()?;
    let mut command = inspect(target.pid(), &document)?;
    command.args(arguments);
    let terminal = theirs.as_raw_fd();
    // SAFETY: system calls only, on a descriptor that the child has.
    unsafe {
        command.pre_exec(move || match libc::login_tty(libc::dup(terminal)) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut run = Run(command.spawn()?);
    drop(theirs);
    // Somebody reads along, so that it is not the full terminal that holds it.
    let mut screen = File::from(ours);
    breakpoints::wait_for(target.pid(), PATIENCE)?;
    thread::sleep(Duration::from_secs(3));
    let mut shown = [0; 4096];
    let length = screen.read(&mut shown)?;
    ensure!(length > 0, "it shows nothing on a terminal");
    drop(screen);
    ended(&mut run)?;
    is_written(&document, target.pid())?;
    breakpoints::wait_until_gone(target.pid(), Duration::from_secs(2)).map(drop)
}

/// The reader of its output is gone, as behind `head`.
fn closed_pipe() -> Result<()> {
    let target = Program::start(&deaths::faults()?, &["60", "null"])?;
    let document = lab::fresh("document.json")?;
    let (reader, writer) = std::io::pipe()?;
    let mut command = inspect(target.pid(), &document)?;
    command.stderr(writer.try_clone()?).stdout(writer);
    let mut run = Run(command.spawn()?);
    drop(command);
    drop(reader);
    breakpoints::wait_for(target.pid(), PATIENCE)?;
    thread::sleep(Duration::from_secs(2));
    signal(run.0.id(), libc::SIGINT)?;
    ended(&mut run)?;
    is_written(&document, target.pid())
}

/// SIGUSR1 and SIGUSR2 end nothing, nor does SIGHUP where `nohup` said so;
/// SIGTERM still does.
fn no_meaning() -> Result<()> {
    let target = Program::start(&deaths::faults()?, &["60", "null"])?;
    let document = lab::fresh("document.json")?;
    let mut command = inspect(target.pid(), &document)?;
    // SAFETY: what nohup does.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    let mut run = Run(command.spawn()?);
    breakpoints::wait_for(target.pid(), PATIENCE)?;
    for number in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP] {
        signal(run.0.id(), number)?;
        thread::sleep(Duration::from_millis(700));
        ensure!(run.0.try_wait()?.is_none(), "signal {number} ends it");
    }
    signal(run.0.id(), libc::SIGTERM)?;
    ended(&mut run)?;
    is_written(&document, target.pid())
}

/// Nobody takes the report: the first Ctrl-C leads to it, another one within
/// the same second means no more, a later one ends the run.
fn second_interrupt() -> Result<()> {
    let target = Program::start(&deaths::faults()?, &["60", "null"])?;
    let document = lab::fresh("document.json")?;
    let (reader, writer) = std::io::pipe()?;
    // SAFETY: a number in, a number out.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    ensure!(size == 4096, "a pipe of {size} bytes");
    // Full.
    let full = vec![0u8; 4096];
    std::io::Write::write_all(&mut &writer, &full)?;
    let mut command = inspect(target.pid(), &document)?;
    command.stdout(writer);
    let mut run = Run(command.spawn()?);
    drop(command);
    breakpoints::wait_for(target.pid(), PATIENCE)?;
    thread::sleep(Duration::from_secs(2));
    let interrupt = |run: &Run| signal(run.0.id(), libc::SIGINT);
    interrupt(&run)?;
    interrupt(&run)?;
    thread::sleep(Duration::from_secs(4));
    ensure!(
        run.0.try_wait()?.is_none(),
        "it does not wait for its reader"
    );
    is_written(&document, target.pid())?;
    interrupt(&run)?;
    let status = ended(&mut run)?;
    ensure!(status.signal() == Some(libc::SIGINT), "{status}");
    drop(reader);
    Ok(())
}
