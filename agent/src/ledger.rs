//! What is live, per process and allocation site: the account that analysis
//! judges. Pure; times are passed in.
//!
//! The kernel matches allocations and frees; about once a second it is asked
//! for its live blocks and totals ([`Observation`]). The [`Ledger`] keeps the
//! last one whole and of the earlier ones what analysis needs: per stack the
//! live estimate over time, and how long blocks lived. Everything is bounded:
//! at most [`Ledger::MAX_POINTS`] points in time, at most
//! [`Ledger::MAX_HISTORIES`] stacks with a history; further ones share one
//! history and are counted.

mod ages;
mod group;
mod history;
pub mod survivors;
pub mod tasks;
mod timeline;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    time::Duration,
};

pub use ages::Ages;
pub use group::{Group, Sample, Survivor, TaskShare};
pub use survivors::Survivors;
pub use tasks::TaskLedger;
pub use timeline::{Moment, Timeline};

use history::History;

/// Names an allocation stack; the kernel's hash of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u64);

/// One process at one moment, as the kernel maps held it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Time since the capture of this process began.
    pub at: Duration,
    /// Totals per allocation stack since the capture began. Sampled events,
    /// unweighted; they never decrease.
    pub sites: Vec<SiteTotals>,
    /// Every sampled block that is live now.
    pub live: Vec<LiveBlock>,
    /// Anonymous resident memory and swap in bytes, where it could be read.
    pub anonymous_bytes: Option<u64>,
    /// Calls of the process since the capture began, sampled or not, where
    /// they are counted.
    pub calls: Option<Calls>,
}

/// Calls of allocator functions, sampled or not.
///
/// Their difference is how the number of the process's blocks changed, those
/// from before the capture included: a free of such a block is seen here and
/// nowhere else. A realloc of a block must count as one of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Blocks allocated.
    pub allocations: u64,
    /// Blocks freed.
    pub frees: u64,
}

/// What one allocation stack did so far.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteTotals {
    /// The stack.
    pub stack: StackId,
    /// Sampled blocks allocated.
    pub allocated: u64,
    /// Those of them that were freed.
    pub freed: u64,
    /// Longest life of a freed one.
    pub longest_life: Duration,
    /// Sum of the lives of the freed ones.
    pub lives: Duration,
}

/// A sampled block that is live at the time of the observation.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveBlock {
    /// Its address; unique among the live blocks of one observation.
    pub address: u64,
    /// Requested size in bytes.
    pub size: u64,
    /// Allocation stack.
    pub stack: StackId,
    /// Tokio task that allocated it.
    pub task: Option<u64>,
    /// When it was allocated, since the capture of this process began.
    pub born: Duration,
    /// Sampling mean in bytes at that time; 1: every allocation was taken.
    /// A sampled block stands for `agent_ebpf::logic::sampling::weight` blocks.
    pub mean: u64,
}

/// The account of one process.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    timeline: Timeline,
    histories: HashMap<StackId, History>,
    totals: HashMap<StackId, SiteTotals>,
    live: Vec<LiveBlock>,
    losses: Losses,
    largest_mean: u64,
}

/// What the ledger itself could not keep; not zero only under hostile or
/// extreme targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Observations older than the one before; ignored.
    pub out_of_order: u64,
    /// Blocks that an observation listed more than once.
    pub duplicates: u64,
    /// Blocks that were live without a place for their stack's history, at
    /// the last observation.
    pub without_history: u64,
    /// Stacks whose totals found no place, at the last observation.
    pub without_totals: u64,
    /// Times that the account began anew because the process runs another
    /// program.
    pub restarts: u64,
}

impl Ledger {
    /// Points in time that are kept; thinned by half when reached, so that
    /// the recent past is finer than the distant one.
    pub const MAX_POINTS: usize = 256;
    /// Stacks with a history of their own.
    pub const MAX_HISTORIES: usize = 4096;
    /// Stacks with totals.
    pub const MAX_TOTALS: usize = 1 << 16;

    /// Takes in an observation. One that is older than the last is ignored
    /// and counted; one whose totals went backwards begins a new account,
    /// because only another program in the same process explains it.
    pub fn observe(&mut self, observation: Observation) {
        if self
            .timeline
            .last()
            .is_some_and(|last| observation.at < last.at)
        {
            self.losses.out_of_order += 1;
            return;
        }
        let backwards = |site: &SiteTotals| {
            self.totals
                .get(&site.stack)
                .is_some_and(|old| site.allocated < old.allocated || site.freed < old.freed)
        };
        if observation.sites.iter().any(backwards) {
            self.restart();
        }
        if self.timeline.is_full() {
            self.timeline.thin();
            self.histories.values_mut().for_each(History::thin);
        }
        self.take_totals(observation.sites);
        self.timeline.push(Moment {
            at: observation.at,
            anonymous_bytes: observation.anonymous_bytes,
            calls: observation.calls,
        });
        self.take_live(observation.live);
    }

