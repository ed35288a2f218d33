//! The account of a survey: which of the blocks that were sampled in short
//! windows still live long after.
//!
//! A window follows allocations and frees for a moment. What it sampled and
//! saw freed is dead at a known age. The rest is handed over at its end
//! ([`Survivors::window_closed`]), and from then on somebody reads each of
//! these blocks again when [`Survivors::due`] names it, and tells what the
//! reading showed ([`Survivors::reading`]). Kept are the blocks that are
//! still followed, and a life table per stack and window; that is all the
//! statistics need.
//!
//! Everything is bounded. When there are too many blocks, some are let go at
//! random and the others stand for them, so that sums keep their mean; each
//! loss is counted.

mod account;
mod group;
mod room;
mod schedule;
mod thinning;
mod window;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use agent_ebpf::logic::sampling::weight;

use super::{Calls, Ledger, LiveBlock, Moment, StackId, Timeline};

pub use account::{Births, StepCount, WindowAccount};
pub use group::{Kept, SurveyGroup};
pub use schedule::{STEPS, age, step_at};
pub use window::{SIZE_CLASSES, Window};

use room::size_class;
use thinning::Random;

/// Names a block that is followed. Never given out twice by one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u64);

/// A sampled block that was live when its window closed.
#[derive(Clone, Debug, PartialEq)]
pub struct SurveyBlock {
    /// The block as the kernel recorded it.
    pub block: LiveBlock,
    /// Bytes that the allocator gave, at least the requested ones.
    pub usable: u64,
}

/// What one stack did inside a window.
#[derive(Clone, Debug, PartialEq)]
pub struct StackCount {
    /// The stack.
    pub stack: StackId,
    /// Sampled blocks.
    pub sampled: u64,
    /// Those of them that were freed inside the window.
    pub freed: u64,
    /// Longest life of these.
    pub longest_life: Duration,
}

/// What a window brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WindowOutcome {
    /// How long both malloc and free were followed and blocks were taken.
    pub open: Duration,
    /// Sampling mean in bytes; 0 or 1: every allocation.
    pub mean: u64,
    /// By stack.
    pub counts: Vec<StackCount>,
    /// What was live at the end.
    pub survivors: Vec<SurveyBlock>,
    /// All calls inside the window, sampled or not, where they are counted.
    pub calls: Option<Calls>,
    /// Samples that were not recorded, for want of room or of a stack.
    pub lost: u64,
}

/// What reading a block again showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sign {
    /// It lives: its contents are its own, and free would have changed them.
    Alive,
    /// It lives by the allocator's sign; the contents are others.
    Mutated,
    /// Its contents are its own, but this allocator's free changes nothing.
    /// It counts as alive for as long as blocks of its size are seen to be
    /// given out again much sooner.
    Unchanged,
    /// It was freed at some time since the last certain sign.
    Gone,
    /// Nothing can be told: absent, unreadable, or not to be told from other
    /// blocks.
    Unknown,
}

/// What the account could not keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SurveyLosses {
    /// Samples that windows could not record.
    pub unrecorded: u64,
    /// Surviving blocks whose stack found no place.
    pub without_site: u64,
    /// Stacks whose counts found no place, over all windows.
    pub without_counts: u64,
    /// Blocks let go for want of room; others stand for them.
    pub thinned: u64,
    /// Blocks listed more than once by one window.
    pub duplicates: u64,
    /// Readings that told nothing.
    pub unknown: u64,
    /// Blocks no longer read because they never told anything.
    pub given_up: u64,
    /// Readings of blocks that are not followed (any more).
    pub stray: u64,
    /// Windows that were opened and never closed.
    pub abandoned: u64,
    /// Times that the account began anew because the process runs another
    /// program.
    pub restarts: u64,
}

/// A block that is read again and again.
#[derive(Clone, Debug)]
struct Followed {
    block: SurveyBlock,
    /// Blocks it stands for.
    weight: f64,
    /// Index of its window.
    window: usize,
    /// End of its window.
    closed: Duration,
    /// Last step at which it was certainly alive.
    step: usize,
    /// Readings since then that told nothing.
    blind: u32,
    due: Duration,
}

impl Followed {
    fn bytes(&self) -> f64 {
        bytes(self.block.block.size, self.weight)
    }
}

fn bytes(size: u64, weight: f64) -> f64 {
    weight * size.max(1) as f64
}

/// Blocks and bytes that a sampled block stands for.
fn weighted(block: &SurveyBlock) -> (f64, f64) {
    let weight = weight(block.block.size, block.block.mean);
    (weight, bytes(block.block.size, weight))
}

