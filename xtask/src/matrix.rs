//! `cargo xtask matrix`: one program with many kinds of tasks, built over
//! versions of Tokio, profiles and allocators; the ids that it prints are
//! compared with the table that lingerscope reads.

mod builds;
mod comparison;

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use self::{
    builds::Build,
    comparison::{Comparison, Printed},
};
use crate::{build, packages::Need, setup, shell};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only builds whose names contain one of these; without any, all of them (about 15 minutes)
    filter: Vec<String>,
    /// Use this lingerscope instead of building it
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// How long the program's allocations are followed.
const FOLLOWED: Duration = Duration::from_secs(10);
/// How long the program may take until it has started its tasks.
const START_LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn run(options: &Options, no_install: bool) -> Result<()> {
    let lingerscope = if let Some(binary) = &options.binary {
        fs::canonicalize(binary).with_context(|| format!("cannot find {}", binary.display()))?
    } else {
        let tools = setup::prepare(Need::Build, no_install)?;
        build::agent_and(&tools, &[])?.path("lingerscope")?
    };
    let chosen: Vec<Build> = builds::all()
        .into_iter()
        .filter(|build| {
            let wanted = |part: &String| build.name.contains(part.as_str());
            options.filter.is_empty() || options.filter.iter().any(wanted)
        })
        .collect();
    if chosen.is_empty() {
        bail!("no build's name contains any of {:?}", options.filter);
    }
    for triple in chosen.iter().filter_map(|build| build.target) {
        setup::rust_target(triple, no_install)?;
    }
    compare(&chosen, &lingerscope)
}

/// A few builds that differ in everything that matters most, for the tests;
/// they are built side by side.
pub(crate) fn few(lingerscope: &Path) -> Result<()> {
    let chosen = builds::few();
    thread::scope(|scope| {
        let making: Vec<_> = chosen
            .iter()
            .map(|build| scope.spawn(|| make(build)))
            .collect();
        making.into_iter().try_for_each(|thread| {
            let made = thread.join().unwrap_or_else(|_| bail!("a build panicked"));
            made.map(drop)
        })
    })?;
    compare(&chosen, lingerscope)
}

/// Builds and compares one after the other, and prints a table.
fn compare(chosen: &[Build], lingerscope: &Path) -> Result<()> {
    let mut rows = String::new();
    let mut failed = Vec::new();
    for build in chosen {
        let outcome = try_one(build, lingerscope);
        let row = match &outcome {
            Ok(comparison) => comparison.to_string(),
            Err(error) => format!("failed: {error:#} | | | | | "),
        };
        eprintln!("matrix: {}: {row}", build.name);
        writeln!(rows, "| {} | {row} |", build.name)?;
        if !outcome.is_ok_and(|comparison| comparison.is_right(build)) {
            failed.push(build.name.clone());
        }
    }
    println!(
        "| build | tasks | names | source lines | .await lines | current task id | at malloc |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    print!("{rows}");
    if !failed.is_empty() {
        bail!("wrong or missing in: {}", failed.join(", "));
    }
    Ok(())
}

/// Builds and starts the program, and compares.
fn try_one(build: &Build, lingerscope: &Path) -> Result<Comparison> {
    let program = make(build)?;
    let mut comparison = listed(build, &program, lingerscope)?;
    if build.is_readable() && !build.hides_its_allocator() {
        let (printed, document) = followed(&program, lingerscope)?;
        comparison.enter_allocations(&printed, &document)?;
    }
    Ok(comparison)
}

/// Compares the table of the running program.
fn listed(build: &Build, program: &Path, lingerscope: &Path) -> Result<Comparison> {
    let (program, printed) = Program::start(program)?;
    // The busy ones get into their rhythm.
    thread::sleep(Duration::from_millis(300));
    let mut tasks = shell::as_root(lingerscope, &[]);
    let pid = program.0.id().to_string();
    tasks.args(["tasks", "--json", "-p", &pid]);
    let output = tasks.output().context("cannot start lingerscope")?;
    drop(program);
    let document = serde_json::from_slice(&output.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!(
            "lingerscope ({}) printed no document: {said}",
            output.status
        )
    })?;
    Comparison::of(build, &printed, &document, output.status.code())
}

/// Has the program followed from its first allocation: what it prints, and
/// what lingerscope saw of its blocks.
fn followed(program: &Path, lingerscope: &Path) -> Result<(Vec<Printed>, Value)> {
    let directory = program.parent().context("the program has no folder")?;
    let (said, report) = (directory.join("said"), directory.join("report.json"));
    let mut inspect = shell::as_root(lingerscope, &[]);
    inspect
        .args(["inspect", "--mode", "trace", "--sample", "1"])
        .args(["--for", &format!("{}s", FOLLOWED.as_secs())])
        .arg("--json-file")
        .arg(&report)
        .arg("--")
        .arg(program)
        // Few of a kind, no other data, and so many seconds; the blocks come
        // when it is known how task ids are read, which takes a moment where
        // running threads have to show it.
        .args(["50", "0", &(FOLLOWED * 2).as_secs().to_string()])
        .arg((FOLLOWED / 2).as_secs().to_string())
        .stdout(File::create(&said)?)
        .stderr(Stdio::null());
    let status = inspect.status().context("cannot start lingerscope")?;
    if !matches!(status.code(), Some(0 | 3 | 4)) {
        bail!("lingerscope could not follow it: {status}");
    }
    let mut printed = Vec::new();
    for line in fs::read_to_string(&said)?.lines() {
        printed.extend(Printed::parse(line)?);
    }
    Ok((printed, serde_json::from_slice(&fs::read(&report)?)?))
}

/// Makes a package around the sample and builds it.
fn make(build: &Build) -> Result<PathBuf> {
    let directory = shell::root().join("target/matrix").join(&build.name);
    let source = directory.join("src");
    fs::create_dir_all(&source)?;
    write(&directory.join("Cargo.toml"), &build.manifest())?;
    let text = format!("{SAMPLE}{}", build.global_allocator());
    write(&source.join("main.rs"), &text)?;
    let mut cargo = shell::cargo();
    cargo
        .current_dir(&directory)
        .args(["build", "--quiet", "--target-dir", "target"])
        .args(build.arguments())
        .env("RUSTFLAGS", build.flags);
    shell::run(&mut cargo)?;
    Ok(directory.join("target").join(build.output()))
}

/// Only if it changes, so that cargo builds nothing anew.
fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The program that is built; an allocator is appended.
const SAMPLE: &str = include_str!("../../agent/examples/tasks.rs");

/// The running program, stopped whatever happens.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Program {
    /// Starts it; what it has printed until it was ready.
    fn start(path: &Path) -> Result<(Self, Vec<Printed>)> {
        let mut child = shell::command(path)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        let output = child.stdout.take().context("no output")?;
        let program = Self(child);
        let (sender, lines) = mpsc::sync_channel(64);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                drop(sender.send(line));
            }
        });
        let deadline = Instant::now() + START_LIMIT;
        let mut printed = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = lines.recv_timeout(left).context("it did not get ready")?;
            if line == "READY" {
                return Ok((program, printed));
            }
            printed.extend(Printed::parse(&line)?);
        }
    }
}
