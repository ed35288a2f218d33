//! The threads' records: places in front of a table.
//!
//! Only a thread itself takes its place and gives it back, at its end.

use core::ptr;

use aya_ebpf::bindings::BPF_ANY;

use crate::{
    live::exchange,
    maps::{NEW_THREAD, THREAD_PLACE_COUNT, THREAD_PLACES, THREADS, Thread, add, open_calls},
};

/// Where a thread's record may be. Threads that are started one after the other
/// have places of their own.
#[inline(always)]
fn place_of(id: u64) -> Option<*mut Thread> {
    THREAD_PLACES.get_ptr_mut(id as u32 & (THREAD_PLACE_COUNT - 1))
}

/// The record of the running thread.
#[inline(always)]
pub(crate) fn find(id: u64) -> Option<*mut Thread> {
    let place = place_of(id)?;
    // SAFETY: a map value; volatile, as other threads change it.
    if unsafe { ptr::read_volatile(&raw const (*place).owner) } == id {
        return Some(place);
    }
    THREADS.get_ptr_mut(id)
}

/// The record of the running thread, made when it has none.
#[inline(always)]
pub(crate) fn find_or_add(id: u64) -> Option<*mut Thread> {
    if let Some(thread) = find(id) {
        return Some(thread);
    }
    let place = place_of(id)?;
    // SAFETY: a map value.
    unsafe {
        if exchange(&raw mut (*place).owner, 0, id) == 0 {
            (*place).active = 0;
            (*place).bottom = 0;
            return Some(place);
        }
    }
    let blank = NEW_THREAD.get_ptr(0)?;
    // SAFETY: a zeroed map value, never written.
    let blank = unsafe { &*blank };
    THREADS.insert(id, blank, u64::from(BPF_ANY)).ok()?;
    THREADS.get_ptr_mut(id)
}

/// Removes a thread's record, and with it a call that will not come back.
#[inline(always)]
pub(crate) fn forget(id: u64) {
    let Some(thread) = find(id) else {
        return;
    };
    // SAFETY: map values.
    unsafe {
        if (*thread).active != 0
            && let Some(open) = open_calls(id)
        {
            add(open, u64::MAX);
        }
        if let Some(place) = place_of(id)
            && ptr::read_volatile(&raw const (*place).owner) == id
        {
            ptr::write_volatile(&raw mut (*place).owner, 0);
            return;
        }
    }
    let _ = THREADS.remove(id);
}
