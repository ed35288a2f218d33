//! Reading many blocks in one go.

use std::{collections::BTreeMap, io};

use super::{
    Doubt, Gone, Sign, Unreadable,
    facts::{Allocator, Mark},
    fingerprint::{self, FirstRead, PROBES},
    judgement::judge,
    state::{self, Refusal},
};
use crate::host::memory::{Absent, Budget, Memory, PAGE, Pages};

/// Pages fetched before the blocks in them are looked at: few, because a look
/// may need further ones, and must not find the budget spent on pages of
/// other blocks.
const MAX_PAGES: usize = 16;
/// Smallest alignment that mimalloc's size classes do not have by themselves.
const ALIGNED: u64 = 32;
/// Bytes before a block that allocators use.
const BEFORE: u64 = 16;

/// A block to be read for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose block it is.
    pub allocator: Allocator,
    /// What the allocator returned.
    pub address: u64,
    /// What was asked for, in bytes.
    pub requested: u64,
    /// It may have been asked for with an alignment above 16 bytes: by
    /// `posix_memalign` and its like. A hint that costs little when it is set
    /// too often; left out wrongly, it can make a freed block of mimalloc look
    /// alive, whose aligned blocks do not begin where its free writes.
    pub over_aligned: bool,
}

/// What a round has read.
#[derive(Clone, Debug)]
pub struct Outcome<T> {
    /// One per block, in the caller's order.
    pub results: Vec<T>,
    /// Blocks that could not be read, by cause.
    pub skipped: BTreeMap<Unreadable, u64>,
    /// Bytes read of the target.
    pub bytes: u64,
    /// Reads they took.
    pub reads: u64,
}

/// Reads blocks for the first time. Fewest reads for blocks close together;
/// order does not matter.
///
/// # Errors
/// When the target's mappings cannot be read.
pub fn first_reads(
    memory: &Memory,
    blocks: &[Request],
    budget: Budget,
) -> io::Result<Outcome<Result<FirstRead, Unreadable>>> {
    round(
        memory,
        blocks,
        budget,
        |block| places(block.address, block.requested),
        first_read,
        |result| result.as_ref().err().copied(),
    )
}

/// Reads blocks again.
///
/// # Errors
/// When the target's mappings cannot be read.
pub fn again_all(
    memory: &Memory,
    blocks: &[FirstRead],
    budget: Budget,
) -> io::Result<Outcome<Sign>> {
    round(
        memory,
        blocks,
        budget,
        |block| places(block.address, block.requested),
        again,
        |sign| match sign {
            Sign::Unknown(Doubt::Unreadable(why)) => Some(*why),
            _ => None,
        },
    )
}

fn round<B, T>(
    memory: &Memory,
    blocks: &[B],
    budget: Budget,
    places: impl Fn(&B) -> Vec<u64>,
    mut look: impl FnMut(&mut Pages<'_>, &B) -> T,
    unreadable: impl Fn(&T) -> Option<Unreadable>,
) -> io::Result<Outcome<T>> {
    let mut pages = Pages::new(memory, budget)?;
    let mut order: Vec<(Vec<u64>, usize)> = blocks
        .iter()
        .enumerate()
        .map(|(index, block)| (places(block), index))
        .collect();
    order.sort_unstable();
    let mut looked: Vec<(usize, T)> = Vec::with_capacity(blocks.len());
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        // As many blocks as fit; every block has far fewer pages than that.
        let mut wanted: Vec<u64> = Vec::new();
        let mut count = 0;
        for (numbers, _) in rest {
            if count > 0 && wanted.len() + numbers.len() > MAX_PAGES {
                break;
            }
            wanted.extend(numbers);
            count += 1;
        }
        wanted.sort_unstable();
        pages.forget();
        pages.fetch(&wanted);
        let (now, later) = rest.split_at(count);
        for (_, index) in now {
            if let Some(block) = blocks.get(*index) {
                looked.push((*index, look(&mut pages, block)));
            }
        }
        rest = later;
    }
    looked.sort_unstable_by_key(|(index, _)| *index);
    let results: Vec<T> = looked.into_iter().map(|(_, result)| result).collect();
    let mut skipped = BTreeMap::new();
    for why in results.iter().filter_map(unreadable) {
        *skipped.entry(why).or_default() += 1;
    }
    Ok(Outcome {
        results,
        skipped,
        bytes: pages.bytes,
        reads: pages.reads,
    })
}

