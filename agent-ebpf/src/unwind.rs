// long because the walk is one program, whose parts the compiler must see together
//! Unwinds the user stack of the current thread by `.eh_frame` rows.
//!
//! Release builds of Rust and C have no frame pointers, so the caller's frame
//! is found by rules that user space has compiled per file. A frame whose code
//! has no rule is left by its frame pointer if that looks like one.

use core::{arch::asm, ffi::c_void, ptr};

use agent_ebpf::abi::{
    event::{Header, MappingRecord, StackRecord},
    stack::{CHUNK_ROWS, MAX_FRAMES, MAX_MAPPINGS, Row, StackEnd},
};
use agent_ebpf::logic::{rows, rules};
use aya_ebpf::helpers::{bpf_loop, bpf_probe_read_user, generated};

use crate::maps::{GENERATIONS, MAPPINGS, RING, RULES, Rules, TABLES, Thread, WINDOW_WORDS};

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
    thread: *mut Thread,
    rules: *mut Rules,
    tgid: u64,
    /// Index of the mapping of the last frame.
    mapping: u64,
    /// 1: `ip` is exact. 0: a return address, one past the call.
    exact: u64,
    generation: u32,
    /// Address of two words that were not in the window.
    wanted: u64,
}

/// Frames that are followed in one go. What is below it costs a call.
const BURST: usize = 32;
/// Saved registers stand this far below the return address, as a rule.
const SAVED: u64 = 48;
const PAGE: u64 = 4096;

/// Why [`follow`] ends.
#[derive(PartialEq, Eq)]
enum Stop {
    /// It has done enough for one go.
    Later,
    /// The stack ends here.
    End,
    /// The next rule must be searched.
    Rule,
    /// The next rule is none of the two most common forms.
    Rare,
    /// The next words must be copied.
    Words,
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

/// Two neighbouring words of the window. The index is cut by an instruction
/// that the verifier sees and the compiler does not: it would turn an array in
/// a loop into a pointer that is moved on, which the verifier refuses. So that
/// no word lies outside, the window has room for two more than it is used for.
#[inline(always)]
unsafe fn words(window: *const u64, distance: u64) -> (u64, u64) {
    let (low, high): (u64, u64);
    // SAFETY: reads a map value within its bounds.
    unsafe {
        asm!(
            "{place} &= {mask}",
            "{place} += {window}",
            "{low} = *(u64 *)({place} + 0)",
            "{high} = *(u64 *)({place} + 8)",
            place = inout(reg) distance => _,
            window = in(reg) window,
            mask = const WINDOW_WORDS * 8 - 1,
            low = out(reg) low,
            high = lateout(reg) high,
            options(pure, readonly, nostack)
        );
    }
    (low, high)
}

/// `below` where the rule says that rbp is saved there, else `bp`; without a
/// branch, as each would double the ways through the loop that the verifier
/// follows.
#[inline(always)]
fn restored(rule: u64, bp: u64, below: u64) -> u64 {
    const { assert!(rules::RBP_BELOW == 1 << 24) };
    let mut bp = bp;
    // SAFETY: changes registers.
    unsafe {
        asm!(
            "{rule} <<= 63 - 24",
            "{rule} s>>= 63",
            "{below} ^= {bp}",
            "{below} &= {rule}",
            "{bp} ^= {below}",
            rule = inout(reg) rule => _,
            below = inout(reg) below => _,
            bp = inout(reg) bp,
            options(pure, nomem, nostack)
        );
    }
    bp
}

/// Sets a frame of the thread, for the same reason as [`words`].
#[inline(always)]
unsafe fn set_frame(frames: *mut u64, index: u64, frame: u64) {
    // SAFETY: writes a map value within its bounds.
    unsafe {
        asm!(
            "{place} &= {mask}",
            "{place} <<= 3",
            "{place} += {frames}",
            "*(u64 *)({place} + 0) = {frame}",
            place = inout(reg) index => _,
            frames = in(reg) frames,
            mask = const MAX_FRAMES - 1,
            frame = in(reg) frame,
            options(nostack)
        );
    }
}

#[inline(always)]
fn read(address: u64) -> Result<u64, i32> {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_user(address as *const u64) }
}

