//! What was read of surviving blocks, and reading them again.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    capture::{
        Capture, TargetId,
        evidence::{self, Allocator, FirstRead, Request, Unreadable},
    },
    host::{
        memory::{self, Absent, Budget, Memory},
        process::Process,
    },
    ledger::{
        LiveBlock, StackId, Survivors,
        survivors::{BlockId, Sign, SurveyBlock},
    },
};

/// Blocks read again in one go.
const BATCH: usize = 128;
/// What such a batch takes at most.
const BATCH_TIME: Duration = Duration::from_millis(10);
/// Pause between two batches.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// Probes are on meanwhile, so no pauses and not for long.
const FIRST: Budget = Budget {
    bytes: 16 << 20,
    time: Duration::from_millis(40),
    pause: Duration::ZERO,
};
const AGAIN: Budget = Budget {
    bytes: 2 << 20,
    time: BATCH_TIME,
    pause: Duration::from_micros(200),
};
/// A reader that is not back by then is left behind.
const DEADLINE: Duration = Duration::from_millis(500);
/// Dead blocks of a stack that are remembered: what two of them have in
/// common identifies neither.
const MAX_DEAD: usize = 64;

/// A survivor of a window.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) block: SurveyBlock,
    first: Option<FirstRead>,
}

/// First reads of one stack's blocks.
#[derive(Default)]
struct OfStack {
    followed: HashMap<BlockId, FirstRead>,
    dead: VecDeque<FirstRead>,
}

/// First reads of the blocks that are followed.
#[derive(Default)]
pub(super) struct Reads {
    memory: Option<Arc<Memory>>,
    stacks: HashMap<StackId, OfStack>,
    skipped: BTreeMap<&'static str, u64>,
}

impl Reads {
    /// Reads blocks for the first time.
    pub(super) fn first(
        &mut self,
        process: &Process,
        capture: &Capture,
        id: TargetId,
        blocks: Vec<LiveBlock>,
    ) -> Vec<Found> {
        let mut origins: HashMap<StackId, (Allocator, bool)> = HashMap::new();
        let requests: Vec<Request> = blocks
            .iter()
            .map(|block| {
                let (allocator, over_aligned) = *origins.entry(block.stack).or_insert_with(|| {
                    let origin = capture.origin(id, block.stack.0);
                    origin.map_or((Allocator::Other, true), |origin| {
                        (Allocator::of_family(origin.family), origin.may_align)
                    })
                });
                Request {
                    allocator,
                    address: block.address,
                    requested: block.size,
                    over_aligned,
                }
            })
            .collect();
        let results = self
            .with_memory(process, move |memory| {
                evidence::first_reads(memory, &requests, FIRST)
            })
            .map(|outcome| outcome.results)
            .unwrap_or_default();
        let mut results = results.into_iter();
        blocks
            .into_iter()
            .filter_map(|block| {
                let first = match results.next() {
                    Some(Ok(first)) => Some(first),
                    Some(Err(why)) => {
                        self.skip(why);
                        // Freed behind our back, or not what it seems.
                        if matches!(why, Unreadable::AlreadyFree | Unreadable::Foreign) {
                            return None;
                        }
                        None
                    }
                    None => None,
                };
                let usable = first.as_ref().map_or(block.size, FirstRead::usable);
                Some(Found {
                    block: SurveyBlock { block, usable },
                    first,
                })
            })
            .collect()
    }

    /// Keeps what was read of those blocks that are followed, and finds out
    /// by what each can be recognised.
    pub(super) fn keep(
        &mut self,
        names: Vec<Option<BlockId>>,
        found: Vec<Found>,
        survivors: &Survivors,
    ) {
        let mut changed: Vec<StackId> = Vec::new();
        for (name, found) in names.into_iter().zip(found) {
            if let (Some(name), Some(first)) = (name, found.first) {
                let stack = found.block.block.stack;
                let of_stack = self.stacks.entry(stack).or_default();
                of_stack.followed.insert(name, first);
                changed.push(stack);
            }
        }
        // The account lets go of blocks when it is full.
        self.stacks.retain(|_, of_stack| {
            of_stack
                .followed
                .retain(|name, _| survivors.block(*name).is_some());
            !of_stack.followed.is_empty()
        });
        changed.sort_unstable();
        changed.dedup();
        for stack in changed {
            if let Some(of_stack) = self.stacks.get_mut(&stack) {
                of_stack.identify();
            }
        }
    }

