//! The lives of a process's tasks, from tables that are read now and then.
//!
//! A reading shows which tasks there are and in what state. What happened
//! between two readings is known up to the time between them ([`Within`]). A
//! task counts as active when its state or its future changed, when it runs or
//! waits to run, and when it allocated something that was recorded; a poll
//! that leaves no such trace goes unseen, so idle means "without a sign of
//! activity".
//!
//! Everything is bounded: [`TaskLedger::MAX_TASKS`] tasks,
//! [`TaskLedger::MAX_KINDS`] types, [`TaskLedger::MAX_READINGS`] points in
//! time, [`TaskLedger::MAX_ENDED`] ended tasks whose blocks live. What does not
//! fit is counted.

mod life;
mod within;

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    time::Duration,
};

pub use life::{Life, Phase};
pub use within::Within;

use life::Account;
use within::Packed;

/// Names a type of future for as long as its process runs: addresses of its
/// task vtable and, of a boxed one, of the trait object's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KindKey(pub u64, pub Option<u64>);

/// Names a task: its file, since every copy of Tokio counts its own ids, and
/// its id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// Where the file with its Tokio is mapped.
    pub module: u64,
    /// Tokio's id.
    pub id: u64,
}

/// Whose work tasks of a type do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// Spawned futures.
    #[default]
    Future,
    /// Functions on the blocking pool.
    Blocking,
    /// The runtime's own.
    Runtime,
}

/// A type of future.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// Names it.
    pub key: KindKey,
    /// What it is called; as the target spells it.
    pub name: Option<String>,
    /// Where it is in the source; as the target spells it.
    pub location: Option<String>,
    /// Bytes of a cell.
    pub cell_bytes: u64,
    /// Whose work it is.
    pub work: Work,
}

/// A task as one reading shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Names it.
    pub task: TaskId,
    /// Index of its type in the reading.
    pub kind: usize,
    /// Address of its cell.
    pub cell: u64,
    /// What it does.
    pub phase: Phase,
    /// Changes with everything that a poll or a wake-up changes; none: such a
    /// change could not be seen, so the task is taken to be active.
    pub mark: Option<u64>,
    /// Somebody holds its join handle.
    pub join_handle: bool,
}

/// All tasks of a process at about one moment. Times are those of any clock
/// that never goes back.
#[derive(Clone, Debug, Default)]
pub struct TaskReading {
    /// When reading began.
    pub begin: Duration,
    /// When it ended.
    pub end: Duration,
    /// Types that have tasks.
    pub kinds: Vec<Kind>,
    /// The tasks.
    pub tasks: Vec<Seen>,
    /// Runtimes that own them.
    pub runtimes: u32,
    /// Not all of memory could be read: a task that is missing may be there.
    pub partial: bool,
    /// Tasks that the reading had no room for.
    pub dropped: u64,
}

/// One point of a type's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Tasks that had not ended.
    pub alive: u32,
    /// Tasks that had ended and were still held.
    pub complete: u32,
}

/// What became of the tasks of a type that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// How many were seen alive before.
    pub tasks: u64,
    /// Longest life of one, at most; of one from before the first reading, at
    /// least.
    pub longest: Duration,
}

/// A type's history.
#[derive(Clone, Debug)]
pub struct KindHistory {
    /// The type.
    pub kind: Kind,
    /// Its tasks at each reading, as [`TaskLedger::readings`] lists them.
    pub counts: Vec<Count>,
    /// Its ends.
    pub ended: Ended,
}

/// What could not be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskLosses {
    /// Tasks without room, at the last reading.
    pub tasks: u64,
    /// Tasks of types without room, at the last reading.
    pub kinds: u64,
    /// Ended tasks that hold blocks and found no room.
    pub ended: u64,
    /// Readings older than the one before; ignored.
    pub out_of_order: u64,
}

/// A task that is no more, and whose blocks live.
#[derive(Clone, Copy, Debug)]
struct Gone {
    kind: Option<u32>,
    ended: Packed,
}

/// The tasks of one process.
#[derive(Clone, Debug, Default)]
pub struct TaskLedger {
    zero: Option<Duration>,
    readings: Vec<(Duration, Duration)>,
    number: u32,
    kinds: Vec<KindHistory>,
    keys: HashMap<KindKey, u32>,
    tasks: HashMap<TaskId, Account>,
    gone: HashMap<TaskId, Gone>,
    /// Last allocation of tasks that no table showed yet.
    unseen: HashMap<TaskId, Duration>,
    /// Highest id of each file so far: a task below is no new one.
    highest: BTreeMap<u64, u64>,
    runtimes: u32,
    losses: TaskLosses,
}

