//! Unwinds the user stack of the current thread by `.eh_frame` rows.
//!
//! Release builds of Rust and C have no frame pointers, so the caller's frame
//! is found by rules that user space has compiled per file. A frame whose code
//! has no rule is left by its frame pointer if that looks like one.

use core::{ffi::c_void, ptr};

use agent_ebpf::abi::{
    event::{Header, MappingRecord, StackRecord},
    stack::{CHUNK_ROWS, MAX_FRAMES, MAX_MAPPINGS, Mappings, Row, StackEnd},
};
use agent_ebpf::logic::rows;
use aya_ebpf::helpers::{bpf_loop, bpf_probe_read_user};

use crate::maps::{MAPPINGS, RING, TABLES, Thread};

/// Offsets in the x86-64 signal frame: the trampoline finds `ucontext` at the
/// stack pointer; `uc_mcontext` starts 40 bytes in, one word per register
/// (arch/x86/include/uapi/asm/sigcontext.h).
const SIGNAL_RBP: u64 = 40 + 8 * 10;
const SIGNAL_RSP: u64 = 40 + 8 * 15;
const SIGNAL_RIP: u64 = 40 + 8 * 16;

/// Loop state; pointers into map values survive on the program's stack.
#[repr(C)]
struct Walk {
    ip: u64,
    sp: u64,
    bp: u64,
    mappings: *const Mappings,
    thread: *mut Thread,
    /// Index of the mapping of the last frame.
    mapping: u64,
    /// 1: `ip` is exact. 0: a return address, one past the call.
    exact: u64,
}

/// Hides a value's history from the verifier. An index that was masked stays
/// "precise": each outcome of a comparison is verified apart, which explodes
/// in a binary search. A value read back from map memory is just unknown.
#[inline(always)]
fn launder(thread: *mut Thread, value: u32) -> usize {
    // SAFETY: the thread's own map value.
    unsafe {
        ptr::write_volatile(&raw mut (*thread).scratch, u64::from(value));
        ptr::read_volatile(&raw const (*thread).scratch) as usize
    }
}

#[inline(always)]
fn read(address: u64) -> Result<u64, i32> {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_user(address as *const u64) }
}

/// One frame. Returns 1 to stop.
#[inline(never)]
extern "C" fn step(_index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: `unwind` passes its own state; the pointers in it are map values.
    unsafe {
        let walk = &mut *walk;
        let thread = walk.thread;
        let mappings = walk.mappings;
        let lookup = walk.ip.wrapping_sub(walk.exact ^ 1);

        let len = (*mappings).len;
        let mut mapping = &raw const (*mappings).list[walk.mapping as usize & (MAX_MAPPINGS - 1)];
        // Most callers are in the same file.
        if lookup < (*mapping).start || lookup >= (*mapping).end {
            let mut index: u32 = 0;
            let mut half: u32 = (MAX_MAPPINGS / 2) as u32;
            for _ in 0..8 {
                let probe = index + half;
                if probe < len
                    && (*mappings).list[launder(thread, probe) & (MAX_MAPPINGS - 1)].start <= lookup
                {
                    index = probe;
                }
                half >>= 1;
            }
            walk.mapping = launder(thread, index) as u64;
            mapping = &raw const (*mappings).list[walk.mapping as usize & (MAX_MAPPINGS - 1)];
        }
        if lookup < (*mapping).start || lookup >= (*mapping).end {
            (*thread).end = StackEnd::UnknownMapping as u64;
            return 1;
        }
        let pc = lookup.wrapping_sub((*mapping).bias) as u32;
        let Some(chunk) = TABLES.get_value((*mapping).chunk, &0) else {
            (*thread).end = StackEnd::NoUnwindRule as u64;
            return 1;
        };
        let index = rows::find(&*mapping, pc, |index| {
            chunk.rows[launder(thread, index) & (CHUNK_ROWS - 1)].pc
        });
        let row = chunk.rows[launder(thread, index) & (CHUNK_ROWS - 1)];

        let mut saved_rbp = row.rbp_offset;
        let cfa = match row.kind {
            Row::RSP => walk.sp.wrapping_add(u64::from(row.cfa_offset)),
            Row::RBP => walk.bp.wrapping_add(u64::from(row.cfa_offset)),
            // rsp + 8, and 8 more once the entry has pushed its index
            Row::PLT => walk
                .sp
                .wrapping_add(8 + if walk.ip & 15 >= 11 { 8 } else { 0 }),
            Row::END => {
                (*thread).end = StackEnd::Complete as u64;
                return 1;
            }
            Row::SIGNAL => {
                let (Ok(bp), Ok(sp), Ok(ip)) = (
                    read(walk.sp + SIGNAL_RBP),
                    read(walk.sp + SIGNAL_RSP),
                    read(walk.sp + SIGNAL_RIP),
                ) else {
                    (*thread).end = StackEnd::UnreadableStack as u64;
                    return 1;
                };
                walk.bp = bp;
                walk.sp = sp;
                walk.ip = ip;
                walk.exact = 1;
                return push(thread, ip | StackRecord::EXACT);
            }
            _ => {
                // No rule: a frame pointer points up the stack, and not far.
                if walk.bp <= walk.sp || walk.bp & 7 != 0 || walk.bp - walk.sp > 1 << 20 {
                    (*thread).end = StackEnd::NoUnwindRule as u64;
                    return 1;
                }
                saved_rbp = -2;
                walk.bp.wrapping_add(16)
            }
        };
        // A saved rbp stands next to the return address as a rule: one read
        // serves both.
        let ip = if saved_rbp == -2 {
            let Ok([bp, ip]) = bpf_probe_read_user(cfa.wrapping_sub(16) as *const [u64; 2]) else {
                (*thread).end = StackEnd::UnreadableStack as u64;
                return 1;
            };
            walk.bp = bp;
            ip
        } else {
            if saved_rbp != Row::RBP_KEPT {
                let Ok(bp) = read(cfa.wrapping_add((i64::from(saved_rbp) * 8) as u64)) else {
                    (*thread).end = StackEnd::UnreadableStack as u64;
                    return 1;
                };
                walk.bp = bp;
            }
            let Ok(ip) = read(cfa.wrapping_sub(8)) else {
                (*thread).end = StackEnd::UnreadableStack as u64;
                return 1;
            };
            ip
        };
        // musl's start code has no end mark, but a zero return address.
        if ip == 0 {
            (*thread).end = StackEnd::Complete as u64;
            return 1;
        }
        walk.sp = cfa;
        walk.ip = ip;
        walk.exact = 0;
        push(thread, ip)
    }
}

