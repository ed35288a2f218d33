//! The memory of one process over time, in two resolutions.

use std::collections::VecDeque;

/// Samples of the fine ring: an hour at 10 s.
pub const FINE: usize = 360;
/// Samples of one coarse point: ten minutes at 10 s.
pub const STEP: usize = 60;
/// Points of the coarse ring at most: a week at 10 s.
pub const COARSE: usize = 1008;
/// Points of the coarse ring at least, however many processes there are.
pub const LEAST_COARSE: usize = 72;
/// Rings grow by so many points.
const GROWTH: usize = 48;

/// History of one process, in pages of anonymous memory and swap.
///
/// The fine ring holds every sample; a point of the coarse ring is the lowest
/// of [`STEP`] samples, because what a leak raises is the floor. Rings exist
/// only from the first change on and grow with time. A process that never
/// changes takes the bytes of this struct (112), one that has moved 1.7 KiB, a
/// week later 5.6 KiB.
#[derive(Clone, Debug)]
pub struct History {
    fine: VecDeque<u32>,
    coarse: VecDeque<u32>,
    /// Samples since the first one.
    samples: u64,
    /// Sample before which no window may begin.
    not_before: u64,
    last: u32,
    /// Lowest of the coarse point that is being made, and its samples.
    lowest: u32,
    gathered: u16,
    coarse_limit: u16,
    /// Times that it began anew.
    explained: u8,
}

impl History {
    /// An empty one. Windows begin after `settle` samples; the coarse ring
    /// keeps at most `coarse_limit` points.
    pub fn new(settle: u64, coarse_limit: usize) -> Self {
        Self {
            not_before: settle,
            coarse_limit: coarse_limit.clamp(LEAST_COARSE, COARSE) as u16,
            lowest: u32::MAX,
            gathered: 0,
            fine: VecDeque::new(),
            coarse: VecDeque::new(),
            samples: 0,
            last: 0,
            explained: 0,
        }
    }

    /// Adds a sample. Tells whether a coarse point has been completed.
    pub fn push(&mut self, pages: u32) -> bool {
        if self.samples == 0 {
            self.last = pages;
        } else if self.fine.is_empty() && pages != self.last {
            self.unfold();
        }
        if !self.fine.is_empty() {
            append(&mut self.fine, pages, FINE);
        }
        self.last = pages;
        self.samples += 1;
        self.lowest = self.lowest.min(pages);
        self.gathered += 1;
        if usize::from(self.gathered) < STEP {
            return false;
        }
        if !self.fine.is_empty() {
            append(&mut self.coarse, self.lowest, self.coarse_limit.into());
        }
        self.lowest = u32::MAX;
        self.gathered = 0;
        true
    }

    /// Makes the rings from the time in which nothing changed.
    fn unfold(&mut self) {
        let still = usize::try_from(self.samples).unwrap_or(usize::MAX);
        for _ in 0..still.min(FINE) {
            append(&mut self.fine, self.last, FINE);
        }
        for _ in 0..(still / STEP).min(self.coarse_limit.into()) {
            append(&mut self.coarse, self.last, self.coarse_limit.into());
        }
    }

    /// Repeats the last sample for sweeps that did not happen.
    pub fn skip(&mut self, samples: u64) {
        if self.samples == 0 {
            return;
        }
        // More than a ring holds changes nothing any more.
        let most = (STEP * COARSE) as u64;
        for _ in 0..samples.min(most) {
            self.push(self.last);
        }
    }

    /// No window begins before now any more: what was has been explained.
    pub fn begin_anew(&mut self) {
        self.not_before = self.samples;
        self.explained = self.explained.saturating_add(1);
    }

    /// Changes the length of the coarse ring, dropping the oldest points.
    pub fn limit_coarse(&mut self, points: usize) {
        let limit = points.clamp(LEAST_COARSE, COARSE);
        if limit < self.coarse.len() {
            self.coarse.drain(..self.coarse.len() - limit);
            self.coarse.shrink_to(limit);
        }
        self.coarse_limit = limit as u16;
    }

    /// How often [`Self::begin_anew`] was called.
    pub fn explained(&self) -> u8 {
        self.explained
    }

    /// The last sample, pages.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// Number of samples since the first one.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Whether it has changed at all within what is kept.
    pub fn is_still(&self) -> bool {
        self.fine.is_empty()
    }

    /// The fine samples, oldest first.
    pub fn fine(&self) -> &VecDeque<u32> {
        &self.fine
    }

    /// The coarse points, oldest first.
    pub fn coarse(&self) -> &VecDeque<u32> {
        &self.coarse
    }

    /// Fine samples at the end that windows may use.
    pub fn usable_fine(&self) -> usize {
        self.usable_samples().min(self.fine.len())
    }

    /// Coarse points at the end that windows may use.
    pub fn usable_coarse(&self) -> usize {
        // The point that is being made is younger than all others.
        let usable = self.usable_samples().saturating_sub(self.gathered.into());
        (usable / STEP).min(self.coarse.len())
    }

