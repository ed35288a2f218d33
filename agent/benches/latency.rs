//! What being observed does to a program's answers: throughput and
//! percentiles of latency with lingerscope against without, by turns in one
//! run. `cargo xtask bench`, or this program with
//! `[SECONDS] [survey|trace] [service|redis]`: length of a turn, one mode and
//! one program only.
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

use self::{answers::Answers, observer::Observer, redis::Redis, service::Service};

/// Length of a turn unless told otherwise: an inspection's, if nobody says how
/// long. Windows come every 15 s or so, the first two of them on credit.
const TURN: u64 = 60;
/// Turns without, and as many with.
const TURNS: usize = 3;
const MODES: [&str; 2] = ["survey", "trace"];
const PROGRAMS: [&str; 2] = ["service", "redis"];

/// A program that answers requests all the time.
trait Subject {
    const NAME: &'static str;

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
    if !programs.contains(&"redis") {
        return Ok(());
    }
    if let Some(mut redis) = Redis::start()? {
        return compare(&mut redis, turn, modes);
    }
    println!("redis-server and redis-benchmark are not installed: left out");
    Ok(())
}

fn compare<S: Subject>(subject: &mut S, turn: Duration, modes: &[&str]) -> Result<()> {
    for mode in modes {
        let (mut without, mut with) = (Answers::default(), Answers::default());
        let mut share = 0.0;
        // How far one turn is from the next tells what a difference is worth.
        let mut rates = Vec::new();
        for _ in 0..TURNS {
            let alone = subject.answers(turn)?;
            let observer = Observer::start(subject.pid(), mode, turn)?;
            let beside = subject.answers(turn)?;
            share += observer.end()? / TURNS as f64;
            rates.push(format!("{:.0} and {:.0}", alone.rate(), beside.rate()));
            without.join(alone);
            with.join(beside);
        }
        row(S::NAME, "no", &without, "");
        row(S::NAME, mode, &with, &format!("{share:.1}"));
        let change = |of: fn(&Answers) -> f64| (of(&with) / of(&without) - 1.0) * 100.0;
        println!(
            "{} under {mode}: throughput {:+.2} % (turn by turn {}), p50 {:+.1} %, p99 {:+.1} %, p99.9 {:+.1} %",
            S::NAME,
            change(Answers::rate),
            rates.join(", "),
            change(|answers| answers.percentile(50.0)),
            change(|answers| answers.percentile(99.0)),
            change(|answers| answers.percentile(99.9)),
        );
    }
    Ok(())
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