/// Appends a frame and mixes it into the hash.
#[inline(always)]
unsafe fn push(thread: *mut Thread, frame: u64) -> i64 {
    // SAFETY: the thread's own map value; the index is masked.
    unsafe {
        let count = (*thread).frame_count;
        if count >= MAX_FRAMES as u64 {
            (*thread).end = StackEnd::TooDeep as u64;
            return 1;
        }
        (*thread).frames[count as usize & (MAX_FRAMES - 1)] = frame;
        (*thread).frame_count = count + 1;
        (*thread).hash = mix((*thread).hash, frame);
    }
    0
}

#[inline(always)]
fn mix(hash: u64, value: u64) -> u64 {
    (hash.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// Unwinds from the entry of a function. Fills the thread's `frames`, `frame_count`, `end` and `hash`. `seed` keeps
/// the stacks of different processes apart.
#[inline(always)]
pub(crate) fn unwind(thread: *mut Thread, tgid: u32, seed: u64, ip: u64, sp: u64, bp: u64) {
    // SAFETY: the thread's own map value.
    unsafe {
        (*thread).frame_count = 1;
        (*thread).end = StackEnd::TooDeep as u64;
        (*thread).hash = mix(seed, ip);
        (*thread).frames[0] = ip;
        let Some(mappings) = MAPPINGS.get_ptr(tgid) else {
            (*thread).end = StackEnd::UnknownMapping as u64;
            report_unknown(tgid, ip);
            return;
        };
        // At a probed instruction of an allocating function the stack pointer
        // points at the return address, also where the function has no unwind
        // rows, as in musl.
        let Ok(caller) = read(sp) else {
            (*thread).end = StackEnd::UnreadableStack as u64;
            return;
        };
        push(thread, caller);
        let mut walk = Walk {
            ip: caller,
            sp: sp + 8,
            bp,
            mappings,
            thread,
            mapping: 0,
            exact: 0,
        };
        bpf_loop(
            MAX_FRAMES as u32,
            step as *mut c_void,
            (&raw mut walk).cast(),
            0,
        );
        if (*thread).end == StackEnd::UnknownMapping as u64 {
            report_unknown(tgid, walk.ip);
        }
        // 0 stands for "no stack kept"
        if (*thread).hash == 0 {
            (*thread).hash = 1;
        }
    }
}

/// As [`unwind`], from any instruction.
#[inline(always)]
pub(crate) fn unwind_fault(thread: *mut Thread, tgid: u32, seed: u64, ip: u64, sp: u64, bp: u64) {
    // SAFETY: a map value that no other program uses now.
    unsafe {
        (*thread).frame_count = 0;
        (*thread).end = StackEnd::TooDeep as u64;
        (*thread).hash = seed;
        push(thread, ip | StackRecord::EXACT);
        let Some(mappings) = MAPPINGS.get_ptr(tgid) else {
            (*thread).end = StackEnd::UnknownMapping as u64;
            report_unknown(tgid, ip);
            return;
        };
        let mut walk = Walk {
            ip,
            sp,
            bp,
            mappings,
            thread,
            mapping: 0,
            exact: 1,
        };
        bpf_loop(
            MAX_FRAMES as u32,
            step as *mut c_void,
            (&raw mut walk).cast(),
            0,
        );
        if (*thread).end == StackEnd::UnknownMapping as u64 {
            report_unknown(tgid, walk.ip);
        }
        // 0 stands for "no stack kept"
        if (*thread).hash == 0 {
            (*thread).hash = 1;
        }
    }
}

/// Tells user space to look at the mappings again; it limits how often.
fn report_unknown(tgid: u32, address: u64) {
    if let Some(mut entry) = RING.reserve::<MappingRecord>(0) {
        entry.write(MappingRecord {
            header: Header {
                kind: Header::MAPPING,
                tgid,
            },
            address,
        });
        entry.submit(0);
    }
}

/// Sends the thread's frames; false when the ring buffer is full.
pub(crate) fn announce(thread: *const Thread, tgid: u32, epoch: u32) -> bool {
    let Some(mut entry) = RING.reserve::<StackRecord>(0) else {
        return false;
    };
    // SAFETY: the record is reserved as a whole and written field by field;
    // `frames` is copied word by word, since a large memcpy is not inlined.
    unsafe {
        let record = entry.as_mut_ptr();
        (*record).header = Header {
            kind: Header::STACK,
            tgid,
        };
        (*record).epoch = epoch;
        (*record).end = (*thread).end as u32;
        (*record).hash = (*thread).hash;
        (*record).len = (*thread).frame_count;
        for i in 0..MAX_FRAMES {
            ptr::write_volatile(&raw mut (*record).frames[i], (*thread).frames[i]);
        }
    }
    entry.submit(0);
    true
}
