//! The threads of a process: thread pointers and stacks.

use std::{collections::BTreeSet, ops::Range};

use super::readable;
use crate::{
    host::{
        heap::Heap,
        process::{self, Process},
    },
    tokio_rt::thread::{self, Block, Thread},
};

/// Control blocks that are looked at.
const MAX_BLOCKS: usize = 1 << 15;

/// What is known of a process's threads.
#[derive(Debug, Default)]
pub(super) struct Threads {
    /// Threads that the kernel lists.
    pub(super) expected: usize,
    /// Those whose control block was found.
    pub(super) known: Vec<Thread>,
    /// Their stacks, and those of ended threads that are kept for new ones.
    stacks: Vec<Range<u64>>,
}

impl Threads {
    /// Looks at possible control blocks.
    pub(super) fn find(process: &Process, heap: &Heap, addresses: &[u64]) -> Self {
        let mut blocks: Vec<Block> = Vec::new();
        for address in addresses {
            if blocks.len() >= MAX_BLOCKS {
                break;
            }
            let mut bytes = vec![0; thread::BLOCK];
            let Some(read) = readable(heap, *address, &mut bytes) else {
                continue;
            };
            let (words, _) = read.as_chunks::<8>();
            let may_begin = words
                .first_chunk::<4>()
                .is_some_and(|words| thread::may_begin(*address, words.map(u64::from_le_bytes)));
            if may_begin {
                blocks.push(Block {
                    address: *address,
                    bytes: read.to_vec(),
                });
            }
        }
        let ids = ids(process);
        let known = thread::identify(&blocks, &ids);
        let mut stacks: Vec<Range<u64>> = blocks.iter().filter_map(thread::stack).collect();
        // Where the block does not tell, the stack is what lies below it in
        // its mapping; but not of the main thread, whose stack is elsewhere.
        for thread in &known {
            let told = stacks.iter().any(|stack| stack.contains(&thread.pointer));
            if !told
                && thread.id != process.ns_pid
                && let Some(region) = heap.region(thread.pointer)
            {
                stacks.push(region.start..thread.pointer);
            }
        }
        Self {
            expected: ids.len(),
            known,
            stacks: disjoint(stacks),
        }
    }

    /// Whether an address is on some thread's stack.
    pub(super) fn is_on_stack(&self, address: u64) -> bool {
        let after = self.stacks.partition_point(|stack| stack.start <= address);
        let stack = after.checked_sub(1).and_then(|at| self.stacks.get(at));
        stack.is_some_and(|stack| stack.contains(&address))
    }
}

/// Sorted, and overlapping ones joined.
fn disjoint(mut stacks: Vec<Range<u64>>) -> Vec<Range<u64>> {
    stacks.sort_by_key(|stack| stack.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for stack in stacks {
        match joined.last_mut() {
            Some(last) if stack.start <= last.end => last.end = last.end.max(stack.end),
            _ => joined.push(stack),
        }
    }
    joined
}

/// The threads' ids as the process itself sees them.
fn ids(process: &Process) -> BTreeSet<u32> {
    let threads = process::threads(process.pid);
    if process.ns_pid == process.pid {
        return threads.into_iter().collect();
    }
    threads
        .into_iter()
        .filter_map(|thread| Some(Process::of(thread).ok()?.ns_pid))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_stacks_are_joined() {
        let stacks = disjoint(vec![50..60, 10..20, 15..30, 12..14, 30..31]);
        assert_eq!(stacks, [10..31, 50..60]);
        let threads = Threads {
            stacks,
            ..Threads::default()
        };
        let on_stack: Vec<u64> = (0..70)
            .step_by(5)
            .filter(|address| threads.is_on_stack(*address))
            .collect();
        assert_eq!(on_stack, [10, 15, 20, 25, 30, 50, 55]);
    }
}
