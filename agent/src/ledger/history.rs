//! What one stack held over time.

use agent_ebpf::logic::sampling::weight;

use super::{Ages, LiveBlock, Timeline};

/// Live estimate of a stack at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Point {
    /// Weighted bytes.
    pub(super) bytes: f64,
    /// Weighted blocks.
    pub(super) blocks: f64,
    /// Sampling variance of the bytes: Σ w (w − 1) s², the Horvitz–Thompson
    /// estimator for independent draws.
    pub(super) bytes_variance: f64,
    /// Sampling variance of the blocks: Σ w (w − 1).
    pub(super) blocks_variance: f64,
    /// Sampled blocks.
    pub(super) sampled: u32,
}

impl Point {
    pub(super) fn add(&mut self, size: u64, weight: f64) {
        let size = size as f64;
        self.bytes += weight * size;
        self.blocks += weight;
        self.bytes_variance += weight * (weight - 1.0) * size * size;
        self.blocks_variance += weight * (weight - 1.0);
        self.sampled = self.sampled.saturating_add(1);
    }
}

/// The points of one stack and the lives of its blocks, on the moments of the
/// ledger's timeline.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// Index of the moment of the first point; all before are zero.
    first: usize,
    points: Vec<Point>,
    /// Sampled blocks live at the last moment, by cohort.
    cohorts: Vec<u32>,
    /// The same while a moment is being counted.
    counting: Vec<u32>,
    current: Point,
    peak_bytes: f64,
    deaths: Ages,
}

impl History {
    /// Counts a live block of the moment that was last put on the timeline.
    pub(super) fn add(&mut self, block: &LiveBlock, cohort: usize) {
        self.current.add(block.size, weight(block.size, block.mean));
        if self.counting.len() <= cohort {
            self.counting.resize(cohort + 1, 0);
        }
        if let Some(count) = self.counting.get_mut(cohort) {
            *count = count.saturating_add(1);
        }
    }

    /// Ends a moment: what was live before and is no longer has died.
    pub(super) fn close(&mut self, timeline: &Timeline) {
        let index = timeline.moments().len().saturating_sub(1);
        let now = timeline
            .last()
            .map_or_else(Default::default, |moment| moment.at);
        for (cohort, before) in self.cohorts.iter().enumerate() {
            let left = self.counting.get(cohort).copied().unwrap_or(0);
            let died = before.saturating_sub(left);
            if died > 0 {
                self.deaths.add(
                    now.saturating_sub(timeline.cohort_born(cohort)),
                    u64::from(died),
                );
            }
        }
        std::mem::swap(&mut self.cohorts, &mut self.counting);
        self.counting.clear();
        if self.points.is_empty() {
            self.first = index;
        }
        if !self.points.is_empty() || self.current.sampled > 0 {
            self.points.push(self.current);
        }
        self.peak_bytes = self.peak_bytes.max(self.current.bytes);
        self.current = Point::default();
    }

    /// Keeps what belongs to every second moment.
    pub(super) fn thin(&mut self) {
        let first = self.first;
        let mut index = first;
        self.points.retain(|_| {
            index += 1;
            (index - 1).is_multiple_of(2)
        });
        self.first = first.div_ceil(2);
        let mut cohorts = vec![0u32; self.cohorts.len().div_ceil(2) + 1];
        for (cohort, count) in self.cohorts.iter().enumerate() {
            if let Some(merged) = cohorts.get_mut(cohort.div_ceil(2)) {
                *merged = merged.saturating_add(*count);
            }
        }
        self.cohorts = cohorts;
    }

    /// The point at a moment of the timeline.
    pub(super) fn point(&self, index: usize) -> Point {
        index
            .checked_sub(self.first)
            .and_then(|index| self.points.get(index))
            .copied()
            .unwrap_or_default()
    }

    pub(super) fn deaths(&self) -> &Ages {
        &self.deaths
    }

    /// Most bytes ever live at once.
    pub(super) fn peak_bytes(&self) -> f64 {
        self.peak_bytes
    }

    /// Whether a block was live at the last moment.
    pub(super) fn live_now(&self) -> bool {
        self.points.last().is_some_and(|point| point.sampled > 0)
    }
}
