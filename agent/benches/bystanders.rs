//! What a process pays that lingerscope does not look at: a loop that executes
//! a tiny program, over and over, beside the daemon and without it.
//! `cargo xtask bench`, or this program with the names of single rows.
//!
//! Turns with and without follow each other, the daemon is started and ended
//! for every one, and beside each row stands a control: the same number of
//! pairs of turns that are both without, which shows what this machine's noise
//! makes of no difference at all.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is its purpose"
)]

#[path = "bystanders/daemon.rs"]
mod daemon;
#[path = "bystanders/executions.rs"]
mod executions;

use std::process::ExitCode;

use anyhow::{Result, bail};
use lingerscope::host::privilege;

use self::{
    daemon::{Daemon, Followed},
    executions::{Executions, Turn},
};

/// Pairs of turns of each row.
const PAIRS: usize = 20;
/// Student's 97.5 % quantile for a mean of as many differences.
const STUDENT: f64 = 2.093;
/// Programs executed in a turn.
const PROGRAMS: usize = 2000;

/// A row: its name, the daemon's settings, and whether it follows a process.
const ROWS: [(&str, &str, bool); 3] = [
    ("idle", "mode: survey\n", false),
    ("watch", "mode: watch\n", false),
    (
        "following",
        "mode: full\npinned:\n  name: [be-followed]\n",
        true,
    ),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == daemon::FOLLOWED) {
        daemon::be_followed();
    }
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bystanders: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<()> {
    if let Some(sentence) = privilege::missing() {
        bail!(sentence);
    }
    let executions = Executions::prepare()?;
    println!(
        "{PROGRAMS} programs executed in a row, beside the daemon against without, {PAIRS} pairs of turns; the quickest of 20 stretches of each turn tells more than the whole where else something runs"
    );
    println!("| daemon | µs a program without | with | the whole turn | its quickest stretch |");
    println!("| --- | --- | --- | --- | --- |");
    let named = |row: &str| words.iter().any(|word| word == row);
    let any = ROWS.iter().any(|(name, ..)| named(name));
    for (name, settings, follows) in ROWS {
        if any && !named(name) {
            continue;
        }
        let followed = follows.then(Followed::start).transpose()?;
        let (mut pairs, mut control) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let first = executions.turn(PROGRAMS)?;
            let daemon = Daemon::start(settings, followed.as_ref())?;
            let beside = executions.turn(PROGRAMS)?;
            daemon.end()?;
            let last = executions.turn(PROGRAMS)?;
            // Drift counts for neither side.
            let (before, after) = if pair % 2 == 0 {
                (first, last)
            } else {
                (last, first)
            };
            pairs.push((before, beside));
            control.push((before, after));
        }
        row(name, &pairs);
        row("none (control)", &control);
    }
    Ok(())
}

fn row(name: &str, pairs: &[(Turn, Turn)]) {
    let mean = |of: fn(&(Turn, Turn)) -> f64| {
        pairs.iter().map(of).sum::<f64>() / pairs.len().max(1) as f64 * 1e6
    };
    println!(
        "| {name} | {:.1} | {:.1} | {} | {} |",
        mean(|(without, _)| without.quickest),
        mean(|(_, with)| with.quickest),
        spread(pairs, |turn| turn.mean),
        spread(pairs, |turn| turn.quickest),
    );
}

/// By how much the second of each pair is longer: the mean and its 95 %
/// interval.
fn spread(pairs: &[(Turn, Turn)], of: fn(&Turn) -> f64) -> String {
    let differences: Vec<f64> = pairs
        .iter()
        .map(|(without, with)| (of(with) / of(without) - 1.0) * 100.0)
        .collect();
    let number = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / number;
    let squares: f64 = differences.iter().map(|one| (one - mean).powi(2)).sum();
    let margin = STUDENT * (squares / (number - 1.0) / number).sqrt();
    format!(
        "{mean:+.2} % (95 %: {:+.2} to {:+.2})",
        mean - margin,
        mean + margin
    )
}