    /// The sample so many samples before the last one; from the coarse ring
    /// where it is older than the fine one, then the lowest around that time.
    /// `None` for what is older than both.
    pub fn ago(&self, samples: usize) -> Option<u32> {
        if let Some(at) = self.fine.len().checked_sub(samples + 1) {
            return self.fine.get(at).copied();
        }
        let points = samples.saturating_sub(self.gathered.into()) / STEP;
        let at = self.coarse.len().checked_sub(points + 1)?;
        self.coarse.get(at).copied()
    }

    /// Samples at the end that windows may use, as far as they are kept.
    pub fn usable_samples(&self) -> usize {
        let usable = self.samples.saturating_sub(self.not_before);
        let kept = usize::from(self.gathered) + STEP * self.coarse.len();
        usize::try_from(usable)
            .unwrap_or(usize::MAX)
            .min(kept.max(self.fine.len()))
    }

    /// Bytes that it takes, itself included.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * (self.fine.capacity() + self.coarse.capacity())
    }
}

/// Adds at the end of a ring, which grows in small steps: doubling would
/// waste half of it.
fn append(ring: &mut VecDeque<u32>, value: u32, limit: usize) {
    if ring.len() >= limit {
        ring.pop_front();
    } else if ring.len() == ring.capacity() {
        ring.reserve_exact(GROWTH.min(limit - ring.len()));
    }
    ring.push_back(value);
}

/// Points of the coarse ring that `processes` histories can have within
/// `bytes`.
pub fn coarse_limit(bytes: usize, processes: usize) -> usize {
    let each = bytes / processes.max(1);
    let other = size_of::<History>() + 4 * FINE;
    (each.saturating_sub(other) / 4).clamp(LEAST_COARSE, COARSE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_still_process_takes_no_rings() {
        let mut history = History::new(0, COARSE);
        for _ in 0..100_000 {
            history.push(7);
        }
        assert!(history.is_still());
        assert_eq!(history.bytes(), size_of::<History>());
        assert!(size_of::<History>() <= 112, "{}", size_of::<History>());
        history.push(8);
        assert_eq!(history.fine().len(), FINE);
        assert_eq!(history.coarse().len(), COARSE);
    }

    #[test]
    fn the_documented_sizes_hold() {
        let mut history = History::new(0, COARSE);
        for value in 0..FINE as u32 {
            history.push(value);
        }
        assert!(history.bytes() < 1740, "{}", history.bytes());
        for value in 0..700_000 {
            history.push(value);
        }
        assert!(history.bytes() <= 5735, "{}", history.bytes());
        // 32 768 processes that all move stay within the default bound.
        let settings = crate::watch::Settings::default();
        history.limit_coarse(coarse_limit(settings.history_bytes, settings.max_processes));
        assert!(history.bytes() * settings.max_processes <= settings.history_bytes);
        assert!(history.coarse().len() > 144, "less than a day");
    }

    #[test]
    fn windows_begin_after_what_has_been_explained() {
        let mut history = History::new(6, COARSE);
        for value in 0..100 {
            history.push(value);
        }
        assert_eq!(history.usable_fine(), 94);
        history.begin_anew();
        assert_eq!((history.usable_fine(), history.usable_coarse()), (0, 0));
        for value in 0..STEP as u32 + 60 {
            history.push(value);
        }
        assert_eq!(history.usable_fine(), 120);
        // 220 samples: the last coarse point ended at 180, the one before at
        // 120 and began before sample 100.
        assert_eq!(history.usable_coarse(), 1);
    }

    proptest! {
        #[test]
        fn rings_hold_what_a_plain_list_holds(
            values in proptest::collection::vec(0u32..4, 1..2000),
            repeat in 1usize..40,
            limit in 0usize..200,
        ) {
            let mut history = History::new(0, limit);
            let mut all = Vec::new();
            for value in &values {
                // Long still times are what folding is for.
                for _ in 0..(if *value == 0 { repeat } else { 1 }) {
                    history.push(*value);
                    all.push(*value);
                }
            }
            prop_assert_eq!(history.samples(), all.len() as u64);
            prop_assert_eq!(history.last(), *all.last().unwrap());
            if history.is_still() {
                prop_assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
            } else {
                let fine = &all[all.len().saturating_sub(FINE)..];
                prop_assert!(history.fine().iter().eq(fine));
                let points: Vec<u32> = all
                    .chunks_exact(STEP)
                    .map(|chunk| *chunk.iter().min().unwrap())
                    .collect();
                let kept = limit.clamp(LEAST_COARSE, COARSE);
                let coarse = &points[points.len().saturating_sub(kept)..];
                prop_assert!(history.coarse().iter().eq(coarse));
            }
            prop_assert!(history.bytes() <= size_of::<History>() + 4 * (FINE + COARSE + 2 * 64));
        }
    }
}
