//! What the process as a whole did: the witness against sites that only seem
//! to grow.
//!
//! A capture that begins late sees the new blocks of a full cache and none of
//! the old ones that they replace, so the cache seems to grow for a whole
//! turnover. Two things give it away: the process frees as many blocks as it
//! allocates (counted for all blocks, known or not), and its memory does not
//! grow. The first is the better witness, because a leak may fill holes of
//! the heap for a while, and then memory does not grow either.

use crate::{
    finding::{Estimate, Rss},
    ledger::{Ledger, Moment},
};

use super::shape::Parts;

/// Growth of a process over a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Process {
    /// Seconds of the first observation.
    pub(super) start: f64,
    /// Seconds of the last one.
    pub(super) end: f64,
    /// Mean time between observations, seconds.
    pub(super) interval: f64,
    /// Observations kept.
    pub(super) observations: usize,
    /// Growth of anonymous memory, bytes per second.
    pub(super) memory: Option<Parts>,
    /// Growth of the number of blocks, known or not, per second.
    pub(super) blocks: Option<Parts>,
    /// Anonymous memory over the run.
    pub(super) rss: Option<Rss>,
}

impl Process {
    pub(super) fn of(ledger: &Ledger) -> Self {
        let moments = ledger.timeline().moments();
        let seconds = |moment: &Moment| moment.at.as_secs_f64();
        let start = moments.first().map_or(0.0, seconds);
        let end = moments.last().map_or(0.0, seconds);
        let anonymous: Vec<(f64, u64)> = moments
            .iter()
            .filter_map(|moment| Some((seconds(moment), moment.anonymous_bytes?)))
            .collect();
        let memory: Vec<(f64, f64)> = anonymous
            .iter()
            .map(|(at, bytes)| (*at, *bytes as f64))
            .collect();
        let blocks: Vec<(f64, f64)> = moments
            .iter()
            .filter_map(|moment| {
                let calls = moment.calls?;
                Some((
                    seconds(moment),
                    calls.allocations as f64 - calls.frees as f64,
                ))
            })
            .collect();
        let rss = match (anonymous.first(), anonymous.last()) {
            (Some(first), Some(last)) if last.0 > first.0 => Some(Rss {
                start_bytes: first.1,
                end_bytes: last.1,
                growth_bytes_per_s: (last.1 as f64 - first.1 as f64) / (last.0 - first.0),
            }),
            _ => None,
        };
        Self {
            start,
            end,
            interval: (end - start) / (moments.len().saturating_sub(1)).max(1) as f64,
            observations: moments.len(),
            memory: Parts::of(&memory),
            blocks: Parts::of(&blocks),
            rss,
        }
    }

    /// Length of the run in seconds.
    pub(super) fn span(&self) -> f64 {
        self.end - self.start
    }

    /// Growth of the process's memory, where it surely grew.
    pub(super) fn memory_growth(&self) -> Option<Estimate> {
        let memory = self.memory.as_ref()?;
        let (low, high) = memory.bounds();
        (low > 0.0).then_some(Estimate {
            value: memory.mean,
            low,
            high,
        })
    }

    /// Hears the process about a site that seems to grow by so many bytes and
    /// blocks per second, and at least by `blocks_low`.
    pub(super) fn witness(&self, bytes: f64, blocks: f64, blocks_low: f64) -> Witness {
        let mut witness = Witness {
            against: None,
            share: 1.0,
            least: 1.0,
            memory_flat: false,
        };
        // A quarter: the rest may have gone into holes of the heap.
        witness.memory_flat = self
            .memory
            .as_ref()
            .is_some_and(|memory| memory.bounds().1 < 0.25 * bytes);
        let Some(net) = &self.blocks else {
            // Without the better witness, only growth that few heaps could
            // hide speaks against the site.
            if witness.memory_flat && bytes * self.span() > HIDEABLE {
                witness.against = Some(Against::Memory);
            }
            if let Some(memory) = &self.memory {
                witness.least = (memory.bounds().0 / bytes).clamp(0.0, 1.0);
            }
            return witness;
        };
        let (low, high) = net.bounds();
        if high >= 0.95 * blocks_low {
            if net.mean < 0.95 * blocks {
                witness.least = (low / blocks).clamp(0.0, 1.0);
            }
            return witness;
        }
        let memory_grew = self
            .memory
            .as_ref()
            .is_some_and(|memory| memory.bounds().0 > 0.0 && memory.mean >= 0.5 * bytes);
        if high < 0.1 * blocks_low || (low <= 0.0 && high < 0.5 * blocks_low) {
            if memory_grew {
                // Few large blocks for many small ones: no clear word.
                witness.least = 0.0;
            } else {
                witness.against = Some(Against::Blocks);
            }
            return witness;
        }
        witness.share = (net.mean / blocks).clamp(0.0, 1.0);
        witness.least = (low / blocks).clamp(0.0, witness.share);
        witness
    }

    /// Whether the number of the process's blocks grows steadily, and by at
    /// least half of so many per second.
    pub(super) fn grows_steadily(&self, blocks: f64) -> bool {
        self.blocks.as_ref().is_some_and(|net| {
            let (ratio, t) = net.slowing();
            net.bounds().0 > 0.0 && net.mean >= 0.5 * blocks && (ratio >= 0.75 || t > -2.0)
        })
    }
}

/// Growth in bytes that the free memory of an ordinary heap can hide.
const HIDEABLE: f64 = 1_048_576.0;

/// What a process says about a site that seems to grow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Witness {
    /// The process did not grow; how that shows.
    pub(super) against: Option<Against>,
    /// Share of the site's growth that the process shows.
    pub(super) share: f64,
    /// Lower bound of that share.
    pub(super) least: f64,
    /// Its memory grew by less than a quarter of the site's growth.
    pub(super) memory_flat: bool,
}

/// How it shows that a process did not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Against {
    /// It frees as many blocks as it allocates.
    Blocks,
    /// Its memory does not grow.
    Memory,
}
