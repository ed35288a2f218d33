//! Probes of the malloc family.
//!
//! `heap_session` serves session links: entry and return in one program, where
//! an entry that returns 1 spares the target the return trap. `heap_enter` and
//! `heap_leave` are the same for kernels without sessions.

use core::ffi::c_void;

use agent_ebpf::{
    abi::{
        heap::{Block, BlockKey, Cookie, FunctionKind, Target, TargetCounts},
        loss::Loss,
        stack::StackEnd,
    },
    logic::sampling,
};
use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_probe_read_user,
        generated::{bpf_get_attach_cookie, bpf_get_func_ip},
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
/// Value of an entry program that needs no return trap.
const SKIP_RETURN: u32 = 1;
/// Value of an entry program that wants to see the return.
const SEE_RETURN: u32 = 0;

#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn heap_session(ctx: *mut c_void) -> u32 {
    let regs = ctx as *const pt_regs;
    // SAFETY: the kernel passes its register set.
    if unsafe { (*regs).rip == bpf_get_func_ip(ctx) } {
        enter(ctx)
    } else {
        leave(ctx);
        0
    }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn heap_enter(ctx: *mut c_void) -> u32 {
    enter(ctx);
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "uretprobe")]
extern "C" fn heap_leave(ctx: *mut c_void) -> u32 {
    leave(ctx);
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
fn enter(ctx: *mut c_void) -> u32 {
    let Some(scene) = scene(ctx, bpf_get_current_pid_tgid()) else {
        return SKIP_RETURN;
    };
    count_step(&scene);
    // SAFETY: the kernel's register set and map values.
    unsafe {
        let regs = &*(ctx as *const pt_regs);
        let kind = scene.cookie.kind();
        let (size, old) = match FunctionKind::from_number(kind) {
            Some(FunctionKind::Calloc | FunctionKind::CallocAligned) => {
                (regs.rdi.wrapping_mul(regs.rsi), 0)
            }
            Some(FunctionKind::Realloc | FunctionKind::ReallocAligned) => (regs.rsi, regs.rdi),
            Some(FunctionKind::Reallocarray) => (regs.rsi.wrapping_mul(regs.rdx), regs.rdi),
            Some(FunctionKind::AlignedAlloc) => (regs.rsi, 0),
            Some(FunctionKind::PosixMemalign) => (regs.rdx, 0),
            _ => (regs.rdi, 0),
        };

        let Some(open) = open_calls(scene.thread_id) else {
            return SKIP_RETURN;
        };
        let known = open_thread(open, scene.thread_id);
        if let Some(thread) = known
            && (*thread).active != 0
        {
            if is_inner(thread, regs.rsp) {
                return SKIP_RETURN;
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
            return SKIP_RETURN;
        }
        let Some(epoch) = scene.epoch() else {
            return SKIP_RETURN;
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
            return SKIP_RETURN;
        }
        let Some(thread) = known.or_else(|| threads::find_or_add(scene.thread_id)) else {
            lose(scene.counts, Loss::ThreadsFull);
            // Its return will not be seen, so the old block counts as freed.
            if has_old {
                account_free(&old_block, scene.counts);
            }
            return SKIP_RETURN;
        };
        let thread = &mut *thread;
        thread.has_old = u64::from(has_old);
        thread.old_address = old;
        if has_old {
            thread.old = old_block;
        }
        thread.sp = regs.rsp;
        thread.entered_ns = now();
        thread.size = size;
        thread.kind = u64::from(kind);
        thread.result = regs.rdi;
        thread.mean = mean;
        thread.sampled = u64::from(sampled);
        if sampled {
            thread.task = task::current(&(*scene.target).task_id).unwrap_or_else(|_| {
                lose(scene.counts, Loss::UnreadableTaskId);
                0
            });
            let seed = (u64::from(scene.tgid) << 32) | u64::from(epoch);
            let of = unwind::Owner::new(scene.tgid, scene.cookie.slot());
            unwind::unwind(thread, of, seed, regs.rip, regs.rsp, regs.rbp);
            thread.stack = site(thread, &scene, epoch);
        }
        thread.active = 1;
        add(open, 1);
        SEE_RETURN
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
/// thread: from a deeper stack, or by a jump, which leaves the open call's
/// return address, taken over by the kernel, on top of the stack.
#[inline(always)]
unsafe fn is_inner(thread: *const Thread, sp: u64) -> bool {
    // SAFETY: a map value.
    unsafe {
        (sp < (*thread).sp || (sp == (*thread).sp && is_trampoline(sp)))
            && now().wrapping_sub((*thread).entered_ns) < ABANDONED_NS
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
                    && is_inner(thread, sp)
            })
    }
}

/// Whether the word at an address is the return trampoline: the kernel maps
/// its page as the last one below the end of user memory
/// (`__create_xol_area` in kernel/events/uprobes.c).
#[inline(always)]
fn is_trampoline(address: u64) -> bool {
    const PAGE: u64 = 0x7fff_ffff_e000;
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_user(address as *const u64) }.is_ok_and(|word| word & !0xfff == PAGE)
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

#[inline(always)]
fn leave(ctx: *mut c_void) {
    let thread_id = bpf_get_current_pid_tgid();
    let Some(thread) = threads::find(thread_id) else {
        return;
    };
    // SAFETY: the kernel's register set and map values.
    unsafe {
        let thread = &mut *thread;
        let regs = &*(ctx as *const pt_regs);
        // The return of an inner call must not end the outer one.
        if thread.active == 0 || regs.rsp != thread.sp + 8 {
            return;
        }
        thread.active = 0;
        if let Some(open) = open_calls(thread_id) {
            add(open, LESS);
        }
        let Some(scene) = scene(ctx, thread_id) else {
            return;
        };
        let address = if thread.kind == FunctionKind::PosixMemalign as u64 {
            if regs.rax as u32 != 0 {
                0
            } else if let Ok(address) = bpf_probe_read_user(thread.result as *const u64) {
                address
            } else {
                lose(scene.counts, Loss::UnreadableResult);
                0
            }
        } else {
            regs.rax
        };
        let Some(epoch) = scene.epoch() else {
            return;
        };
        if address == 0 && thread.size == 0 && thread.old_address != 0 {
            // Counted as an allocation and a free, it was but a free.
            add(&raw mut (*scene.counts).frees, 1);
        }
        if thread.has_old != 0 {
            if address == 0 && thread.size != 0 {
                // The realloc failed, so the old block lives on, unless its
                // address has a new owner by now.
                let key = BlockKey {
                    tgid: scene.tgid,
                    epoch,
                    address: thread.old_address,
                };
                let _ = put_in(scene.cookie.slot(), &key, &thread.old);
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
        let regs = &*(ctx as *const pt_regs);
        let address = regs.rdi;
        if address == 0 {
            return;
        }
        if !(scene.cookie.may_nest() && is_moving(scene.thread_id, regs.rsp)) {
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