/// What a stack did, over all windows.
#[derive(Clone, Debug, Default)]
struct Totals {
    sampled: u64,
    freed: u64,
    /// Longest completed life that is known, at most.
    longest_ended: Duration,
}

/// The survivors of one stack.
#[derive(Clone, Debug, Default)]
struct SiteAccount {
    windows: BTreeMap<usize, WindowAccount>,
    /// Those that are still followed.
    followed: usize,
}

/// The account of one process under survey.
#[derive(Clone, Debug, Default)]
pub struct Survivors {
    now: Duration,
    opened: Option<Duration>,
    ended: bool,
    timeline: Timeline,
    /// Least time between two moments of it.
    spacing: Duration,
    windows: Vec<Window>,
    totals: HashMap<StackId, Totals>,
    sites: BTreeMap<StackId, SiteAccount>,
    followed: BTreeMap<BlockId, Followed>,
    addresses: HashMap<u64, BlockId>,
    queue: BTreeSet<(Duration, BlockId)>,
    /// Blocks found gone, by class of the usable size and by step.
    reuse: BTreeMap<u32, [u32; STEPS]>,
    losses: SurveyLosses,
    largest_mean: u64,
    next: u64,
    random: Random,
}

impl Survivors {
    /// Windows that are told apart; neighbours are put together beyond.
    pub const MAX_WINDOWS: usize = 64;
    /// Stacks with survivors.
    pub const MAX_SITES: usize = 1024;
    /// Stacks with counts.
    pub const MAX_COUNTS: usize = 8192;
    /// Blocks that are followed, of one stack.
    pub const MAX_BLOCKS_PER_SITE: usize = 512;
    /// Blocks that are followed, in all.
    pub const MAX_BLOCKS: usize = 16_384;
    /// Readings in succession that tell nothing, until a block is let go.
    const PATIENCE: u32 = 3;

    /// A window opens.
    pub fn window_opened(&mut self, at: Duration) {
        self.advance(at);
        if self.opened.replace(at).is_some() {
            self.losses.abandoned += 1;
        }
    }

    /// The last opened window brought nothing that can be used: the process
    /// forked, or the probes came off early.
    pub fn window_abandoned(&mut self, at: Duration) {
        self.advance(at);
        if self.opened.take().is_some() {
            self.losses.abandoned += 1;
        }
    }

    /// A window closed, and every survivor had its first read while frees
    /// were still followed. Answers the name of each of
    /// [`WindowOutcome::survivors`], in their order; none for those that are
    /// not followed.
    pub fn window_closed(&mut self, at: Duration, outcome: WindowOutcome) -> Vec<Option<BlockId>> {
        self.advance(at);
        let opened = self.opened.take();
        if self.ended {
            return vec![None; outcome.survivors.len()];
        }
        let opened = opened.unwrap_or_else(|| at.saturating_sub(outcome.open));
        self.pair_windows();
        let index = self.windows.len();
        self.windows.push(Window::of(opened, at, &outcome));
        self.losses.unrecorded = self.losses.unrecorded.saturating_add(outcome.lost);
        self.largest_mean = self.largest_mean.max(outcome.mean);
        self.take_counts(outcome.counts);
        let shares = self.shares(&outcome.survivors);
        let names: Vec<Option<BlockId>> = outcome
            .survivors
            .into_iter()
            .zip(shares)
            .map(|(block, share)| self.follow(block, share, index, at))
            .collect();
        self.make_room();
        names
            .into_iter()
            .map(|id| id.filter(|id| self.followed.contains_key(id)))
            .collect()
    }

    /// At most `most` blocks that are to be read now, the longest due first.
    /// They stay due until [`Survivors::reading`] tells of them.
    pub fn due(&mut self, at: Duration, most: usize) -> Vec<BlockId> {
        self.advance(at);
        self.queue
            .iter()
            .take_while(|(due, _)| *due <= at)
            .take(most)
            .map(|(_, id)| *id)
            .collect()
    }

    /// When the next block is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// What reading a block at `at` showed.
    pub fn reading(&mut self, id: BlockId, at: Duration, sign: Sign) {
        self.advance(at);
        let Some(mut followed) = self.take(id) else {
            self.losses.stray += 1;
            return;
        };
        let reached = step_at(at.saturating_sub(followed.closed));
        match sign {
            Sign::Gone => {
                self.ends(&followed, at);
                return;
            }
            Sign::Unknown => {
                self.losses.unknown += 1;
                followed.blind += 1;
                if followed.blind >= Self::PATIENCE {
                    self.losses.given_up += 1;
                    return;
                }
            }
            Sign::Alive | Sign::Mutated | Sign::Unchanged => {
                self.record(&followed, reached, sign);
                followed.step = followed.step.max(reached);
                followed.blind = 0;
            }
        }
        if reached + 1 < STEPS {
            followed.due = followed.closed.saturating_add(age(reached + 1));
            self.put(id, followed);
        }
    }

