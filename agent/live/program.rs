//! Processes that a test starts, and that never outlive it.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running program, killed when dropped.
pub(crate) struct Program {
    child: Child,
    /// The lines before READY.
    pub(crate) greeting: Vec<String>,
}

impl Program {
    /// Starts `path` and waits for its line `READY`.
    pub(crate) fn start(path: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(path);
        command.args(arguments);
        Self::from_command(command)
    }

    /// Starts a command that prints `READY`.
    pub(crate) fn from_command(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let output = child.stdout.take().context("no output")?;
        let mut program = Self {
            child,
            greeting: Vec::new(),
        };
        let lines = read_lines(output);
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line == "READY" => return Ok(program),
                Ok(line) => program.greeting.push(line),
                Err(_) => bail!(
                    "{command:?} did not say READY (status {:?})",
                    program.child.try_wait()
                ),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Numbers of the greeting's lines that begin with `word`.
    pub(crate) fn numbers(&self, word: &str) -> Vec<u32> {
        let rest = |line: &String| line.strip_prefix(word)?.trim().parse().ok();
        self.greeting.iter().filter_map(rest).collect()
    }

    /// Waits until the program ends by itself.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait(&mut self.child, limit)?
            .with_context(|| format!("process {} did not end within {limit:?}", self.pid()))
    }

    /// Waits and insists on exit status 0.
    pub(crate) fn ends_well(&mut self, limit: Duration) -> Result<()> {
        let status = self.wait(limit)?;
        ensure!(
            status.code() == Some(0),
            "the observed program was harmed: {status}{}",
            status
                .signal()
                .map(|number| format!(" (signal {number})"))
                .unwrap_or_default()
        );
        Ok(())
    }

    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Lines as they come; the thread reads on so that the program never blocks.
fn read_lines(output: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(64);
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            drop(sender.try_send(line));
        }
    });
    receiver
}

/// Waits for a child with a deadline; `None` when it still runs then.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal to a process that the test has started.
pub(crate) fn signal(pid: u32, number: libc::c_int) -> Result<()> {
    // SAFETY: kill takes two numbers.
    let outcome = unsafe { libc::kill(pid as libc::pid_t, number) };
    ensure!(
        outcome == 0,
        "signal {number} to {pid}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