/// Numbers of the pages that a block will be looked at in, sorted.
fn places(address: u64, requested: u64) -> Vec<u64> {
    let end = address.saturating_add(requested);
    let mut numbers: Vec<u64> = fingerprint::offsets(requested, requested)
        .into_iter()
        .flatten()
        .flat_map(|offset| [offset, offset + 7])
        .map(|offset| address.saturating_add(offset))
        .chain([address.saturating_sub(BEFORE), end.saturating_add(8)])
        .map(|place| place / PAGE)
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Reads one block for the first time.
///
/// # Errors
/// When it cannot be read, or is not what it should be.
pub fn first_read(pages: &mut Pages<'_>, block: &Request) -> Result<FirstRead, Unreadable> {
    let Request {
        allocator,
        address,
        requested,
        over_aligned,
    } = *block;
    if !address.is_multiple_of(8) {
        return Err(Unreadable::Misaligned);
    }
    let start =
        state::start(pages, allocator, address, requested).map_err(|refusal| match refusal {
            Refusal::Absent(why) => Unreadable::Absent(why),
            Refusal::Free => Unreadable::AlreadyFree,
            Refusal::Foreign => Unreadable::Foreign,
        })?;
    let mut first = FirstRead {
        allocator,
        address,
        requested,
        usable: start.usable,
        header: start.header,
        words: [0; PROBES],
        read: 0,
        telling: 0,
        identifying: 0,
        marked: start.marked,
        written: 0,
        is_born: false,
        unlinked: over_aligned
            && allocator == Allocator::Mimalloc
            && address.is_multiple_of(ALIGNED),
    };
    let (values, absent) = values(pages, &first);
    first.take(&values);
    match absent.first() {
        Some((_, why)) if first.read == 0 => Err(Unreadable::Absent(*why)),
        _ => Ok(first),
    }
}

/// Reads one block again.
pub fn again(pages: &mut Pages<'_>, first: &FirstRead) -> Sign {
    let (values, absent) = values(pages, first);
    let mut missing = None;
    for (index, why) in absent {
        if first.read & 1 << index == 0 {
            continue;
        }
        // It was there, and a page of its own does not vanish by itself.
        match why {
            Absent::Hole => return Sign::Gone(Gone::Purged),
            Absent::Unmapped => return Sign::Gone(Gone::Unmapped),
            _ => missing = Some(why),
        }
    }
    let unreadable = |why| Sign::Unknown(Doubt::Unreadable(Unreadable::Absent(why)));
    let (read, same) = first.same(&values);
    let state = match state::now(pages, first, same) {
        Ok(state) => state,
        Err(Absent::Hole) => return Sign::Gone(Gone::Purged),
        Err(Absent::Unmapped) => return Sign::Gone(Gone::Unmapped),
        Err(why) => return unreadable(why),
    };
    match (missing, judge(first, state, read, same, destroyed(first))) {
        (_, Sign::Gone(Gone::Reused)) if first.identifying & !read != 0 => {
            unreadable(missing.unwrap_or(Absent::Failed))
        }
        (Some(why), Sign::Unknown(Doubt::Plain)) if first.identifying != 0 => unreadable(why),
        (_, sign) => sign,
    }
}

/// Words that no free of this block leaves intact.
fn destroyed(first: &FirstRead) -> u32 {
    const MMAPPED: u64 = 2;
    let facts = first.allocator.facts();
    if facts.mark == Mark::LinkAndChunks && first.header & MMAPPED != 0 {
        return u32::MAX;
    }
    if first.unlinked {
        return 0;
    }
    (1 << facts.words_destroyed(first.usable)) - 1
}

type Values = [Option<u64>; PROBES];

/// The block's words, and why some could not be read.
fn values(pages: &mut Pages<'_>, first: &FirstRead) -> (Values, Vec<(usize, Absent)>) {
    let mut values = [None; PROBES];
    let mut absent = Vec::new();
    for (index, (slot, offset)) in values.iter_mut().zip(first.offsets()).enumerate() {
        let Some(offset) = offset else { continue };
        match pages.word(first.address.saturating_add(offset)) {
            Ok(word) => *slot = Some(word),
            Err(why) => absent.push((index, why)),
        }
    }
    (values, absent)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Of large blocks the headers tell, which lie in further pages: however
    /// little time there is, some of the blocks are done.
    #[test]
    fn every_round_gets_on() {
        const BATCH: usize = 128;
        let blocks: Vec<Vec<u8>> = (0..1000_usize)
            .map(|index| vec![index as u8; 2000 + index])
            .collect();
        let requests: Vec<Request> = blocks
            .iter()
            .map(|block| Request {
                allocator: Allocator::Glibc,
                address: block.as_ptr() as u64,
                requested: block.len() as u64,
                over_aligned: false,
            })
            .collect();
        let memory = Memory::open(std::process::id()).unwrap();
        let plenty = Budget {
            bytes: 64 << 20,
            time: Duration::from_secs(10),
            pause: Duration::ZERO,
        };
        let outcome = first_reads(&memory, &requests, plenty).unwrap();
        let mut left: Vec<FirstRead> = outcome.results.into_iter().flatten().collect();
        assert!(left.len() > blocks.len() / 2, "{:?}", outcome.skipped);
        let little = Budget {
            bytes: 2 << 20,
            time: Duration::from_millis(10),
            pause: Duration::from_millis(1),
        };
        let end = Instant::now() + Duration::from_secs(20);
        while !left.is_empty() {
            assert!(Instant::now() < end, "{} are never read", left.len());
            let later = left.split_off(left.len().min(BATCH));
            let signs = again_all(&memory, &left, little).unwrap().results;
            let over = |sign: &Sign| {
                matches!(
                    sign,
                    Sign::Unknown(Doubt::Unreadable(Unreadable::Absent(Absent::OverBudget)))
                )
            };
            let mut signs = signs.iter();
            left.retain(|_| signs.next().is_some_and(over));
            left.extend(later);
        }
    }
}