    /// Anonymous memory and swap of the process, in bytes.
    pub fn memory(&mut self, at: Duration, anonymous_bytes: Option<u64>) {
        if self.timeline.last().is_some_and(|last| at < last.at) {
            return;
        }
        self.advance(at);
        // Evenly spaced over the whole survey, however long it takes.
        let since = self.timeline.last().map(|last| at.saturating_sub(last.at));
        if since.is_some_and(|since| since < self.spacing) {
            return;
        }
        if self.timeline.is_full() {
            self.timeline.thin();
            self.spacing = self.timeline.span() / (Ledger::MAX_POINTS as u32 / 2);
        }
        self.timeline.push(Moment {
            at,
            anonymous_bytes,
            calls: None,
        });
    }

    /// The process runs another program now: the old one's blocks are gone,
    /// and a new account begins. The names given so far stay void.
    pub fn restart(&mut self) {
        *self = Self {
            now: self.now,
            next: self.next,
            random: self.random.clone(),
            losses: SurveyLosses {
                restarts: self.losses.restarts + 1,
                ..SurveyLosses::default()
            },
            ..Self::default()
        };
    }

    /// The process is no more. What is known of its blocks stays; no further
    /// readings are asked for.
    pub fn ended(&mut self) {
        self.ended = true;
        self.opened = None;
        self.queue.clear();
    }

    fn advance(&mut self, at: Duration) {
        self.now = self.now.max(at);
    }

    fn take_counts(&mut self, counts: Vec<StackCount>) {
        for count in counts {
            if self.totals.len() >= Self::MAX_COUNTS && !self.totals.contains_key(&count.stack) {
                self.losses.without_counts += 1;
                continue;
            }
            let totals = self.totals.entry(count.stack).or_default();
            totals.sampled = totals.sampled.saturating_add(count.sampled);
            totals.freed = totals.freed.saturating_add(count.freed);
            totals.longest_ended = totals.longest_ended.max(count.longest_life);
        }
    }

    /// Begins to follow a block that is kept with probability `share`.
    fn follow(
        &mut self,
        block: SurveyBlock,
        share: f64,
        window: usize,
        closed: Duration,
    ) -> Option<BlockId> {
        if share <= 0.0 {
            return None;
        }
        // An address that was given out again was freed before.
        if let Some(old) = self.addresses.get(&block.block.address).copied()
            && let Some(followed) = self.take(old)
        {
            self.ends(&followed, block.block.born.max(followed.closed));
        }
        let stack = block.block.stack;
        if self.sites.len() >= Self::MAX_SITES && !self.sites.contains_key(&stack) {
            // What kept nothing needs no place: its rate is zero without one.
            self.sites.retain(|_, site| site.followed > 0);
            if self.sites.len() >= Self::MAX_SITES {
                self.losses.without_site += 1;
                return None;
            }
        }
        let (weight, bytes) = weighted(&block);
        self.sites
            .entry(stack)
            .or_default()
            .windows
            .entry(window)
            .or_default()
            .born
            .add(bytes, weight);
        if share < 1.0 && self.random.unit() >= share {
            self.losses.thinned += 1;
            return None;
        }
        let id = BlockId(self.next);
        self.next += 1;
        self.put(
            id,
            Followed {
                block,
                weight: weight / share,
                window,
                closed,
                step: 0,
                blind: 0,
                due: closed.saturating_add(age(1)),
            },
        );
        Some(id)
    }

    fn put(&mut self, id: BlockId, followed: Followed) {
        self.addresses.insert(followed.block.block.address, id);
        if !self.ended {
            self.queue.insert((followed.due, id));
        }
        if let Some(site) = self.sites.get_mut(&followed.block.block.stack) {
            site.followed += 1;
        }
        self.followed.insert(id, followed);
    }

    fn take(&mut self, id: BlockId) -> Option<Followed> {
        let followed = self.followed.remove(&id)?;
        self.queue.remove(&(followed.due, id));
        let address = followed.block.block.address;
        if self.addresses.get(&address) == Some(&id) {
            self.addresses.remove(&address);
        }
        if let Some(site) = self.sites.get_mut(&followed.block.block.stack) {
            site.followed = site.followed.saturating_sub(1);
        }
        Some(followed)
    }