impl TaskLedger {
    /// Tasks that are followed.
    pub const MAX_TASKS: usize = 1 << 20;
    /// Types that are followed.
    pub const MAX_KINDS: usize = 4096;
    /// Points of a type's history; thinned by half when reached.
    pub const MAX_READINGS: usize = 128;
    /// Ended tasks that are remembered, because their blocks live.
    pub const MAX_ENDED: usize = 1 << 16;
    /// Files with Tokio in them.
    const MAX_MODULES: usize = 64;

    /// Takes in a reading. `holders` are the tasks that have allocated what is
    /// live now: of those that ended, only these are remembered.
    pub fn read(&mut self, reading: &TaskReading, holders: &HashSet<TaskId>) {
        let before = self.readings.last().copied();
        if before.is_some_and(|(_, end)| reading.begin < end) || reading.end < reading.begin {
            self.losses.out_of_order += 1;
            return;
        }
        let zero = *self.zero.get_or_insert(reading.begin);
        let between = Packed::of(before.map(|(begin, _)| begin), reading.end, zero);
        let now = Packed::of(Some(reading.begin), reading.end, zero);
        self.number = self.number.wrapping_add(1);
        self.runtimes = reading.runtimes;
        self.losses.tasks = reading.dropped;
        self.losses.kinds = 0;
        let kinds: Vec<Option<u32>> = reading
            .kinds
            .iter()
            .map(|kind| self.kind_number(kind))
            .collect();
        for seen in &reading.tasks {
            match kinds.get(seen.kind).copied().flatten() {
                Some(kind) => self.see(seen, kind, between, now),
                None => self.losses.kinds += 1,
            }
        }
        for seen in &reading.tasks {
            let room = self.highest.len() < Self::MAX_MODULES;
            if room || self.highest.contains_key(&seen.task.module) {
                let highest = self.highest.entry(seen.task.module).or_default();
                *highest = (*highest).max(seen.task.id);
            }
        }
        if reading.partial || reading.dropped > 0 {
            // Whoever is missing may be there: nothing is known of them.
            let number = self.number;
            self.tasks.retain(|_, account| account.reading == number);
        } else {
            self.end_missing(between, holders);
        }
        self.remember_unseen(reading, zero, holders);
        self.count(reading);
    }

    fn kind_number(&mut self, kind: &Kind) -> Option<u32> {
        let next = self.kinds.len();
        match self.keys.entry(kind.key) {
            Entry::Occupied(entry) => Some(*entry.get()),
            Entry::Vacant(_) if next >= Self::MAX_KINDS => None,
            Entry::Vacant(entry) => {
                let number = u32::try_from(next).ok()?;
                entry.insert(number);
                self.kinds.push(KindHistory {
                    kind: kind.clone(),
                    counts: vec![Count::default(); self.readings.len()],
                    ended: Ended::default(),
                });
                Some(number)
            }
        }
    }

    fn see(&mut self, seen: &Seen, kind: u32, between: Packed, now: Packed) {
        let allocated = self.unseen.remove(&seen.task);
        let room = self.tasks.len() < Self::MAX_TASKS;
        let old = self.highest.get(&seen.task.module);
        let is_new = old.is_none_or(|highest| *highest < seen.task.id);
        match self.tasks.entry(seen.task) {
            Entry::Occupied(mut entry) if entry.get().cell == seen.cell => {
                let ended = entry.get_mut().see(seen, between, now, self.number);
                if ended && let Some(history) = self.kinds.get_mut(entry.get().kind as usize) {
                    history.ended.add(entry.get().spawned, between);
                }
            }
            Entry::Occupied(mut entry) => {
                // A copy was taken for the task, or is now.
                *entry.get_mut() = Account::new(seen, kind, between.open(), now, self.number);
            }
            Entry::Vacant(entry) if room => {
                let spawned = if is_new { between } else { between.open() };
                entry.insert(Account::new(seen, kind, spawned, now, self.number));
            }
            Entry::Vacant(_) => {
                self.losses.tasks += 1;
                return;
            }
        }
        if let (Some(at), Some(zero), Some(account)) =
            (allocated, self.zero, self.tasks.get_mut(&seen.task))
        {
            account.allocated(Packed::of(Some(at), at, zero));
        }
    }

