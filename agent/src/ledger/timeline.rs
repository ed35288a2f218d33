//! The moments at which a process was observed.

use std::time::Duration;

use super::{Calls, Ledger};

/// What was read of the process as a whole at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moment {
    /// Since the capture began.
    pub at: Duration,
    /// Anonymous resident memory and swap.
    pub anonymous_bytes: Option<u64>,
    /// Calls of allocator functions so far.
    pub calls: Option<Calls>,
}

/// At most [`Ledger::MAX_POINTS`] moments in order of time.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    moments: Vec<Moment>,
}

impl Timeline {
    /// The moments.
    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// The first one.
    pub fn first(&self) -> Option<Moment> {
        self.moments.first().copied()
    }

    /// The last one.
    pub fn last(&self) -> Option<Moment> {
        self.moments.last().copied()
    }

    /// From the first to the last.
    pub fn span(&self) -> Duration {
        match (self.first(), self.last()) {
            (Some(first), Some(last)) => last.at.saturating_sub(first.at),
            _ => Duration::ZERO,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.moments.len() >= Ledger::MAX_POINTS
    }

    pub(super) fn push(&mut self, moment: Moment) {
        self.moments.push(moment);
    }

    /// Drops every second moment.
    pub(super) fn thin(&mut self) {
        let mut index = 0;
        self.moments.retain(|_| {
            index += 1;
            index % 2 == 1
        });
    }

    /// The cohort of a block: the index of the first moment that could have
    /// seen it.
    pub(super) fn cohort(&self, born: Duration) -> usize {
        let index = self.moments.partition_point(|moment| moment.at < born);
        index.min(self.moments.len().saturating_sub(1))
    }

    /// The middle of a cohort's births.
    pub(super) fn cohort_born(&self, cohort: usize) -> Duration {
        let end = self
            .moments
            .get(cohort)
            .map_or(Duration::ZERO, |moment| moment.at);
        let start = cohort
            .checked_sub(1)
            .and_then(|before| self.moments.get(before))
            .map_or(Duration::ZERO, |moment| moment.at);
        (start + end) / 2
    }
}
