//! What watching costs and what it finds: `cargo xtask bench`, or this
//! program with `histories [PROCESS-DAYS]` (of each family) or
//! `sweep [PROCESSES]`.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

#[path = "watch/crowd.rs"]
mod crowd;
#[path = "watch/healthy.rs"]
mod healthy;
#[path = "watch/random.rs"]
mod random;
#[path = "watch/replay.rs"]
mod replay;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use lingerscope::watch::Settings;

use self::{
    crowd::Crowd,
    healthy::Family,
    replay::{Noise, Tally},
};

const KIB: f64 = 1024.0;
const GIB: f64 = KIB * KIB * KIB;
/// Process-days of each family unless told otherwise.
const DAYS: f64 = 300.0;
/// Processes that the bar of the watch is told for.
const PROCESSES: usize = 1000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    let what = arguments.next();
    if what.as_deref() == Some(crowd::MOVER) {
        crowd::mover();
    }
    let number: Option<usize> = arguments.next().and_then(|word| word.parse().ok());
    let wanted = |name| what.as_deref().is_none_or(|what| what == name);
    if wanted("sweep")
        && let Err(error) = sweep(number.unwrap_or(PROCESSES))
    {
        complain(&error);
        return ExitCode::FAILURE;
    }
    if wanted("histories") {
        histories(number.map_or(DAYS, |days| days as f64));
    }
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, reason = "a command line tool for developers")]
fn complain(error: &anyhow::Error) {
    eprintln!("bench: {error:#}");
}

fn sweep(processes: usize) -> Result<()> {
    let settings = Settings {
        interval: Duration::from_secs(1),
        ..Settings::default()
    };
    let no_files = Settings {
        max_files: 0,
        ..settings
    };
    println!(
        "Processor time of a sweep over {processes} processes of the bench and what else runs:"
    );
    println!(
        "  {:<28} {:>6} {:>6} {:>10} {:>10} {:>10} {:>16} {:>10}",
        "", "read", "moved", "first", "median", "most", "core at 10 s", "memory"
    );
    for (movers, settings, name) in [
        (0, &settings, "all sleep"),
        (processes / 10, &settings, "a tenth moves"),
        (processes / 2, &settings, "half move"),
        (0, &no_files, "all sleep, no files kept"),
    ] {
        let _crowd = Crowd::start(processes, movers)?;
        let cost = crowd::measure(settings)?;
        println!(
            "  {name:<28} {:>6} {:>6} {:>7.2} ms {:>7.2} ms {:>7.2} ms {:>14.3} % {:>6} KiB",
            cost.read,
            cost.moved,
            cost.first.as_secs_f64() * 1e3,
            cost.median.as_secs_f64() * 1e3,
            cost.most.as_secs_f64() * 1e3,
            cost.percent(),
            cost.bytes / 1024
        );
    }
    Ok(())
}

fn histories(days: f64) {
    let started = Instant::now();
    println!("False suspects on invented healthy histories:");
    let mut all = Tally::default();
    for family in Family::BARRED {
        let tally = replay::healthy(family, days, 1);
        println!("  {:<10} {tally}", format!("{family:?}"));
        all.add(&tally);
    }
    println!("  {:<10} {all}", "all");
    let long = replay::healthy(Family::LongFill, days / 10.0, 1);
    println!("Fills that go on for longer than any patience, which no trend tells from a leak:");
    println!("  {:<10} {long}", "LongFill");
    println!("Time from the beginning of a leak to suspicion, median and 90 % of runs:");
    for (rate, headroom) in [
        (1.0, 16.0 * GIB),
        (20.0, 16.0 * GIB),
        (1024.0, 16.0 * GIB),
        (1024.0, GIB / 4.0),
        (10_240.0, 16.0 * GIB),
    ] {
        for noise in [Noise::Quiet, Noise::Busy, Noise::Collected] {
            let mut times = replay::leak(rate * KIB, noise, headroom, 100);
            times.sort_by(|a, b| a.unwrap_or(f64::MAX).total_cmp(&b.unwrap_or(f64::MAX)));
            let at = |share: usize| match times.get(times.len() * share / 100).copied().flatten() {
                Some(seconds) => format!("{:.1} min", seconds / 60.0),
                None => "never in a day".to_owned(),
            };
            println!(
                "  {rate:>6} KiB/s, {:>5.2} GiB left, {:<10} {:>14} {:>14}",
                headroom / GIB,
                format!("{noise:?}"),
                at(50),
                at(90)
            );
        }
    }
    println!("({:.1} s)", started.elapsed().as_secs_f64());
}
