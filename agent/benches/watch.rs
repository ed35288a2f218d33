//! What watching costs and what it finds: `cargo xtask bench`, or this
//! program with `histories [PROCESS-DAYS]` or `sweep [PROCESSES]`.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

#[path = "watch/healthy.rs"]
mod healthy;
#[path = "watch/random.rs"]
mod random;
#[path = "watch/replay.rs"]
mod replay;

use std::time::Instant;

use self::{
    healthy::Family,
    replay::{Noise, Tally},
};

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    let what = arguments.next();
    let number = arguments.next().and_then(|word| word.parse().ok());
    if what.as_deref().is_none_or(|what| what == "histories") {
        histories(number.unwrap_or(2000.0));
    }
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
    const KIB: f64 = 1024.0;
    const GIB: f64 = KIB * KIB * KIB;
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
