//! How long the table of many tasks takes: `cargo xtask bench`.
//!
//! The minimum of some passes counts: another load on the machine makes single
//! ones longer, never shorter.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool for developers"
)]

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lingerscope::{host::process::Process, tokio_rt::table};

const PASSES: usize = 5;
/// Tasks of the program, and megabytes beside them.
const SUBJECTS: [(usize, usize); 3] = [(1_000, 0), (100_000, 0), (100_000, 1_000)];

fn main() -> ExitCode {
    if lingerscope::reader::is_asked_for() {
        return lingerscope::reader::serve::run();
    }
    println!("tasks  memory MB  table s  of it reading s  GB/s");
    for (tasks, megabytes) in SUBJECTS {
        if let Err(error) = measure(tasks, megabytes) {
            eprintln!("bench: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// The program, stopped whatever happens.
struct Subject(Child);

impl Drop for Subject {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(tasks: usize, megabytes: usize) -> Result<Subject> {
    let examples = env::var_os("LINGERSCOPE_EXAMPLES").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../target/release/examples"
            ))
        },
        PathBuf::from,
    );
    let mut command = Command::new(examples.join("tasks"));
    command
        .args([tasks.to_string(), megabytes.to_string()])
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let output = child.stdout.take().context("no output")?;
    let subject = Subject(child);
    let mut lines = BufReader::new(output).lines();
    let ready = lines.any(|line| line.is_ok_and(|line| line == "READY"));
    ensure!(ready, "{command:?} did not get ready");
    Ok(subject)
}

fn measure(tasks: usize, megabytes: usize) -> Result<()> {
    let subject = start(tasks, megabytes)?;
    let process = Process::of(subject.0.id())?;
    let mut best = (Duration::MAX, Duration::MAX, 0);
    for _ in 0..PASSES {
        let start = Instant::now();
        let table = table::read(&process)?;
        let took = start.elapsed();
        ensure!(
            table.tasks.len() > tasks,
            "only {} tasks were found",
            table.tasks.len()
        );
        best = (
            best.0.min(took),
            best.1.min(table.scan_time),
            table.scanned.read,
        );
    }
    let (took, reading, bytes) = best;
    println!(
        "{tasks:>6} {:>9} {:>8.3} {:>16.3} {:>5.2}",
        bytes / 1_000_000,
        took.as_secs_f64(),
        reading.as_secs_f64(),
        bytes as f64 / reading.as_secs_f64() / 1e9
    );
    Ok(())
}
