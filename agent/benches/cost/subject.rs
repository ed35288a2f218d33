//! The measured program: `agent/examples/pairs.rs`.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::processors::{self, Processors};

/// Lines of one measurement; the program prints one every 50 ms.
const LINES: usize = 6;
/// After this, lines cover no time before the last change.
const SETTLED: Duration = Duration::from_millis(110);
/// A line that takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// The program on its processor, running or paused; killed at the end.
pub(crate) struct Subject {
    child: Child,
    lines: Receiver<f64>,
}

impl Subject {
    /// Starts it with a stack of this depth and waits for its first line.
    /// Libraries are first looked for in `libraries`.
    pub(crate) fn start(depth: u32, libraries: &Path, processors: &Processors) -> Result<Self> {
        Self::start_as(&[&depth.to_string()], libraries, processors)
    }

    /// As [`Self::start`], with a call tree on top of the stack: no pair has
    /// the stack of the one before.
    pub(crate) fn varied(depth: u32, libraries: &Path, processors: &Processors) -> Result<Self> {
        Self::start_as(&[&depth.to_string(), "varied"], libraries, processors)
    }

    fn start_as(arguments: &[&str], libraries: &Path, processors: &Processors) -> Result<Self> {
        let program = program()?;
        let mut child = Command::new(&program)
            .args(arguments)
            .env("LD_LIBRARY_PATH", libraries)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take();
        let (sender, lines) = sync_channel(1024);
        let subject = Self { child, lines };
        processors::pin(subject.pid(), processors.theirs)?;
        let output = output.context("the measured program has no output")?;
        // Reads to the end, so that the program never blocks on a full pipe.
        thread::spawn(move || {
            let numbers = BufReader::new(output)
                .lines()
                .map_while(Result::ok)
                .filter_map(|line| line.parse().ok());
            for number in numbers {
                if sender.send(number).is_err() {
                    break;
                }
            }
        });
        subject.line()?;
        Ok(subject)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub(crate) fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid() as i32), signal).context("the measured program has ended")
    }

    /// The next line: least nanoseconds per pair of 50 ms.
    pub(crate) fn line(&self) -> Result<f64> {
        self.lines
            .recv_timeout(PATIENCE)
            .context("the measured program says nothing any more")
    }

    /// Nanoseconds per pair under what is attached now: the least of some
    /// lines.
    pub(crate) fn best(&self) -> Result<f64> {
        thread::sleep(SETTLED);
        while self.lines.try_recv().is_ok() {}
        // The reader may be behind by one.
        self.line()?;
        let mut best = f64::MAX;
        for _ in 0..LINES {
            best = best.min(self.line()?);
        }
        Ok(best)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Where cargo has put the example.
fn program() -> Result<PathBuf> {
    let examples = env::var_os("LINGERSCOPE_EXAMPLES").context(
        "LINGERSCOPE_EXAMPLES does not name the directory of the built examples: run `cargo xtask bench`",
    )?;
    Ok(PathBuf::from(examples).join("pairs"))
}