    /// Begins a new account: the process runs another program now, and the
    /// old program's blocks are gone.
    pub fn restart(&mut self) {
        let restarts = self.losses.restarts + 1;
        *self = Self {
            losses: Losses {
                restarts,
                ..Losses::default()
            },
            ..Self::default()
        };
    }

    fn take_totals(&mut self, sites: Vec<SiteTotals>) {
        self.losses.without_totals = 0;
        for site in sites {
            if self.totals.len() < Self::MAX_TOTALS || self.totals.contains_key(&site.stack) {
                self.totals.insert(site.stack, site);
            } else {
                self.losses.without_totals += 1;
            }
        }
    }

    fn take_live(&mut self, mut live: Vec<LiveBlock>) {
        live.sort_unstable_by_key(|block| (block.address, block.born));
        let listed = live.len();
        // the later one of two at the same address is the true one
        live.reverse();
        live.dedup_by_key(|block| block.address);
        self.losses.duplicates += (listed - live.len()) as u64;
        self.losses.without_history = 0;
        for block in &live {
            self.largest_mean = self.largest_mean.max(block.mean);
            let cohort = self.timeline.cohort(block.born);
            let room = self.histories.len() < Self::MAX_HISTORIES;
            match self.histories.entry(block.stack) {
                Entry::Occupied(entry) => entry.into_mut().add(block, cohort),
                Entry::Vacant(entry) if room => entry.insert(History::default()).add(block, cohort),
                Entry::Vacant(_) => self.losses.without_history += 1,
            }
        }
        for history in self.histories.values_mut() {
            history.close(&self.timeline);
        }
        self.make_room();
        self.live = live;
    }

    /// Lets go of stacks that hold nothing now, when there is no room left:
    /// first of those that never held much, then of all.
    fn make_room(&mut self) {
        let peak = self
            .histories
            .values()
            .map(History::peak_bytes)
            .fold(0.0, f64::max);
        for least in [peak / 1000.0, f64::INFINITY] {
            if self.histories.len() >= Self::MAX_HISTORIES {
                self.histories
                    .retain(|_, history| history.live_now() || history.peak_bytes() > least);
            }
        }
    }

    /// The moments of observation.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// What could not be kept.
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// The blocks that were live at the last observation.
    pub fn live(&self) -> &[LiveBlock] {
        &self.live
    }

    /// The block that was live at an address at the last observation.
    pub fn block(&self, address: u64) -> Option<&LiveBlock> {
        // The highest address comes first.
        let index = self
            .live
            .binary_search_by(|block| address.cmp(&block.address));
        self.live.get(index.ok()?)
    }

    /// The largest sampling mean met, in bytes; at least 1.
    pub fn sampling_mean(&self) -> u64 {
        self.largest_mean.max(1)
    }

    /// Every stack known, those with most live bytes first: the order in
    /// which to look up their functions when time is short.
    pub fn stacks(&self) -> Vec<StackId> {
        let bytes = |stack: &StackId| self.histories.get(stack).map_or(0.0, History::peak_bytes);
        let mut stacks: Vec<StackId> = self.totals.keys().copied().collect();
        stacks.extend(
            self.histories
                .keys()
                .filter(|stack| !self.totals.contains_key(stack)),
        );
        stacks.sort_by(|a, b| bytes(b).total_cmp(&bytes(a)).then(a.cmp(b)));
        stacks
    }

    /// The account per group of stacks. `group_of` names the group of a
    /// stack; stacks with equal names are added up.
    pub fn groups<K: Ord>(&self, group_of: impl Fn(StackId) -> K) -> BTreeMap<K, Group> {
        let mut groups: BTreeMap<K, Group> = BTreeMap::new();
        for (stack, history) in &self.histories {
            groups.entry(group_of(*stack)).or_default().add_history(
                *stack,
                history,
                &self.timeline,
            );
        }
        for totals in self.totals.values() {
            groups
                .entry(group_of(totals.stack))
                .or_default()
                .add_totals(totals);
        }
        for block in &self.live {
            let followed = self.histories.contains_key(&block.stack);
            groups
                .entry(group_of(block.stack))
                .or_default()
                .add_survivor(block, followed);
        }
        for group in groups.values_mut() {
            group.close(&self.timeline);
        }
        groups
    }
}

#[cfg(test)]
mod tests;
