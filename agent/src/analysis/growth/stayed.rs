//! Growth by the blocks that stay.

use super::{Growth, Steady};
use crate::{
    analysis::{
        Settings,
        estimate::Sum,
        process::Process,
        shape::Parts,
        survival::{Plateau, seconds},
    },
    finding::Estimate,
    ledger::Group,
};

/// The look at the blocks that stay.
pub(super) fn by_plateau(
    plateau: &Plateau,
    group: &Group,
    process: &Process,
    settings: &Settings,
) -> Growth {
    let window = plateau.until - process.start;
    if plateau.births.len() < settings.least_members as usize
        || window < settings.least_observed.as_secs_f64() / 2.0
    {
        return Growth::None;
    }
    let bytes = plateau.births.iter().map(|birth| (birth.at, birth.bytes));
    let blocks = plateau.births.iter().map(|birth| (birth.at, birth.blocks));
    let (Some(parts), Some(block_parts)) = (
        Parts::of_events(bytes, process.start, window),
        Parts::of_events(blocks, process.start, window),
    ) else {
        return Growth::None;
    };
    let rate = plateau.bytes.value / window;
    if rate < settings.least_rate {
        return Growth::None;
    }
    if plateau.has_ceased(process.start) {
        let last = plateau
            .births
            .last()
            .map_or(process.start, |birth| birth.at);
        return Growth::Ceased {
            since: process.end - last,
        };
    }
    if parts.growing() < settings.least_growths as usize {
        return Growth::None;
    }
    // Both, because sizes vary by chance.
    if parts.slows() && block_parts.slows() {
        return Growth::Slowing {
            ratio: parts.slowing().0,
            queue: None,
        };
    }
    let blocks = plateau.blocks.interval();
    Growth::Steady(Steady {
        rate: plateau_rate(plateau, &parts, group, process),
        blocks: blocks.value / window,
        blocks_low: blocks.low / window,
        members: plateau.births.len(),
        growing: (parts.growing(), parts.rates.len()),
        ratio: parts.slowing().0,
        age: Some(plateau.age),
    })
}

/// The rate over the whole run, in bytes per second.
///
/// What stayed of the births that are old enough is a lower bound, and all
/// that is live an upper one. Between them, the youngest births are taken to
/// stay at the rate of the older ones, give or take what the rate varied so
/// far. Both ends may be off by two blocks or what one interval between
/// observations brings.
fn plateau_rate(plateau: &Plateau, parts: &Parts, group: &Group, process: &Process) -> Estimate {
    let span = process.span();
    let window = plateau.until - process.start;
    let rate = plateau.bytes.value / window;
    let young = span - window;
    let mut all = Sum::default();
    for survivor in group
        .survivors
        .iter()
        .filter(|survivor| seconds(survivor) >= process.start)
    {
        all.add(survivor.size as f64, survivor.weight);
    }
    // variance per second of a process with these parts
    let varies = (parts.error * parts.rates.len() as f64).powi(2) / parts.rates.len() as f64
        * (window / parts.rates.len() as f64);
    let margin = 1.96 * (varies * young * (1.0 + young / window)).sqrt();
    let expected = plateau.bytes.value + rate * young;
    let low = (expected - margin).max(plateau.bytes.value);
    let high = (expected + margin)
        .min(all.value)
        .max(expected.min(all.value));
    let edge = (2.0 * plateau.largest).max(rate * process.interval);
    let sampled = plateau.bytes.interval();
    let relative = |bound: f64| bound / plateau.bytes.value.max(f64::MIN_POSITIVE);
    let low = ((low - edge) * relative(sampled.low)).max(0.0) / span;
    let high = ((high + edge) * relative(sampled.high) + plateau.giants) / span;
    Estimate {
        value: rate.clamp(low, high.max(low)),
        low,
        high: high.max(low),
    }
}
