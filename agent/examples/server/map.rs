//! A map of everything ever seen.

use std::collections::HashMap;

use super::{truth::Loss, work::payload};

/// Entries that the healthy twin keeps.
const BOUND: u64 = 256;

#[derive(Default)]
pub(super) struct Memory {
    entries: HashMap<u64, Vec<u8>>,
    next: u64,
}

/// Stores a payload under a new key.
#[inline(never)]
pub(super) fn remember(memory: &mut Memory, size: usize, broken: bool) -> Loss {
    let key = memory.next;
    memory.next += 1;
    let before = table_bytes(&memory.entries);
    memory.entries.insert(key, payload(size));
    if !broken && let Some(oldest) = key.checked_sub(BOUND) {
        memory.entries.remove(&oldest);
    }
    let table = table_bytes(&memory.entries).saturating_sub(before);
    Loss {
        bytes: size as u64,
        blocks: 1,
        overhead: table,
    }
}

/// Size of the map's own block: a power of two of slots, one control byte each
/// and a group of them more; seven slots of eight may be used (hashbrown).
fn table_bytes(entries: &HashMap<u64, Vec<u8>>) -> u64 {
    let slots = (entries.capacity() as u64 * 8)
        .div_ceil(7)
        .next_power_of_two();
    if entries.capacity() == 0 {
        0
    } else {
        slots * (size_of::<(u64, Vec<u8>)>() as u64 + 1) + 16
    }
}
