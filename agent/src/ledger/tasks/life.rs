//! One task's life.

use std::time::Duration;

use super::{Packed, Seen, Within};

/// What a task does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It waits for something.
    #[default]
    Idle,
    /// It was woken and waits for a worker.
    Scheduled,
    /// It is polled.
    Running,
    /// It has ended, and its cell is still there.
    Complete,
    /// It has ended, and its cell is gone.
    Finished,
}

impl Phase {
    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Finished => "finished",
        }
    }

    /// Whether it has ended.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Complete | Self::Finished)
    }
}

/// What is known of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Index of its type; none for one that no reading showed.
    pub kind: Option<usize>,
    /// Address of its cell; 0 for one that is gone.
    pub cell: u64,
    /// What it did at the last reading.
    pub phase: Phase,
    /// When it was spawned.
    pub spawned: Within,
    /// Its last sign of activity.
    pub active: Within,
    /// Its end.
    pub ended: Option<Within>,
    /// Somebody holds its join handle.
    pub join_handle: bool,
}

impl Life {
    pub(super) fn gone(kind: Option<usize>, ended: Packed, zero: Duration) -> Self {
        let ended = ended.unpack(zero);
        Self {
            kind,
            cell: 0,
            phase: Phase::Finished,
            spawned: Within {
                after: None,
                ..ended
            },
            active: ended,
            ended: Some(ended),
            join_handle: false,
        }
    }

    /// For how long it has shown no activity at `now`: at least and at most;
    /// none for one that ended or is about to run.
    pub fn idle(&self, now: Duration) -> Option<(Duration, Option<Duration>)> {
        (self.phase == Phase::Idle).then(|| self.active.ago(now))
    }
}

/// What is kept of a task that is followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    pub(super) cell: u64,
    mark: Option<u64>,
    pub(super) kind: u32,
    /// Number of the last reading that showed it.
    pub(super) reading: u32,
    phase: Phase,
    join_handle: bool,
    pub(super) spawned: Packed,
    active: Packed,
    pub(super) done: Option<Packed>,
    /// When its cell was seen to be freed.
    pub(super) freed: Option<Packed>,
}

impl Account {
    pub(super) fn new(seen: &Seen, kind: u32, spawned: Packed, now: Packed, reading: u32) -> Self {
        let busy = is_busy(seen);
        Self {
            cell: seen.cell,
            mark: seen.mark,
            kind,
            reading,
            phase: seen.phase,
            join_handle: seen.join_handle,
            spawned,
            active: if busy { now } else { spawned },
            done: seen.phase.is_over().then_some(spawned),
            freed: None,
        }
    }

    /// Takes in another reading; whether it has ended since the last one.
    pub(super) fn see(&mut self, seen: &Seen, between: Packed, now: Packed, reading: u32) -> bool {
        (self.reading, self.freed) = (reading, None);
        let ends = seen.phase.is_over() && self.done.is_none();
        if ends {
            self.done = Some(between);
        }
        if !self.phase.is_over() {
            if is_busy(seen) {
                self.active = self.active.last_of(now);
            } else if self.mark != seen.mark || self.phase != seen.phase {
                self.active = self.active.last_of(between);
            }
        }
        (self.mark, self.phase) = (seen.mark, seen.phase);
        self.join_handle = seen.join_handle;
        ends
    }

    pub(super) fn allocated(&mut self, at: Packed) {
        self.active = self.active.last_of(at);
    }

    pub(super) fn life(&self, zero: Duration) -> Life {
        Life {
            kind: Some(self.kind as usize),
            cell: self.cell,
            phase: self.phase,
            spawned: self.spawned.unpack(zero),
            active: self.active.unpack(zero),
            ended: self.done.map(|done| done.unpack(zero)),
            join_handle: self.join_handle,
        }
    }
}

/// Whether the task runs, is about to, or may have without our seeing it.
fn is_busy(seen: &Seen) -> bool {
    matches!(seen.phase, Phase::Running | Phase::Scheduled)
        || (seen.phase == Phase::Idle && seen.mark.is_none())
}
