//! Probes of the malloc family: where a function is entered, where its result
//! can be read before it returns, and where a block is given back. No return
//! address is touched (SAFE-1).

use core::{arch::asm, ffi::c_void};

use agent_ebpf::{
    abi::{
        heap::{Block, BlockKey, Cookie, FunctionKind, Target, TargetCounts},
        loss::Loss,
        result::ResultCookie,
        stack::StackEnd,
    },
    logic::sampling,
};
use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_probe_read_user,
        generated::bpf_get_attach_cookie,
    },
};

use super::task;
use crate::{
    live::{EXISTS, none_at, put_in, take_out},
    maps::{COUNTS, EPOCHS, SAMPLER, TARGETS, Thread, add, open_calls},
    sites, threads, unwind,
};

/// A call that takes longer than this is taken for one that never returned.
const ABANDONED_NS: u64 = 100_000_000;
/// Added to a counter, takes one off.
const LESS: u64 = u64::MAX;

/// Reads one field of the kernel's register set. The verifier takes only
/// constant offsets, and the compiler would choose among pointers first.
macro_rules! field {
    ($context:expr, $name:ident) => {{
        let value: u64;
        asm!(
            "{0} = *(u64 *)({1} + {2})",
            out(reg) value,
            in(reg) $context,
            const core::mem::offset_of!(pt_regs, $name),
            options(pure, readonly, nostack),
        );
        value
    }};
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn heap_call(ctx: *mut c_void) -> u32 {
    // SAFETY: the kernel's own context.
    let cookie = unsafe { bpf_get_attach_cookie(ctx) };
    if cookie & 0xff == ResultCookie::KIND {
        answer(ctx, ResultCookie(cookie));
    } else {
        enter(ctx);
    }
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn heap_free(ctx: *mut c_void) -> u32 {
    release(ctx);
    0
}

/// What a probe needs to know of its process; none when the slot has changed
/// hands.
struct Scene {
    target: *const Target,
    counts: *mut TargetCounts,
    cookie: Cookie,
    thread_id: u64,
    tgid: u32,
}

impl Scene {
    /// The target's epoch; most calls need none.
    #[inline(always)]
    fn epoch(&self) -> Option<u32> {
        EPOCHS.get(self.cookie.slot()).copied()
    }
}

#[inline(always)]
fn scene(ctx: *mut c_void, thread_id: u64) -> Option<Scene> {
    // SAFETY: the kernel's own context.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx) });
    let target = TARGETS.get_ptr(cookie.slot())?;
    let tgid = (thread_id >> 32) as u32;
    // SAFETY: a map value.
    if unsafe { (*target).tgid } != tgid {
        return None;
    }
    let counts = COUNTS.get_ptr_mut(cookie.slot())?;
    Some(Scene {
        target,
        counts,
        cookie,
        thread_id,
        tgid,
    })
}

/// Counts the hit if its instruction is single-stepped: most are not.
#[inline(always)]
fn count_step(scene: &Scene) {
    if scene.cookie.is_stepped() {
        // SAFETY: a map value.
        add(unsafe { &raw mut (*scene.counts).stepped }, 1);
    }
}

#[inline(always)]
fn lose(counts: *mut TargetCounts, cause: Loss) {
    // SAFETY: a map value; the index is a constant.
    add(unsafe { &raw mut (*counts).lost[cause as usize] }, 1);
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// True once per sample point on the stream of allocated bytes.
#[inline(always)]
fn is_sampled(size: u64, mean: u64, scale: u64) -> bool {
    if mean <= 1 {
        return true;
    }
    if mean == Target::COUNT_ONLY {
        return false;
    }
    let Some(left) = SAMPLER.get_ptr_mut(0) else {
        return false;
    };
    let distance = sampling::distance(size, mean, scale);
    // SAFETY: a map value of this CPU. A preemption between the read and the
    // write draws one gap twice, which leaves the law as it is.
    unsafe {
        if distance < *left {
            *left -= distance;
            return false;
        }
        *left = sampling::gap(bpf_get_prandom_u32());
    }
    true
}

#[inline(always)]
fn enter(ctx: *mut c_void) {
    let Some(scene) = scene(ctx, bpf_get_current_pid_tgid()) else {
        return;
    };
    count_step(&scene);
    // SAFETY: the kernel's register set and map values.
    unsafe {
        let sp = field!(ctx, rsp);
        let kind = scene.cookie.kind();
        let first = register(ctx, scene.cookie.argument(0));
        let second = || register(ctx, scene.cookie.argument(1));
        let third = || register(ctx, scene.cookie.argument(2));
        let (size, old) = match FunctionKind::from_number(kind) {
            Some(FunctionKind::Calloc | FunctionKind::CallocAligned) => {
                (first.wrapping_mul(second()), 0)
            }
            Some(FunctionKind::Realloc | FunctionKind::ReallocAligned) => (second(), first),
            Some(FunctionKind::Reallocarray) => (second().wrapping_mul(third()), first),
            Some(FunctionKind::AlignedAlloc) => (second(), 0),
            Some(FunctionKind::PosixMemalign) => (third(), 0),
            _ => (first, 0),
        };

        let Some(open) = open_calls(scene.thread_id) else {
            return;
        };
        let known = open_thread(open, scene.thread_id);
        if let Some(thread) = known
            && (*thread).active != 0
        {
            if is_inside(thread, sp) {
                return;
            }
            // It never came back.
            (*thread).active = 0;
            add(open, LESS);
            lose(scene.counts, Loss::CallAbandoned);
        }

        add(&raw mut (*scene.counts).allocations, 1);
        add(&raw mut (*scene.counts).allocated_bytes, size);
        if old != 0 {
            add(&raw mut (*scene.counts).frees, 1);
        }

        let mean = (*scene.target).mean;
        let sampled = is_sampled(size, mean, (*scene.target).scale);
        if !sampled && old == 0 && !scene.cookie.may_nest() {
            return;
        }
        let Some(epoch) = scene.epoch() else {
            return;
        };
        let old_key = BlockKey {
            tgid: scene.tgid,
            epoch,
            address: old,
        };
        // Taken out now: as soon as the old block is released, another thread
        // may own its address.
        let mut old_block = Block::NONE;
        let has_old = old != 0 && take_out(scene.cookie.slot(), &old_key, &mut old_block);
        if !sampled && !has_old && !scene.cookie.may_nest() {
            return;
        }
        let Some(thread) = known.or_else(|| threads::find_or_add(scene.thread_id)) else {
            lose(scene.counts, Loss::ThreadsFull);
            // Its return will not be seen, so the old block counts as freed.
            if has_old {
                account_free(&old_block, scene.counts);
            }
            return;
        };
        let thread = &mut *thread;
        thread.has_old = u64::from(has_old);
        thread.old_address = old;
        if has_old {
            thread.old = old_block;
        }
        thread.sp = sp;
        thread.caller = bpf_probe_read_user(sp as *const u64).unwrap_or(0);
        thread.entered_ns = now();
        thread.size = size;
        thread.kind = u64::from(kind);
        thread.result = first;
        thread.mean = mean;
        thread.sampled = u64::from(sampled);
        if sampled {
            thread.task = task::current(&(*scene.target).task_id).unwrap_or_else(|_| {
                lose(scene.counts, Loss::UnreadableTaskId);
                0
            });
            let seed = (u64::from(scene.tgid) << 32) | u64::from(epoch);
            let of = unwind::Owner::new(scene.tgid, scene.cookie.slot());
            unwind::unwind(thread, of, seed, field!(ctx, rip), sp, field!(ctx, rbp));
            thread.stack = site(thread, &scene, epoch);
        }
        thread.active = 1;
        add(open, 1);
    }
}

/// The thread's record, if it may have an open call.
#[inline(always)]
unsafe fn open_thread(open: *mut u64, id: u64) -> Option<*mut Thread> {
    // SAFETY: a map value; volatile, as other threads change it.
    if unsafe { core::ptr::read_volatile(open) } == 0 {
        return None;
    }
    threads::find(id)
}

/// Whether a call at this stack pointer was made by the open call of the
/// thread: from a deeper stack on which the open call's return address still
/// stands. Behind an exception, other frames lie there.
#[inline(always)]
unsafe fn is_inside(thread: *const Thread, sp: u64) -> bool {
    // SAFETY: a map value; the helper checks the address itself.
    unsafe {
        sp < (*thread).sp
            && now().wrapping_sub((*thread).entered_ns) < ABANDONED_NS
            && bpf_probe_read_user((*thread).sp as *const u64) == Ok((*thread).caller)
    }
}

/// Whether the open call of the thread, if there is one, moves a block: then it
/// has counted the free that it makes now.
#[inline(always)]
unsafe fn is_moving(id: u64, sp: u64) -> bool {
    // SAFETY: map values.
    unsafe {
        open_calls(id)
            .and_then(|open| open_thread(open, id))
            .is_some_and(|thread| {
                (*thread).active != 0
                    && FunctionKind::from_number((*thread).kind as u8)
                        .is_some_and(FunctionKind::moves)
                    && is_inside(thread, sp)
            })
    }
}

/// Makes the stack's site known; its hash, or 0 when it cannot be kept.
#[inline(always)]
fn site(thread: *mut Thread, scene: &Scene, epoch: u32) -> u64 {
    // SAFETY: map values.
    unsafe {
        let hash = (*thread).hash;
        if let Some(site) = sites::find(hash) {
            if (*site).announced == 0 {
                (*site).announced = u64::from(unwind::announce(thread, scene.tgid, epoch));
                if (*site).announced == 0 {
                    lose(scene.counts, Loss::RingFull);
                }
            }
            count_end(thread, scene.counts);
            return hash;
        }
        count_end(thread, scene.counts);
        let announced = unwind::announce(thread, scene.tgid, epoch);
        if !announced {
            lose(scene.counts, Loss::RingFull);
        }
        if sites::add(hash, scene.tgid, epoch, announced) {
            hash
        } else {
            lose(scene.counts, Loss::SitesFull);
            0
        }
    }
}

/// Counts stacks that do not reach the thread's start.
#[inline(always)]
fn count_end(thread: *const Thread, counts: *mut TargetCounts) {
    // SAFETY: a map value.
    let end = unsafe { (*thread).end };
    if end == StackEnd::Complete as u64 {
        return;
    }
    lose(
        counts,
        match StackEnd::from_number(end as u32) {
            StackEnd::UnknownMapping => Loss::UnknownMapping,
            StackEnd::NoUnwindRule => Loss::NoUnwindRule,
            StackEnd::TooDeep => Loss::StackTooDeep,
            _ => Loss::UnreadableStack,
        },
    );
}

/// A register of the target, by the number that x86-64 gives it.
#[inline(always)]
fn register(context: *mut c_void, number: u8) -> u64 {
    // SAFETY: aligned words of the register set that the kernel passes.
    unsafe {
        match number {
            0 => field!(context, rax),
            1 => field!(context, rcx),
            2 => field!(context, rdx),
            3 => field!(context, rbx),
            4 => field!(context, rsp),
            5 => field!(context, rbp),
            6 => field!(context, rsi),
            7 => field!(context, rdi),
            8 => field!(context, r8),
            9 => field!(context, r9),
            10 => field!(context, r10),
            11 => field!(context, r11),
            12 => field!(context, r12),
            13 => field!(context, r13),
            14 => field!(context, r14),
            _ => field!(context, r15),
        }
    }
}

/// At a result point: ends the open call of the thread, if it is this one.
#[inline(always)]
fn answer(ctx: *mut c_void, cookie: ResultCookie) {
    let thread_id = bpf_get_current_pid_tgid();
    // Whosever call it is, it has cost that much.
    if Cookie(cookie.0).is_stepped()
        && let Some(scene) = scene(ctx, thread_id)
    {
        count_step(&scene);
    }
    let Some(open) = open_calls(thread_id) else {
        return;
    };
    // SAFETY: the kernel's register set and map values.
    unsafe {
        let Some(thread) = open_thread(open, thread_id) else {
            return;
        };
        let thread = &mut *thread;
        let base = register(ctx, if cookie.from_rbp() { 5 } else { 4 });
        // Other calls pass here too: inner ones, and those of other functions
        // that share this code.
        if thread.active == 0
            || thread.sp != base.wrapping_add(cookie.distance())
            || !cookie.holds(field!(ctx, eflags))
        {
            return;
        }
        thread.active = 0;
        add(open, LESS);
        let Some(scene) = scene(ctx, thread_id) else {
            return;
        };
        let kind = cookie.answer();
        if kind == ResultCookie::HANDED_OVER {
            hand_over(thread, &scene);
            return;
        }
        let value = register(ctx, cookie.register()).wrapping_add(cookie.add());
        let read = if kind == ResultCookie::UNKNOWN {
            Err(0)
        } else if kind == ResultCookie::NULL {
            Ok(0)
        } else if kind == ResultCookie::MEMORY {
            bpf_probe_read_user(value as *const u64)
        } else if thread.kind != FunctionKind::PosixMemalign as u64 {
            Ok(value)
        } else if value as u32 != 0 {
            Ok(0)
        } else {
            bpf_probe_read_user(thread.result as *const u64)
        };
        let Ok(address) = read else {
            lose(scene.counts, Loss::UnreadableResult);
            return;
        };
        end(thread, &scene, address);
    }
}

/// The call goes on as another function's, where it is counted anew.
#[inline(always)]
fn hand_over(thread: &mut Thread, scene: &Scene) {
    // SAFETY: map values.
    unsafe {
        add(&raw mut (*scene.counts).allocations, LESS);
        add(
            &raw mut (*scene.counts).allocated_bytes,
            thread.size.wrapping_neg(),
        );
        if thread.old_address != 0 {
            add(&raw mut (*scene.counts).frees, LESS);
        }
    }
    put_back(thread, scene);
}

/// The old block of a realloc that did not move it lives on, unless its address
/// has a new owner by now.
#[inline(always)]
fn put_back(thread: &mut Thread, scene: &Scene) {
    let Some(epoch) = scene.epoch().filter(|_| thread.has_old != 0) else {
        return;
    };
    let key = BlockKey {
        tgid: scene.tgid,
        epoch,
        address: thread.old_address,
    };
    let _ = put_in(scene.cookie.slot(), &key, &thread.old);
}

/// Enters what a call has returned into the tables.
#[inline(always)]
fn end(thread: &mut Thread, scene: &Scene, address: u64) {
    // SAFETY: map values.
    unsafe {
        let Some(epoch) = scene.epoch() else {
            return;
        };
        if address == 0 && thread.size == 0 && thread.old_address != 0 {
            // Counted as an allocation and a free, it was but a free.
            add(&raw mut (*scene.counts).frees, 1);
        }
        if thread.has_old != 0 {
            if address == 0 && thread.size != 0 {
                put_back(thread, scene);
            } else {
                account_free(&thread.old, scene.counts);
            }
        }
        if thread.sampled == 0 || address == 0 {
            return;
        }
        let key = BlockKey {
            tgid: scene.tgid,
            epoch,
            address,
        };
        let block = Block {
            size: thread.size,
            born_ns: thread.entered_ns,
            stack: thread.stack,
            task: thread.task,
            mean: thread.mean,
        };
        record(scene.cookie.slot(), &key, &block, scene.counts);
    }
}

#[inline(always)]
fn record(slot: u32, key: &BlockKey, block: &Block, counts: *mut TargetCounts) {
    if let Err(code) = put_in(slot, key, block) {
        if code != EXISTS {
            lose(counts, Loss::BlocksFull);
            return;
        }
        // The address is handed out again, so its earlier block is gone.
        lose(counts, Loss::FreeMissed);
        let mut stale = Block::NONE;
        if take_out(slot, key, &mut stale) {
            account_free(&stale, counts);
        }
        if put_in(slot, key, block).is_err() {
            lose(counts, Loss::BlocksFull);
            return;
        }
    }
    // SAFETY: map values.
    unsafe {
        add(&raw mut (*counts).sampled, 1);
        if let Some(site) = sites::find(block.stack) {
            add(&raw mut (*site).allocated, 1);
            add(&raw mut (*site).allocated_bytes, block.size);
        }
    }
}

#[inline(always)]
fn account_free(block: &Block, counts: *mut TargetCounts) {
    // SAFETY: map values.
    unsafe {
        add(&raw mut (*counts).sampled_frees, 1);
        let Some(site) = sites::find(block.stack) else {
            return;
        };
        let life = now().wrapping_sub(block.born_ns);
        add(&raw mut (*site).freed, 1);
        add(&raw mut (*site).freed_bytes, block.size);
        add(&raw mut (*site).lives_us, life / 1000);
        // Two threads may both see a shorter value: the longest life can be
        // short by one free, which the next one of that length mends.
        if life > (*site).longest_life_ns {
            (*site).longest_life_ns = life;
        }
    }
}

#[inline(always)]
fn release(ctx: *mut c_void) {
    let Some(scene) = scene(ctx, bpf_get_current_pid_tgid()) else {
        return;
    };
    count_step(&scene);
    // SAFETY: the kernel's register set and map values.
    unsafe {
        let address = register(ctx, scene.cookie.argument(0));
        if address == 0 {
            return;
        }
        if !(scene.cookie.may_nest() && is_moving(scene.thread_id, field!(ctx, rsp))) {
            add(&raw mut (*scene.counts).frees, 1);
        }
        if none_at(address) {
            return;
        }
        let Some(epoch) = scene.epoch() else {
            return;
        };
        let key = BlockKey {
            tgid: scene.tgid,
            epoch,
            address,
        };
        let mut block = Block::NONE;
        if take_out(scene.cookie.slot(), &key, &mut block) {
            account_free(&block, scene.counts);
        }
    }
}
