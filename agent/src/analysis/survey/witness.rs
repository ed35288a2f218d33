//! The process as a witness: its memory, and in low-rate programs the balance
//! of its calls inside the windows.

use crate::{
    analysis::{process::Process, shape::Parts},
    finding::Rss,
    ledger::{Moment, Survivors},
};

use super::span;

/// What the process as a whole did.
pub(super) fn process(survivors: &Survivors) -> Process {
    let moments = survivors.timeline().moments();
    let anonymous: Vec<(f64, u64)> = moments
        .iter()
        .filter_map(|moment: &Moment| Some((moment.at.as_secs_f64(), moment.anonymous_bytes?)))
        .collect();
    let memory: Vec<(f64, f64)> = anonymous
        .iter()
        .map(|(at, bytes)| (*at, *bytes as f64))
        .collect();
    let rss = match (anonymous.first(), anonymous.last()) {
        (Some(first), Some(last)) if last.0 > first.0 => Some(Rss {
            start_bytes: first.1,
            end_bytes: last.1,
            growth_bytes_per_s: (last.1 as f64 - first.1 as f64) / (last.0 - first.0),
        }),
        _ => None,
    };
    let end = survivors.now().as_secs_f64();
    let span = span(survivors);
    Process {
        start: end - span,
        end,
        interval: span / f64::from(survivors.window_count()).max(1.0),
        observations: survivors.window_count() as usize,
        memory: Parts::of(&memory),
        blocks: balance(survivors),
        rss,
    }
}

/// How the number of the process's blocks changed per second, by the calls
/// inside the windows; those of all others are not seen.
fn balance(survivors: &Survivors) -> Option<Parts> {
    let mut rates = Vec::with_capacity(survivors.windows().len());
    let (mut net, mut open) = (0.0, 0.0);
    for window in survivors.windows() {
        let calls = window.calls?;
        if window.open <= 0.0 {
            continue;
        }
        let mine = calls.allocations as f64 - calls.frees as f64;
        rates.push(mine / window.open);
        net += mine;
        open += window.open;
    }
    (open > 0.0)
        .then(|| Parts::of_rates(rates, net / open))
        .flatten()
}

/// The process for a site that adds so many blocks per second: without the
/// balance of calls where that is too uncertain to say anything about them.
/// At high rates, what is in flight varies by more than any leak.
pub(super) fn for_site(process: &Process, blocks: f64) -> Process {
    let mut process = process.clone();
    process.blocks = process.blocks.filter(|parts| {
        let (low, high) = parts.bounds();
        high - low < blocks
    });
    process
}