    /// Reads what is due again, and tells the account.
    pub(super) fn again(&mut self, process: &Process, at: Duration, survivors: &mut Survivors) {
        let mut due: Vec<(BlockId, StackId, FirstRead)> = Vec::new();
        for name in survivors.due(at, BATCH) {
            let stack = survivors.block(name).map(|block| block.block.stack);
            let first = stack.and_then(|stack| {
                let first = self.stacks.get(&stack)?.followed.get(&name)?;
                Some((name, stack, *first))
            });
            match first {
                Some(first) => due.push(first),
                None => survivors.reading(name, at, Sign::Unknown),
            }
        }
        if due.is_empty() {
            return;
        }
        let firsts: Vec<FirstRead> = due.iter().map(|(_, _, first)| *first).collect();
        let signs = self
            .with_memory(process, move |memory| {
                evidence::again_all(memory, &firsts, AGAIN)
            })
            .map(|outcome| outcome.results)
            .unwrap_or_default();
        let mut signs = signs.into_iter();
        for (name, stack, first) in due {
            const LATER: evidence::Sign = evidence::Sign::Unknown(evidence::Doubt::Unreadable(
                Unreadable::Absent(Absent::OverBudget),
            ));
            let sign = match signs.next() {
                // It stays due.
                Some(LATER) => continue,
                Some(evidence::Sign::Alive) => Sign::Alive,
                Some(evidence::Sign::Mutated) => Sign::Mutated,
                // What a new owner may have left as it was proves no life.
                Some(evidence::Sign::Held | evidence::Sign::Unchanged) => Sign::Unchanged,
                Some(evidence::Sign::Gone(_)) => Sign::Gone,
                Some(evidence::Sign::Unknown(evidence::Doubt::Unreadable(why))) => {
                    self.skip(why);
                    Sign::Unknown
                }
                Some(evidence::Sign::Unknown(_)) | None => Sign::Unknown,
            };
            survivors.reading(name, at, sign);
            if survivors.block(name).is_none()
                && let Some(of_stack) = self.stacks.get_mut(&stack)
            {
                of_stack.followed.remove(&name);
                of_stack.remember(first);
            }
        }
    }

    /// Looks at the memory on a thread of its own, which may be left behind.
    fn with_memory<T: Send + 'static>(
        &mut self,
        process: &Process,
        look: impl FnOnce(&Memory) -> std::io::Result<T> + Send + 'static,
    ) -> Option<T> {
        if self.memory.is_none() {
            let memory = Memory::open_process(process.pid, process.start_time).ok()?;
            self.memory = Some(Arc::new(memory));
        }
        let memory = self.memory.as_ref()?;
        memory::with_deadline(memory, DEADLINE, look).ok()?.ok()
    }

    fn skip(&mut self, why: Unreadable) {
        *self.skipped.entry(cause(why)).or_default() += 1;
    }

    /// Readings that failed, by cause.
    pub(super) fn skipped(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.skipped.iter().map(|(cause, count)| (*cause, *count))
    }
}

impl OfStack {
    fn identify(&mut self) {
        let names: Vec<BlockId> = self.followed.keys().copied().collect();
        let mut firsts: Vec<FirstRead> = self
            .followed
            .values()
            .copied()
            .chain(self.dead.iter().copied())
            .collect();
        evidence::identify(&mut firsts);
        self.followed = names.into_iter().zip(firsts).collect();
    }

    fn remember(&mut self, dead: FirstRead) {
        if self.dead.len() >= MAX_DEAD {
            self.dead.pop_front();
        }
        self.dead.push_back(dead);
    }
}

fn cause(why: Unreadable) -> &'static str {
    match why {
        Unreadable::Absent(_) => "blocks_not_readable",
        Unreadable::AlreadyFree => "blocks_freed_unseen",
        Unreadable::Foreign => "blocks_of_unknown_shape",
        Unreadable::Misaligned => "blocks_misaligned",
    }
}