/// Goes on by rules that are remembered, as far as they lead.
#[inline(always)]
unsafe fn follow(walk: &mut Walk) -> Stop {
    // SAFETY: `unwind` passes its own state; the pointers in it are map values.
    unsafe {
        let (thread, rules) = (walk.thread, walk.rules);
        let window = (&raw const (*thread).window).cast::<u64>();
        let frames = (&raw mut (*thread).frames).cast::<u64>();
        let (mut ip, mut sp, mut bp) = (walk.ip, walk.sp, walk.bp);
        let mut count = (*thread).frame_count;
        let mut hash = (*thread).hash;
        let (start, room) = ((*thread).window_start, (*thread).window_room);
        let mut stop = Stop::Later;
        for _ in 0..BURST {
            let entry = &raw const (*rules).entries[rules::place(ip)];
            let seal = ptr::read_volatile(&raw const (*entry).seal);
            let rule = ptr::read_volatile(&raw const (*entry).rule);
            if seal != rules::seal(ip, rule, walk.generation) {
                stop = Stop::Rule;
                break;
            }
            if rule & rules::RARE != 0 {
                stop = Stop::Rare;
                break;
            }
            let cfa = sp.wrapping_add(rules::cfa_offset(rule));
            let distance = cfa.wrapping_sub(16).wrapping_sub(start);
            if distance >= room {
                walk.wanted = cfa.wrapping_sub(16);
                stop = Stop::Words;
                break;
            }
            let (below, next) = words(window, distance);
            // musl's start code has no end mark, but a zero return address.
            if next == 0 {
                (*thread).end = StackEnd::Complete as u64;
                stop = Stop::End;
                sp = cfa;
                break;
            }
            if count >= MAX_FRAMES as u64 {
                (*thread).end = StackEnd::TooDeep as u64;
                stop = Stop::End;
                break;
            }
            set_frame(frames, count, next);
            count += 1;
            hash = mix(hash, next);
            bp = restored(rule, bp, below);
            sp = cfa;
            ip = next;
        }
        walk.ip = ip;
        walk.sp = sp;
        walk.bp = bp;
        (*thread).frame_count = count;
        (*thread).hash = hash;
        stop
    }
}

/// One frame by a remembered rule of another form.
#[inline(always)]
unsafe fn follow_rare(walk: &mut Walk) -> Stop {
    // SAFETY: `unwind` passes its own state; the pointers in it are map values.
    unsafe {
        let thread = walk.thread;
        let entry = &raw const (*walk.rules).entries[rules::place(walk.ip)];
        let seal = ptr::read_volatile(&raw const (*entry).seal);
        let rule = ptr::read_volatile(&raw const (*entry).rule);
        if seal != rules::seal(walk.ip, rule, walk.generation) {
            return Stop::Rule;
        }
        if rule & rules::END != 0 {
            (*thread).end = StackEnd::Complete as u64;
            return Stop::End;
        }
        let base = if rule & rules::FROM_RBP != 0 {
            walk.bp
        } else {
            walk.sp
        };
        let cfa = base.wrapping_add(rules::cfa_offset(rule));
        walk.wanted = cfa.wrapping_sub(16);
        let (start, room) = ((*thread).window_start, (*thread).window_room);
        let distance = walk.wanted.wrapping_sub(start);
        if distance >= room {
            return Stop::Words;
        }
        let window = (&raw const (*thread).window).cast::<u64>();
        let (below, next) = words(window, distance);
        let mut bp = restored(rule, walk.bp, below);
        if rule & rules::RBP_ELSEWHERE != 0 {
            let saved = i64::from(rules::rbp_offset(rule)) * 8;
            let distance = distance.wrapping_add(16).wrapping_add(saved as u64);
            if distance >= room {
                return Stop::Rule;
            }
            bp = words(window, distance).0;
        }
        walk.bp = bp;
        walk.sp = cfa;
        if next == 0 {
            (*thread).end = StackEnd::Complete as u64;
            return Stop::End;
        }
        walk.ip = next;
        if push(thread, next) == 0 {
            Stop::Later
        } else {
            Stop::End
        }
    }
}

/// Copies the stack from an address on. False when the two words at `wanted`
/// cannot be had.
#[inline(always)]
unsafe fn open_window(thread: *mut Thread, start: u64, wanted: u64) -> bool {
    // SAFETY: a map value; the helper checks the address.
    unsafe {
        let window = (&raw mut (*thread).window).cast();
        // To where the last stack of the thread has ended. Otherwise to the end
        // of the page: the next one may not be there, and then nothing would
        // be copied.
        let mut bytes = (*thread).bottom.wrapping_sub(start);
        if bytes >= 1 << 23 {
            bytes = PAGE - (start & (PAGE - 1));
        }
        if bytes > WINDOW_WORDS as u64 * 8 {
            bytes = WINDOW_WORDS as u64 * 8;
        }
        (*thread).window_room = 0;
        if generated::bpf_probe_read_user(window, bytes as u32, start as *const c_void) != 0 {
            // Not the same stack.
            (*thread).bottom = 0;
            return false;
        }
        (*thread).window_start = start;
        ptr::write_volatile(&raw mut (*thread).window_room, bytes.saturating_sub(15));
        // Read back, it is any number to the verifier.
        wanted.wrapping_sub(start) < ptr::read_volatile(&raw const (*thread).window_room)
    }
}

/// The next frames. Returns 1 to stop.
#[inline(never)]
extern "C" fn step(_index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: `unwind` passes its own state.
    unsafe {
        let walk = &mut *walk;
        if walk.exact == 0 {
            let mut stop = follow(walk);
            if stop == Stop::Rare {
                stop = follow_rare(walk);
            }
            match stop {
                Stop::Later => return 0,
                Stop::End => return 1,
                Stop::Words => {
                    let wanted = walk.wanted;
                    let start = wanted.wrapping_sub(SAVED).max(wanted & !(PAGE - 1));
                    if open_window(walk.thread, start, wanted) {
                        return 0;
                    }
                }
                Stop::Rule | Stop::Rare => {}
            }
        }
        search(walk)
    }
}

