//! What being observed does to a program's answers: throughput and
//! percentiles of latency with lingerscope against without, by turns in one
//! run. `cargo xtask bench`, or this program with
//! `[SECONDS] [survey|trace] [service|redis|anywhere]`: length of a turn, one
//! mode and one program only.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is its purpose"
)]

#[path = "latency/answers.rs"]
mod answers;
#[path = "latency/observer.rs"]
mod observer;
#[path = "latency/redis.rs"]
mod redis;
#[path = "latency/service.rs"]
mod service;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use lingerscope::host::privilege;

use self::{
    answers::Answers,
    observer::Observer,
    redis::{Place, Redis},
    service::Service,
};

/// Length of a turn unless told otherwise: an inspection's, if nobody says how
/// long. Windows come every 30 s or so, the first two of them sooner, on credit.
const TURN: u64 = 60;
/// Turns without, and as many with.
const TURNS: usize = 4;
/// Student's 97.5 % quantile for a mean of as many differences.
const STUDENT: f64 = 3.182;
const MODES: [&str; 2] = ["survey", "trace"];
const PROGRAMS: [&str; 3] = ["service", "redis", "anywhere"];

/// A program that answers requests all the time.
trait Subject {
    fn name(&self) -> &'static str;

    fn pid(&self) -> u32;

    /// The answers of the next so many seconds.
    fn answers(&mut self, turn: Duration) -> Result<Answers>;
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let seconds = words.iter().find_map(|word| word.parse().ok());
    let turn = Duration::from_secs(seconds.unwrap_or(TURN));
    let (modes, programs) = (chosen(&MODES, &words), chosen(&PROGRAMS, &words));
    match run(turn, &modes, &programs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("latency: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Those that are named, or all.
fn chosen<'a>(all: &[&'a str], words: &[String]) -> Vec<&'a str> {
    let named = |one: &&str| words.iter().any(|word| word == one);
    let chosen: Vec<&str> = all.iter().copied().filter(named).collect();
    if chosen.is_empty() {
        all.to_vec()
    } else {
        chosen
    }
}

fn run(turn: Duration, modes: &[&str], programs: &[&str]) -> Result<()> {
    if let Some(sentence) = privilege::missing() {
        anyhow::bail!(sentence);
    }
    println!(
        "Latency, {TURNS} turns of {} s each, by turns without and with lingerscope",
        turn.as_secs()
    );
    println!(
        "| program | observed | answers/s | p50 µs | p99 µs | p99.9 µs | lingerscope, % of a core |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    if programs.contains(&"service") {
        compare(&mut Service::start(turn)?, turn, modes)?;
    }
    for (program, place) in [
        ("redis", Place::OneProcessor),
        ("anywhere", Place::Anywhere),
    ] {
        if !programs.contains(&program) {
            continue;
        }
        match Redis::start(place)? {
            Some(mut redis) => compare(&mut redis, turn, modes)?,
            None => println!("redis-server and redis-benchmark are not installed: left out"),
        }
    }
    Ok(())
}

fn compare<S: Subject>(subject: &mut S, turn: Duration, modes: &[&str]) -> Result<()> {
    for mode in modes {
        let (mut without, mut with) = (Answers::default(), Answers::default());
        let mut share = 0.0;
        let mut rates = Vec::new();
        for _ in 0..TURNS {
            let alone = subject.answers(turn)?;
            let observer = Observer::start(subject.pid(), mode, turn)?;
            let beside = subject.answers(turn)?;
            share += observer.end()? / TURNS as f64;
            rates.push((beside.rate() / alone.rate() - 1.0) * 100.0);
            without.join(alone);
            with.join(beside);
        }
        row(subject.name(), "no", &without, "");
        row(subject.name(), mode, &with, &format!("{share:.1}"));
        let change = |of: fn(&Answers) -> f64| (of(&with) / of(&without) - 1.0) * 100.0;
        println!(
            "{} under {mode}: throughput {:+.2} % ({}), p50 {:+.1} %, p99 {:+.1} %, p99.9 {:+.1} %",
            subject.name(),
            change(Answers::rate),
            spread(&rates),
            change(|answers| answers.percentile(50.0)),
            change(|answers| answers.percentile(99.0)),
            change(|answers| answers.percentile(99.9)),
        );
    }
    Ok(())
}

/// Each turn's difference, and what their mean is worth.
fn spread(differences: &[f64]) -> String {
    let number = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / number;
    let squares: f64 = differences.iter().map(|one| (one - mean).powi(2)).sum();
    let margin = STUDENT * (squares / (number - 1.0) / number).sqrt();
    let turns: Vec<String> = differences.iter().map(|one| format!("{one:+.1}")).collect();
    format!(
        "turn by turn {}; 95 %: {:+.1} to {:+.1}",
        turns.join(", "),
        mean - margin,
        mean + margin
    )
}

fn row(name: &str, observed: &str, answers: &Answers, share: &str) {
    println!(
        "| {name} | {observed} | {:.0} | {:.0} | {:.0} | {:.0} | {share} |",
        answers.rate(),
        answers.percentile(50.0),
        answers.percentile(99.0),
        answers.percentile(99.9),
    );
}
