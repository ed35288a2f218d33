//! The account of one group of stacks: one allocation site as people see it.

use std::{collections::HashMap, time::Duration};

use agent_ebpf::logic::sampling::weight;

use super::{
    Ages, LiveBlock, SiteTotals, StackId, Timeline,
    history::{History, Point},
};

/// Live estimate at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Since the capture began.
    pub at: Duration,
    /// Estimated live bytes.
    pub bytes: f64,
    /// Estimated live blocks.
    pub blocks: f64,
    /// Sampling variance of `bytes`; 0 when every allocation was taken.
    pub bytes_variance: f64,
    /// Sampling variance of `blocks`.
    pub blocks_variance: f64,
    /// Sampled blocks behind the estimate.
    pub sampled: u32,
}

/// A block that was live at the last observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Survivor {
    /// When it was allocated, since the capture began.
    pub born: Duration,
    /// Requested size in bytes.
    pub size: u64,
    /// Blocks it stands for.
    pub weight: f64,
}

/// What one Tokio task holds; `None`: no task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskShare {
    /// The task.
    pub task: Option<u64>,
    /// Estimated live blocks that it allocated.
    pub blocks: f64,
    /// Their bytes.
    pub bytes: f64,
}

impl TaskShare {
    /// From blocks and bytes per task: those with most bytes first, at most
    /// [`Group::MAX_TASKS`], and what the others hold together.
    pub(super) fn ranked(
        sums: impl Iterator<Item = (Option<u64>, (f64, f64))>,
    ) -> (Vec<Self>, Option<Self>) {
        let mut tasks: Vec<Self> = sums
            .map(|(task, (blocks, bytes))| Self {
                task,
                blocks,
                bytes,
            })
            .collect();
        tasks.sort_by(|a, b| b.bytes.total_cmp(&a.bytes).then(a.task.cmp(&b.task)));
        let others = tasks.split_off(tasks.len().min(Group::MAX_TASKS));
        let rest = (!others.is_empty()).then(|| Self {
            task: None,
            blocks: others.iter().map(|share| share.blocks).sum(),
            bytes: others.iter().map(|share| share.bytes).sum(),
        });
        (tasks, rest)
    }
}

/// Stacks, those with most bytes first.
pub(super) fn by_bytes(stacks: impl Iterator<Item = (StackId, f64)>) -> Vec<StackId> {
    let mut stacks: Vec<(StackId, f64)> = stacks.collect();
    stacks.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    stacks.into_iter().map(|(stack, _)| stack).collect()
}

/// The account of one group of stacks.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Its stacks, those with most live bytes first.
    pub stacks: Vec<StackId>,
    /// Live estimates, one per moment of the timeline.
    pub series: Vec<Sample>,
    /// Live blocks at the end, by time of birth.
    pub survivors: Vec<Survivor>,
    /// Deaths by age, of blocks that an observation saw alive.
    pub deaths: Ages,
    /// Sampled blocks allocated.
    pub allocated: u64,
    /// Sampled blocks freed.
    pub freed: u64,
    /// Sampled blocks that are neither live nor known to be freed: their free
    /// was lost, and then their address was given out again.
    pub vanished: u64,
    /// Survivors that are missing from `series`, because their stack found no
    /// place for a history.
    pub unfollowed: u64,
    /// Longest life of a freed block.
    pub longest_life: Duration,
    /// Sum of the lives of the freed blocks.
    pub lives: Duration,
    /// Live memory by task, most bytes first, at most [`Group::MAX_TASKS`];
    /// the rest is in `other_tasks`.
    pub tasks: Vec<TaskShare>,
    /// What further tasks hold together.
    pub other_tasks: Option<TaskShare>,
    stack_bytes: HashMap<StackId, f64>,
    task_sums: HashMap<Option<u64>, (f64, f64)>,
    points: Vec<Point>,
}

impl Group {
    /// Tasks listed by name.
    pub const MAX_TASKS: usize = 20;

    /// Mean life of the freed blocks.
    pub fn mean_life(&self) -> Option<Duration> {
        (self.freed > 0).then(|| self.lives.div_f64(self.freed as f64))
    }

    /// Age of the oldest live block at `now`.
    pub fn oldest(&self, now: Duration) -> Option<Duration> {
        self.survivors
            .first()
            .map(|survivor| now.saturating_sub(survivor.born))
    }

    pub(super) fn add_history(&mut self, stack: StackId, history: &History, timeline: &Timeline) {
        self.stack_bytes.entry(stack).or_insert(0.0);
        self.points
            .resize(timeline.moments().len(), Point::default());
        for (index, sum) in self.points.iter_mut().enumerate() {
            let point = history.point(index);
            sum.bytes += point.bytes;
            sum.blocks += point.blocks;
            sum.bytes_variance += point.bytes_variance;
            sum.blocks_variance += point.blocks_variance;
            sum.sampled = sum.sampled.saturating_add(point.sampled);
        }
        self.deaths.merge(history.deaths());
    }

    pub(super) fn add_totals(&mut self, totals: &SiteTotals) {
        self.stack_bytes.entry(totals.stack).or_insert(0.0);
        self.allocated = self.allocated.saturating_add(totals.allocated);
        self.freed = self.freed.saturating_add(totals.freed);
        self.longest_life = self.longest_life.max(totals.longest_life);
        self.lives = self.lives.saturating_add(totals.lives);
    }

    pub(super) fn add_survivor(&mut self, block: &LiveBlock, followed: bool) {
        self.unfollowed += u64::from(!followed);
        let weight = weight(block.size, block.mean);
        let bytes = weight * block.size as f64;
        *self.stack_bytes.entry(block.stack).or_insert(0.0) += bytes;
        let task = self.task_sums.entry(block.task).or_insert((0.0, 0.0));
        task.0 += weight;
        task.1 += bytes;
        self.survivors.push(Survivor {
            born: block.born,
            size: block.size,
            weight,
        });
    }

    pub(super) fn close(&mut self, timeline: &Timeline) {
        self.survivors.sort_by_key(|survivor| survivor.born);
        // Totals and live blocks are read one after the other: a block may be
        // listed that the totals do not count yet, or the other way round.
        let live = self.survivors.len() as u64;
        self.allocated = self.allocated.max(self.freed.saturating_add(live));
        self.vanished = self.allocated - self.freed - live;

        self.stacks = by_bytes(self.stack_bytes.drain());
        (self.tasks, self.other_tasks) = TaskShare::ranked(self.task_sums.drain());

        let points = std::mem::take(&mut self.points);
        let zero = Point::default();
        self.series = timeline
            .moments()
            .iter()
            .enumerate()
            .map(|(index, moment)| {
                let point = points.get(index).unwrap_or(&zero);
                Sample {
                    at: moment.at,
                    bytes: point.bytes,
                    blocks: point.blocks,
                    bytes_variance: point.bytes_variance,
                    blocks_variance: point.blocks_variance,
                    sampled: point.sampled,
                }
            })
            .collect();
    }
}