    /// Enters a block into the life table, up to `step`.
    fn record(&mut self, followed: &Followed, step: usize, sign: Sign) {
        let Some(account) = self
            .sites
            .get_mut(&followed.block.block.stack)
            .and_then(|site| site.windows.get_mut(&followed.window))
        else {
            return;
        };
        if sign == Sign::Gone && step > followed.step + 1 {
            let deaths = account.skipped.entry((followed.step, step)).or_default();
            deaths.bytes += followed.bytes();
            deaths.blocks = deaths.blocks.saturating_add(1);
            return;
        }
        for at in followed.step + 1..=step {
            let Some(count) = account.step_mut(at) else {
                return;
            };
            count.at_risk += followed.bytes();
            count.known = count.known.saturating_add(1);
            count.unchanged += u32::from(sign == Sign::Unchanged);
            count.mutated += u32::from(sign == Sign::Mutated);
            if sign == Sign::Gone {
                count.died += followed.bytes();
                count.gone = count.gone.saturating_add(1);
            }
        }
    }

    /// A block that is followed was found to be gone at `at`.
    fn ends(&mut self, followed: &Followed, at: Duration) {
        let step = step_at(at.saturating_sub(followed.closed))
            .max(followed.step + 1)
            .min(STEPS - 1);
        self.record(followed, step, Sign::Gone);
        let life = at.saturating_sub(followed.block.block.born);
        if let Some(totals) = self.totals.get_mut(&followed.block.block.stack) {
            totals.longest_ended = totals.longest_ended.max(life);
        }
        self.reuse_seen(
            followed.block.usable,
            at.saturating_sub(followed.block.block.born),
        );
    }

    /// A block of this usable size was seen to be given out again, or to have
    /// lost its contents, within `time`. Only worth telling for allocators
    /// whose free leaves no sign.
    pub fn reuse_seen(&mut self, usable: u64, time: Duration) {
        // the first step at which a reading would have shown it
        let step = (0..STEPS)
            .find(|step| age(*step) >= time)
            .unwrap_or(STEPS - 1);
        let counts = self.reuse.entry(size_class(usable)).or_default();
        if let Some(count) = counts.get_mut(step) {
            *count = count.saturating_add(1);
        }
    }

    /// Within which time nine in ten blocks of this usable size that were
    /// freed were also seen to be; none while hardly any was.
    pub fn reuse_time(&self, usable: u64) -> Option<Duration> {
        let counts = self.reuse.get(&size_class(usable))?;
        let total: u32 = counts.iter().fold(0, |sum, n| sum.saturating_add(*n));
        let mut found = 0u32;
        let step = counts.iter().position(|count| {
            found = found.saturating_add(*count);
            f64::from(found) >= 0.9 * f64::from(total)
        })?;
        (total >= 8).then(|| age(step))
    }

    /// A block that is followed; none for one that was let go, found gone, or
    /// needs no more readings. What is kept for it elsewhere can go then.
    pub fn block(&self, id: BlockId) -> Option<&SurveyBlock> {
        self.followed.get(&id).map(|followed| &followed.block)
    }

    /// Blocks that are followed.
    pub fn followed(&self) -> usize {
        self.followed.len()
    }

    /// The windows, neighbouring ones put together when there are many.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// How many windows there were.
    pub fn window_count(&self) -> u32 {
        self.windows
            .iter()
            .fold(0, |sum, window| sum.saturating_add(window.windows))
    }

    /// Seconds that probes were open.
    pub fn open_time(&self) -> f64 {
        self.windows.iter().map(|window| window.open).sum()
    }

    /// Sampled blocks, those that were freed within their window included.
    pub fn sampled(&self) -> u64 {
        self.totals
            .values()
            .fold(0, |sum, totals| sum.saturating_add(totals.sampled))
    }

    /// Memory of the process over time.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// The latest time that was passed in.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// What could not be kept.
    pub fn losses(&self) -> SurveyLosses {
        self.losses
    }

    /// The largest sampling mean met, in bytes; at least 1.
    pub fn sampling_mean(&self) -> u64 {
        self.largest_mean.max(1)
    }

    /// Every stack known, those with most surviving bytes first: the order in
    /// which to look up their functions when time is short.
    pub fn stacks(&self) -> Vec<StackId> {
        let mut bytes: HashMap<StackId, f64> =
            self.totals.keys().map(|stack| (*stack, 0.0)).collect();
        for (stack, site) in &self.sites {
            let born: f64 = site.windows.values().map(|window| window.born.bytes).sum();
            *bytes.entry(*stack).or_default() += born;
        }
        let mut stacks: Vec<(StackId, f64)> = bytes.into_iter().collect();
        stacks.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        stacks.into_iter().map(|(stack, _)| stack).collect()
    }
}

#[cfg(test)]
mod tests;
