//! Whether one site grows, and how fast.
//!
//! Two looks at the same thing. The plateau: blocks that outlived the age
//! after which hardly any is freed; exact where short-lived blocks come from
//! the same site. The net growth of what is live: also right for a queue,
//! whose blocks are all freed in the end, only ever later.

mod stayed;
mod total;

use crate::{finding::Estimate, ledger::Group};

use super::{
    LEAST_OBSERVATIONS, Settings,
    process::Process,
    shape::{Drop, drops},
    survival::plateau,
};
use stayed::by_plateau;
use total::by_total;

/// What a site's own account shows.
#[derive(Clone, Debug)]
pub(super) enum Growth {
    /// Too little to speak of.
    None,
    /// It grows and does not slow.
    Steady(Steady),
    /// It grows ever more slowly.
    Slowing {
        /// Rate at the end over rate at the beginning.
        ratio: f64,
        /// What it would be if the process showed that its growth does not
        /// slow: a queue with a backlog from before the observation.
        queue: Option<Steady>,
    },
    /// It grew and no longer does, for so many seconds.
    Ceased { since: f64 },
    /// It grew and is released as fast now.
    Level,
    /// It falls back again and again, the last time so deep (bytes).
    Sawtooth { falls: usize, depth: f64 },
}

/// Growth that does not slow.
#[derive(Clone, Debug)]
pub(super) struct Steady {
    /// Bytes per second.
    pub(super) rate: Estimate,
    /// Blocks per second.
    pub(super) blocks: f64,
    /// At least so many.
    pub(super) blocks_low: f64,
    /// Sampled blocks behind it.
    pub(super) members: usize,
    /// Parts of the run in which it grew, of how many.
    pub(super) growing: (usize, usize),
    /// Growth at the end over growth at the beginning.
    pub(super) ratio: f64,
    /// Age in seconds after which hardly any block is freed; none when the
    /// growth is that of the live total only.
    pub(super) age: Option<f64>,
}

pub(super) fn growth(group: &Group, process: &Process, settings: &Settings) -> Growth {
    let series: Vec<(f64, f64)> = group
        .series
        .iter()
        .map(|sample| (sample.at.as_secs_f64(), sample.bytes))
        .collect();
    let peak = series.iter().map(|point| point.1).fold(0.0, f64::max);
    let worth = settings.least_rate * process.span();
    let short = process.span() < settings.least_observed.as_secs_f64();
    if short || process.observations < LEAST_OBSERVATIONS || peak < worth {
        return Growth::None;
    }
    // What is in flight varies like a Poisson number; that is no fall either.
    let with_errors: Vec<(f64, f64, f64)> = group
        .series
        .iter()
        .map(|sample| {
            let chance = sample.bytes.powi(2) / sample.blocks.max(1.0);
            (
                sample.at.as_secs_f64(),
                sample.bytes,
                (sample.bytes_variance + chance).sqrt(),
            )
        })
        .collect();
    let falls = drops(&with_errors);
    // Only blocks from before the last fall can show that they outlive it.
    let before = last_fall(&falls, process).unwrap_or(process.end);
    if let Some(plateau) = plateau(group, process.start, process.end, before) {
        match by_plateau(&plateau, group, process, settings) {
            Growth::None => {}
            found => return found,
        }
    }
    if group.unfollowed > 0 {
        return Growth::None;
    }
    by_total(group, &series, &falls, peak, process, settings)
}

/// When the last fall was, unless so long ago that the next one is overdue.
fn last_fall(falls: &[Drop], process: &Process) -> Option<f64> {
    let last = falls.last()?.at;
    let starts = std::iter::once(process.start).chain(falls.iter().map(|fall| fall.at));
    let longest = starts
        .zip(falls)
        .map(|(start, fall)| fall.at - start)
        .fold(0.0, f64::max);
    // The first rise may have begun before the observation.
    let patience = if falls.len() > 1 { 2.0 } else { 4.0 };
    (process.end - last <= patience * longest).then_some(last)
}
