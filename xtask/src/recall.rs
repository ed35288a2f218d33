//! `cargo xtask recall`: how often a survey finds a leak of 20 KiB a second
//! among 200 000 allocations a second, and whether its interval is right.

mod outcome;
mod subject;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use self::{
    outcome::{Outcome, Tally},
    subject::{Allocator, Case, Subjects},
};
use crate::{build, fleet::period, interrupt, packages::Need, setup, shell};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Runs of each program
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Sizes of the blocks that stay; 0 is a program without a leak
    #[arg(long = "size", value_name = "BYTES", default_values_t = [64, 512, 4096])]
    sizes: Vec<usize>,
    /// All other blocks have this size too, and are given out again at once
    #[arg(long)]
    same: bool,
    /// Allocators that the programs use
    #[arg(long = "allocator", value_enum, default_values_t = [Allocator::Glibc])]
    allocators: Vec<Allocator>,
    /// How long each program is observed
    #[arg(long = "for", value_name = "TIME", default_value = "180s", value_parser = period::parse)]
    time: Duration,
    /// Runs side by side, each by a lingerscope of its own
    #[arg(long, default_value_t = 8)]
    at_once: usize,
    /// Keep the reports, and print where they are
    #[arg(long)]
    keep: bool,
}

/// Between two starts, so that no windows open at the same moments.
const STAGGER: Duration = Duration::from_millis(700);
/// Until lingerscope has made its report.
const LATE: Duration = Duration::from_mins(1);

pub(crate) fn run(options: &Options, no_install: bool) -> Result<()> {
    let tools = setup::prepare(Need::Test, no_install)?;
    let programs = build::agent_and(&tools, &["--example", "churn"])?;
    let subjects = Subjects::build(&programs, &options.allocators, no_install)?;
    interrupt::listen()?;
    let directory = std::env::temp_dir().join(format!("lingerscope-recall-{}", std::process::id()));
    fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let runs = Runs {
        lingerscope: programs.path("lingerscope")?,
        subjects,
        directory: directory.clone(),
        time: options.time,
    };
    let tallies = runs.all(options);
    if options.keep {
        println!("the reports are in {}", directory.display());
    } else {
        fs::remove_dir_all(&directory)?;
    }
    let tallies = tallies?;
    println!(
        "20 KiB/s among 200 000 allocations/s, {} each:\n\n{}",
        period::show(options.time),
        outcome::table(&tallies)
    );
    outcome::judge(&tallies)
}

struct Runs {
    lingerscope: PathBuf,
    subjects: Subjects,
    directory: PathBuf,
    time: Duration,
}

impl Runs {
    /// Programs take turns, so that a busy moment of the machine is not one
    /// program's alone.
    fn all(&self, options: &Options) -> Result<Vec<Tally>> {
        let of = |allocator: &Allocator| {
            let allocator = *allocator;
            options.sizes.iter().map(move |size| Case {
                allocator,
                size: *size,
                same: options.same,
            })
        };
        let mut tallies: Vec<Tally> = options
            .allocators
            .iter()
            .flat_map(of)
            .map(Tally::new)
            .collect();
        let turns: Vec<usize> = (0..options.runs).flat_map(|_| 0..tallies.len()).collect();
        for batch in turns.chunks(options.at_once.max(1)) {
            let mut pairs = Vec::new();
            for place in batch {
                pairs.push((*place, self.start(tallies[*place].case)?));
                thread::sleep(STAGGER);
            }
            for (place, pair) in pairs {
                let outcome = pair.finish()?;
                eprintln!("recall: {}: {outcome}", tallies[place].case);
                tallies[place].enter(outcome);
            }
        }
        Ok(tallies)
    }

    fn start(&self, case: Case) -> Result<Pair> {
        let mut churn = self
            .subjects
            .command(case)
            .stdout(Stdio::piped())
            .spawn()
            .map(Running)
            .context("cannot start the program")?;
        if let Some(output) = churn.0.stdout.take() {
            BufReader::new(output).read_line(&mut String::new())?;
        }
        let pid = churn.0.id();
        let report = self.directory.join(format!("{pid}.json"));
        let inspect = Running(inspect(&self.lingerscope, pid, self.time, &report)?);
        Ok(Pair {
            inspect,
            _churn: churn,
            report,
            case,
            limit: self.time + LATE,
        })
    }
}

/// Stopped when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The lingerscope that looks at a program.
struct Pair {
    inspect: Running,
    _churn: Running,
    report: PathBuf,
    case: Case,
    limit: Duration,
}

impl Pair {
    fn finish(mut self) -> Result<Outcome> {
        let mut ended = None;
        interrupt::await_that("lingerscope does not end", self.limit, || {
            ended = self.inspect.0.try_wait().ok().flatten();
            ended.is_some()
        })?;
        let document = serde_json::from_slice(&fs::read(&self.report)?);
        match (ended.and_then(|status| status.code()), document) {
            (Some(0 | 3 | 4), Ok(document)) => Outcome::of(&document, self.case),
            (code, _) => bail!("lingerscope ended with {code:?} and no document"),
        }
    }
}

fn inspect(lingerscope: &Path, pid: u32, time: Duration, report: &Path) -> Result<Child> {
    shell::as_root(lingerscope, &[])
        .args(["inspect", "--mode", "survey", "--json"])
        .args(["--for", &format!("{}s", time.as_secs())])
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stdout(File::create(report)?)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start lingerscope")
}
