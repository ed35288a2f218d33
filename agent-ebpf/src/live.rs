//! The live blocks: places in front of a table.
//!
//! The table's operations are calls into the kernel that take locks; most
//! blocks find the place free that their address leads to, and a place is
//! taken by one instruction. A block is in its place or in the table, never in
//! both: who puts it in has looked in both, and its address has no second
//! owner until it is taken out.

use core::{arch::asm, ptr};

use agent_ebpf::abi::{
    heap::{Block, BlockKey},
    place::{self, BUSY, BlockPlace, EMPTY, IN_PLACE, IN_TABLE},
};
use aya_ebpf::bindings::BPF_NOEXIST;

use crate::maps::{COUNTERS, LIVE, PLACES, add};

/// The key is there already.
pub(crate) const EXISTS: i32 = -17;

/// Puts `new` in if the word is `expected`; what it was before.
#[inline(always)]
pub(crate) unsafe fn exchange(word: *mut u64, expected: u64, new: u64) -> u64 {
    let mut found = expected;
    // The target is said to lack atomics, see `add`.
    // SAFETY: an aligned word of a map value.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") found,
            options(nostack)
        );
    }
    found
}

/// Counts the live blocks at some addresses, this one among them.
#[inline(always)]
fn counter(address: u64) -> Option<*mut u64> {
    let counters = COUNTERS.get_ptr_mut(0)?;
    // SAFETY: a map value; the index is below the number of counters.
    Some(unsafe { &raw mut (*counters).counters[place::counter(address)] })
}

/// Where a target's block would be.
#[inline(always)]
fn place_of(slot: u32, key: &BlockKey) -> Option<(*mut BlockPlace, u64)> {
    let name = place::name(slot, key.epoch, key.address)?;
    Some((PLACES.get_ptr_mut(place::index(name))?, name))
}

/// Whether surely no live block has this address: most blocks are not
/// recorded, and then nothing else needs to be looked up.
#[inline(always)]
pub(crate) fn none_at(address: u64) -> bool {
    // SAFETY: a map value; volatile, as other programs change it.
    counter(address).is_none_or(|counter| unsafe { ptr::read_volatile(counter) } == 0)
}

/// Takes a live block out into `block`; false when there is none.
#[inline(always)]
pub(crate) fn take_out(slot: u32, key: &BlockKey, block: &mut Block) -> bool {
    let Some(counter) = counter(key.address) else {
        return false;
    };
    // SAFETY: map values; volatile, as other programs change them.
    unsafe {
        let here = ptr::read_volatile(counter);
        if here == 0 {
            return false;
        }
        if let Some((place, name)) = place_of(slot, key)
            && ptr::read_volatile(&raw const (*place).name) == name
            && exchange(&raw mut (*place).name, name, BUSY) == name
        {
            *block = (*place).block;
            let tgid = (*place).tgid;
            add(counter, IN_PLACE.wrapping_neg());
            ptr::write_volatile(&raw mut (*place).name, EMPTY);
            // Else a former owner of the slot has left it.
            return tgid == key.tgid;
        }
        if here < IN_TABLE {
            return false;
        }
        let Some(found) = LIVE.get_ptr(key) else {
            return false;
        };
        *block = *found;
        // Another program may have been faster.
        let removed = LIVE.remove(key).is_ok();
        if removed {
            add(counter, IN_TABLE.wrapping_neg());
        }
        removed
    }
}

/// Adds a live block, unless the key is there already.
#[inline(always)]
pub(crate) fn put_in(slot: u32, key: &BlockKey, block: &Block) -> Result<(), i32> {
    let counter = counter(key.address).ok_or(-2)?;
    // SAFETY: map values; volatile, as other programs change them.
    unsafe {
        if let Some((place, name)) = place_of(slot, key) {
            if ptr::read_volatile(counter) >= IN_TABLE && LIVE.get_ptr(key).is_some() {
                return Err(EXISTS);
            }
            let found = exchange(&raw mut (*place).name, EMPTY, BUSY);
            if found == name {
                return Err(EXISTS);
            }
            if found == EMPTY {
                // In this order, which only volatile writes keep.
                ptr::write_volatile(&raw mut (*place).block.born_ns, block.born_ns);
                ptr::write_volatile(&raw mut (*place).block.size, block.size);
                ptr::write_volatile(&raw mut (*place).block.stack, block.stack);
                ptr::write_volatile(&raw mut (*place).block.task, block.task);
                ptr::write_volatile(&raw mut (*place).block.mean, block.mean);
                ptr::write_volatile(&raw mut (*place).tgid, key.tgid);
                ptr::write_volatile(&raw mut (*place).epoch, key.epoch);
                // Counted first: it must never be found uncounted.
                add(counter, IN_PLACE);
                ptr::write_volatile(&raw mut (*place).name, name);
                return Ok(());
            }
        }
        add(counter, IN_TABLE);
        let inserted = LIVE.insert(key, block, u64::from(BPF_NOEXIST));
        if inserted.is_err() {
            add(counter, IN_TABLE.wrapping_neg());
        }
        inserted
    }
}
