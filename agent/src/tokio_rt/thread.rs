//! A process's threads as its memory shows them: where each one's thread
//! pointer and stack are, without stopping or asking any of them.
//!
//! The thread control block begins with its own address (System V ABI for
//! x86-64, thread-local storage variant II). glibc repeats it two words on
//! (`tcbhead_t`), musl links the blocks of all threads in a ring
//! (`struct pthread`). Further on both keep the thread's id and the bounds of
//! its stack, at places that versions have moved: the kernel's list of
//! threads and the block's own address tell which they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// Bytes of a control block that are looked at: less than glibc's and musl's
/// together with what lies behind them on the stack.
pub const BLOCK: usize = 0x900;
/// Where the thread id is looked for.
const MAX_ID_OFFSET: usize = 0x400;
/// Its known places: glibc, musl. They are believed before others.
const ID_OFFSETS: [usize; 2] = [0x2d0, 0x30];
/// Largest stack that is believed.
const MAX_STACK: u64 = 8 << 30;

/// A thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its id in its own namespace.
    pub id: u32,
    /// Thread pointer: the address of its control block.
    pub pointer: u64,
}

/// A possible control block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its address.
    pub address: u64,
    /// What is there; [`BLOCK`] bytes, or fewer at a mapping's end.
    pub bytes: Vec<u8>,
}

/// Whether the words at `address` may begin a control block. The first one
/// is known to be the address.
pub fn may_begin(address: u64, words: [u64; 4]) -> bool {
    let [own, _, third, fourth] = words;
    let is_pointer = |word: u64| word.is_multiple_of(8) && (1 << 12..1 << 47).contains(&word);
    own == address && (third == address || (is_pointer(third) && is_pointer(fourth)))
}

/// Which blocks belong to which of the process's threads; `ids` are the
/// kernel's. Without a place that holds an id of another thread in each of
/// them, nothing is believed.
pub fn identify(blocks: &[Block], ids: &BTreeSet<u32>) -> Vec<Thread> {
    let mut places: BTreeMap<usize, BTreeMap<u32, u64>> = BTreeMap::new();
    for block in blocks {
        let (words, _) = block.bytes.as_chunks::<4>();
        for (index, word) in words.iter().enumerate().take(MAX_ID_OFFSET / 4) {
            let id = u32::from_le_bytes(*word);
            if ids.contains(&id) {
                let threads = places.entry(index * 4).or_default();
                threads.entry(id).or_insert(block.address);
            }
        }
    }
    let best = places.into_iter().max_by_key(|(offset, threads)| {
        let known = ID_OFFSETS.contains(offset);
        (threads.len(), known, std::cmp::Reverse(*offset))
    });
    best.into_iter()
        .flat_map(|(_, threads)| threads)
        .map(|(id, pointer)| Thread { id, pointer })
        .collect()
}

/// The stack that a control block describes: two words, start and size, that
/// span the block itself.
pub fn stack(block: &Block) -> Option<Range<u64>> {
    let (words, _) = block.bytes.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    words.windows(2).find_map(|pair| {
        let [start, size] = pair else { return None };
        let end = start.checked_add(*size)?;
        let sound = start % 4096 == 0
            && size % 4096 == 0
            && (8192..=MAX_STACK).contains(size)
            && (*start..end).contains(&block.address);
        sound.then_some(*start..end)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(address: u64, words: &[(usize, u64)]) -> Block {
        let mut bytes = vec![0; BLOCK];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[16..24].copy_from_slice(&address.to_le_bytes());
        for (at, word) in words {
            bytes[*at..*at + 8].copy_from_slice(&word.to_le_bytes());
        }
        Block { address, bytes }
    }

    #[test]
    fn beginnings() {
        let at = 0x7f00_0000_1000;
        assert!(may_begin(at, [at, 0x5000, at, 0]), "glibc");
        assert!(
            may_begin(at, [at, 0x5000, 0x7f00_0000_2000, 0x7f00_0000_3000]),
            "musl"
        );
        assert!(!may_begin(at, [at, 0, 0, 0]));
        assert!(!may_begin(at, [at + 8, 0, at + 8, 0]));
    }

    #[test]
    fn the_place_that_names_most_threads_holds_the_id() {
        // a small number that happens to be an id lies before it
        let blocks: Vec<Block> = (0..3)
            .map(|n| block(0x1000_0000 + n * 0x1000, &[(0x40, 7), (0x2d0, 7 + n)]))
            .collect();
        let threads = identify(&blocks, &BTreeSet::from([7, 8, 9]));
        let expected: Vec<Thread> = (0..3)
            .map(|n| Thread {
                id: 7 + n as u32,
                pointer: 0x1000_0000 + n * 0x1000,
            })
            .collect();
        assert_eq!(threads, expected);
        assert!(identify(&blocks, &BTreeSet::from([1])).is_empty());
    }

    #[test]
    fn ties_go_to_the_known_place() {
        let blocks = [block(0x1000_0000, &[(0x40, 7), (0x2d0, 7), (0x300, 7)])];
        assert_eq!(identify(&blocks, &BTreeSet::from([7])).len(), 1);
    }

    #[test]
    fn the_stack_spans_its_block() {
        let (start, size) = (0x7f00_0000_0000, 0x20_0000);
        let inside = block(start + size - 0x900, &[(0x690, start), (0x698, size)]);
        assert_eq!(stack(&inside), Some(start..start + size));
        let outside = block(start + size + 0x900, &[(0x690, start), (0x698, size)]);
        assert_eq!(stack(&outside), None);
    }

    proptest! {
        #[test]
        fn arbitrary_blocks_are_no_trouble(address in any::<u64>(), bytes in proptest::collection::vec(any::<u8>(), 0..300), ids in proptest::collection::btree_set(any::<u32>(), 0..8)) {
            let block = Block { address, bytes };
            if let Some(stack) = stack(&block) {
                prop_assert!(stack.contains(&address));
            }
            prop_assert!(identify(&[block], &ids).len() <= ids.len());
        }
    }
}