    /// Tasks that the reading did not show have ended.
    fn end_missing(&mut self, between: Packed, holders: &HashSet<TaskId>) {
        let Self {
            tasks,
            kinds,
            gone,
            losses,
            number,
            ..
        } = self;
        gone.retain(|id, _| holders.contains(id));
        tasks.retain(|id, account| {
            if account.reading == *number {
                return true;
            }
            if account.done.is_none()
                && let Some(history) = kinds.get_mut(account.kind as usize)
            {
                let ended = account.freed.unwrap_or(between);
                history.ended.add(account.spawned, ended);
            }
            if holders.contains(id) {
                if gone.len() < Self::MAX_ENDED {
                    let ended = account.done.or(account.freed).unwrap_or(between);
                    let kind = Some(account.kind);
                    gone.insert(*id, Gone { kind, ended });
                } else {
                    losses.ended += 1;
                }
            }
            false
        });
    }

    /// Tasks that allocated and have ended before any table showed them.
    fn remember_unseen(
        &mut self,
        reading: &TaskReading,
        zero: Duration,
        holders: &HashSet<TaskId>,
    ) {
        let certain = !reading.partial && reading.dropped == 0;
        for (task, at) in std::mem::take(&mut self.unseen) {
            if !holders.contains(&task) {
                continue;
            }
            if at >= reading.begin {
                // It may have been spawned behind the reader's back.
                self.unseen.insert(task, at);
            } else if certain && self.highest.contains_key(&task.module) {
                if self.gone.len() >= Self::MAX_ENDED {
                    self.losses.ended += 1;
                    continue;
                }
                let ended = Packed::of(Some(at), reading.end, zero);
                let gone = Gone { kind: None, ended };
                self.gone.entry(task).or_insert(gone);
            }
        }
    }

    fn count(&mut self, reading: &TaskReading) {
        if self.readings.len() >= Self::MAX_READINGS {
            thin(&mut self.readings);
            for history in &mut self.kinds {
                thin(&mut history.counts);
            }
        }
        self.readings.push((reading.begin, reading.end));
        for history in &mut self.kinds {
            history.counts.push(Count::default());
        }
        for account in self.tasks.values() {
            let history = self.kinds.get_mut(account.kind as usize);
            if let Some(count) = history.and_then(|history| history.counts.last_mut()) {
                if account.done.is_some() {
                    count.complete += 1;
                } else {
                    count.alive += 1;
                }
            }
        }
    }

    /// Notes that a task allocated something.
    pub fn allocated(&mut self, task: TaskId, at: Duration) {
        let at_most = |zero| Packed::of(Some(at), at, zero);
        if let (Some(account), Some(zero)) = (self.tasks.get_mut(&task), self.zero) {
            account.allocated(at_most(zero));
        } else if self.unseen.len() < Self::MAX_ENDED || self.unseen.contains_key(&task) {
            let last = self.unseen.entry(task).or_insert(at);
            *last = (*last).max(at);
        }
    }

    /// Notes that the cell of a task was freed between two moments.
    pub fn freed(&mut self, task: TaskId, after: Duration, until: Duration) {
        if let (Some(account), Some(zero)) = (self.tasks.get_mut(&task), self.zero) {
            account.freed = Some(Packed::of(Some(after), until, zero));
        }
    }

    /// Begin and end of each reading that is kept, in order.
    pub fn readings(&self) -> &[(Duration, Duration)] {
        &self.readings
    }

    /// End of the last reading.
    pub fn now(&self) -> Option<Duration> {
        self.readings.last().map(|(_, end)| *end)
    }

    /// Every type that ever had tasks.
    pub fn kinds(&self) -> &[KindHistory] {
        &self.kinds
    }

    /// The tasks of the last reading.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, Life)> {
        let zero = self.zero.unwrap_or_default();
        self.tasks
            .iter()
            .map(move |(id, account)| (*id, account.life(zero)))
    }

    /// What is known of one task; also of one that ended, if it holds blocks.
    pub fn life(&self, task: TaskId) -> Option<Life> {
        let zero = self.zero?;
        if let Some(account) = self.tasks.get(&task) {
            return Some(account.life(zero));
        }
        let gone = self.gone.get(&task)?;
        Some(Life::gone(
            gone.kind.map(|kind| kind as usize),
            gone.ended,
            zero,
        ))
    }

    /// Runtimes at the last reading.
    pub fn runtimes(&self) -> u32 {
        self.runtimes
    }

    /// What could not be kept.
    pub fn losses(&self) -> TaskLosses {
        self.losses
    }
}

impl Ended {
    fn add(&mut self, spawned: Packed, ended: Packed) {
        self.tasks += 1;
        self.longest = self.longest.max(spawned.longest_until(ended));
    }
}

/// Keeps every second entry, the first one among them.
fn thin<T>(list: &mut Vec<T>) {
    let mut index = 0;
    list.retain(|_| {
        index += 1;
        index % 2 == 1
    });
}

#[cfg(test)]
mod tests;