/// One frame, by the tables. Returns 1 to stop.
#[inline(always)]
#[expect(clippy::too_many_lines, reason = "one rule after the other")]
unsafe fn search(walk: &mut Walk) -> i64 {
    // SAFETY: `unwind` passes its own state; the pointers in it are map values.
    unsafe {
        let thread = walk.thread;
        let Some(mappings) = MAPPINGS.get_ptr(walk.tgid as u32) else {
            (*thread).end = StackEnd::UnknownMapping as u64;
            return 1;
        };
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

        if walk.exact == 0
            && let Some(rule) = rules::pack(row)
        {
            let entry = &raw mut (*walk.rules).entries[rules::place(walk.ip)];
            ptr::write_volatile(
                &raw mut (*entry).seal,
                rules::seal(walk.ip, rule, (*mappings).generation),
            );
            ptr::write_volatile(&raw mut (*entry).rule, rule);
        }

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
        walk.sp = cfa;
        if ip == 0 {
            (*thread).end = StackEnd::Complete as u64;
            return 1;
        }
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
    hash.wrapping_add(value).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// Whose stack it is.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    tgid: u32,
    /// Of its mappings; 0: there are none.
    generation: u32,
}

impl Owner {
    /// The process of a target's slot. The mappings themselves are looked up
    /// when a rule is not remembered.
    #[inline(always)]
    pub(crate) fn new(tgid: u32, slot: u32) -> Self {
        let generation = GENERATIONS.get(slot).copied().unwrap_or(0);
        Self { tgid, generation }
    }
}

/// Unwinds from the entry of a function. Fills the thread's `frames`,
/// `frame_count`, `end` and `hash`. `seed` keeps the stacks of different
/// processes apart.
#[inline(always)]
pub(crate) fn unwind(thread: *mut Thread, of: Owner, seed: u64, ip: u64, sp: u64, bp: u64) {
    // SAFETY: the thread's own map value.
    unsafe {
        (*thread).frame_count = 1;
        (*thread).end = StackEnd::TooDeep as u64;
        (*thread).hash = mix(seed, ip);
        (*thread).frames[0] = ip;
        if of.generation == 0 {
            (*thread).end = StackEnd::UnknownMapping as u64;
            report_unknown(of.tgid, ip);
            return;
        }
        // At a probed instruction of an allocating function the stack pointer
        // points at the return address, also where the function has no unwind
        // rows, as in musl.
        let caller = if open_window(thread, sp, sp) {
            (*thread).window[0]
        } else if let Ok(caller) = read(sp) {
            caller
        } else {
            (*thread).end = StackEnd::UnreadableStack as u64;
            return;
        };
        push(thread, caller);
        walk(thread, of, [caller, sp + 8, bp], 0);
    }
}

/// Walks on from these `ip`, `sp` and `bp`.
#[inline(always)]
unsafe fn walk(thread: *mut Thread, of: Owner, registers: [u64; 3], exact: u64) {
    // SAFETY: map values.
    unsafe {
        let Some(rules) = RULES.get_ptr_mut(0) else {
            return;
        };
        let [ip, sp, bp] = registers;
        let mut walk = Walk {
            ip,
            sp,
            bp,
            thread,
            rules,
            tgid: u64::from(of.tgid),
            mapping: 0,
            exact,
            generation: of.generation,
            wanted: 0,
        };
        bpf_loop(
            // A frame takes a window and a search at most.
            2 * MAX_FRAMES as u32,
            step as *mut c_void,
            (&raw mut walk).cast(),
            0,
        );
        if (*thread).end == StackEnd::Complete as u64 {
            (*thread).bottom = walk.sp;
        }
        if (*thread).end == StackEnd::UnknownMapping as u64 {
            report_unknown(of.tgid, walk.ip);
        }
        // 0 stands for "no stack kept"
        if (*thread).hash == 0 {
            (*thread).hash = 1;
        }
    }
}

/// As [`unwind`], from any instruction.
#[inline(always)]
pub(crate) fn unwind_fault(thread: *mut Thread, of: Owner, seed: u64, ip: u64, sp: u64, bp: u64) {
    // SAFETY: a map value that no other program uses now.
    unsafe {
        (*thread).frame_count = 0;
        (*thread).end = StackEnd::TooDeep as u64;
        (*thread).hash = seed;
        push(thread, ip | StackRecord::EXACT);
        if of.generation == 0 {
            (*thread).end = StackEnd::UnknownMapping as u64;
            report_unknown(of.tgid, ip);
            return;
        }
        // The memory served another thread before.
        (*thread).bottom = 0;
        (*thread).window_room = 0;
        walk(thread, of, [ip, sp, bp], 1);
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
