//! Reads what the governor wants to know of a probed process.

use std::time::Duration;

use super::reading::{Reading, lanes};
use crate::{
    capture::{Capture, TargetId},
    host::cpu_clock::CpuClock,
};

/// The readings of one target. A new one for every process.
#[derive(Clone, Debug)]
pub struct Meter {
    id: TargetId,
    clock: Option<CpuClock>,
    /// Hits by processor at the reading before.
    hits: Vec<u64>,
}

impl Meter {
    /// A meter for a process that is, or will be, a target.
    pub fn new(id: TargetId) -> Self {
        Self {
            id,
            clock: CpuClock::of(id).ok(),
            hits: Vec::new(),
        }
    }

    /// Processor time of the process.
    pub fn cpu(&self) -> Option<Duration> {
        self.clock?.read().ok()
    }

    /// To be called with every attach: the counters begin at zero again.
    pub fn restart(&mut self) {
        self.hits.clear();
    }

    /// The counters as they stand. `children` is the number of living
    /// children that inherited breakpoints and are not followed themselves.
    pub fn read(&mut self, capture: &Capture, children: u32) -> Reading {
        let hits = capture.hits_by_processor(self.id);
        let lanes = lanes(&self.hits, &hits);
        self.hits = hits;
        Reading::new(&capture.counts(self.id), children, self.cpu(), lanes)
    }
}

impl Capture {
    /// Calls of a target's allocator functions, by the processor that they
    /// ran on.
    pub fn hits_by_processor(&self, id: TargetId) -> Vec<u64> {
        let Some(target) = self.targets.get(&id) else {
            return Vec::new();
        };
        self.counts
            .get(&target.slot, 0)
            .map(|values| {
                values
                    .iter()
                    .map(|value| value.allocations + value.frees)
                    .collect()
            })
            .unwrap_or_default()
    }
}
