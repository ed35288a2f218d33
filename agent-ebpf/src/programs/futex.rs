//! Futex waits of a process: who waits where, and for how long.
//!
//! Attached to the scheduler's switches, which runs this in a thread that is
//! about to leave its processor. So a wait is only seen when it really waits,
//! and no system call of the host becomes slower, as all would with a
//! tracepoint on system calls. A thread of another process pays for one look
//! into a nearly empty table at each switch; a software event on the target's
//! own threads would spare it that, but makes each switch of the target four
//! times as much longer, whether it waits for a futex or not.
//!
//! The end of a wait is told at the thread's next switch: of the time since
//! its start, the thread has waited for what it was neither running nor ready.

use core::ffi::c_void;

use agent_ebpf::abi::futex::{
    Place, ThreadRegisters, UNWOUND_PER_S, Wait, WaitAllowance, WaitCounts, WaitTotals,
};
use agent_ebpf::abi::stack::StackEnd;
use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, pt_regs, seq_file, task_struct},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_ns, bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_seq_write, bpf_task_pt_regs},
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};

use super::task;
use crate::{
    maps::{
        self, EPOCHS, FAULT_SCRATCH, SLOTS, SWITCHES, TARGETS, WAIT_ALLOWANCES, WAIT_COUNTS,
        WAIT_STACKS, WAIT_TOTALS, WAITERS, WAITS, add, global,
    },
    unwind,
};

/// System calls that wait for a futex (arch/x86/entry/syscalls/syscall_64.tbl).
const FUTEX: u64 = 202;
const FUTEX_WAITV: u64 = 449;
const FUTEX_WAIT: u64 = 455;
/// Operations of `futex` (include/uapi/linux/futex.h), without their flags.
const OPERATION: u64 = 0x7f;
const WAIT: u64 = 0;
const LOCK_PI: u64 = 6;
const WAIT_BITSET: u64 = 9;
const WAIT_REQUEUE_PI: u64 = 11;
const LOCK_PI2: u64 = 13;
/// `TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE`: not just preempted.
const ASLEEP: u32 = 3;
/// Value of a lock of the standard library that is taken and waited for.
const CONTENDED: u64 = 2;
/// A wait that looks like the thread's last one is taken to have its stack,
/// so often in a row.
const REPEATS: u32 = 31;
const SECOND_NS: u64 = 1_000_000_000;

/// `sched_switch`: runs in the thread that leaves.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub(crate) fn context_switch(_ctx: RawTracePointContext) -> i32 {
    record();
    0
}

/// What a thread has done so far, and when.
#[derive(Clone, Copy)]
struct Clock {
    now: u64,
    ran: u64,
    delayed: u64,
}

impl Clock {
    #[inline(always)]
    fn read() -> Self {
        // SAFETY: no arguments; what is at the address the helper checks.
        let (now, task) = unsafe { (bpf_ktime_get_ns(), bpf_get_current_task()) };
        let delayed = match global(&maps::TASK_DELAYED) {
            0 => 0,
            offset => word(task + offset),
        };
        Self {
            now,
            ran: word(task + global(&maps::TASK_RAN)),
            delayed,
        }
    }
}

/// Reads a word of a kernel structure; 0 when it cannot be read.
#[inline(always)]
fn word(address: u64) -> u64 {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.unwrap_or(0)
}

/// What the thread waits for: the futex, and hints; none when it does not wait
/// for one.
#[inline(always)]
fn wanted(regs: &pt_regs) -> Option<(u64, u32)> {
    let mut hints = 0;
    match regs.orig_rax {
        FUTEX => {
            let operation = regs.rsi & OPERATION;
            match operation {
                WAIT | WAIT_BITSET if regs.rdx & 0xffff_ffff == CONTENDED => {
                    hints |= Place::CONTENDED;
                }
                LOCK_PI | LOCK_PI2 => hints |= Place::CONTENDED,
                WAIT | WAIT_BITSET | WAIT_REQUEUE_PI => {}
                _ => return None,
            }
            if regs.r10 != 0 {
                hints |= Place::LIMITED;
            }
        }
        FUTEX_WAIT | FUTEX_WAITV => {}
        _ => return None,
    }
    Some((regs.rdi, hints))
}

/// What the thread begins to wait for, and its registers; none when it is only
/// taken off its processor, or waits for something else.
#[inline(always)]
fn begun() -> Option<(pt_regs, u64, u32)> {
    // SAFETY: no arguments; what is read goes through checked helpers.
    unsafe {
        let state = bpf_get_current_task() + global(&maps::TASK_STATE);
        if word(state) as u32 & ASLEEP == 0 {
            return None;
        }
        let saved = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs;
        let regs = bpf_probe_read_kernel(saved).ok()?;
        let (address, hints) = wanted(&regs)?;
        Some((regs, address, hints))
    }
}

#[inline(always)]
fn record() -> Option<()> {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    let all = SWITCHES.get_ptr_mut(0)?;
    // SAFETY: map values stay valid while the program runs; only this thread
    // writes its own wait. Reading the task and its registers goes through
    // checked helpers.
    unsafe {
        *all += 1;
        let slot = WAITERS.get_ptr(tgid).map(|slot| *slot)?;
        let counts = WAIT_COUNTS.get_ptr_mut(slot)?;
        (*counts).switches += 1;
        let last = WAITS.get_ptr_mut(id);
        let ended = last.filter(|last| (**last).open != 0);
        let begun = begun();
        if ended.is_none() && begun.is_none() {
            return None;
        }
        let clock = Clock::read();
        if let Some(last) = ended {
            end(last, clock, counts);
        }
        let (regs, address, hints) = begun?;
        (*counts).waits += 1;
        let epoch = *EPOCHS.get(slot)?;
        let target = TARGETS.get_ptr(slot)?;
        let task = task::current(&(*target).task_id).unwrap_or(0);
        let mut wait = Wait {
            place: Place {
                tgid,
                epoch,
                stack: 0,
                task,
                hints,
                reserved: 0,
            },
            began_ns: clock.now,
            ran_ns: clock.ran,
            delayed_ns: clock.delayed,
            address,
            ip: regs.rip,
            sp: regs.rsp,
            open: 1,
            repeated: 0,
        };
        match last {
            Some(last) if repeats(last, &wait) => {
                wait.place.stack = (*last).place.stack;
                wait.repeated = (*last).repeated + 1;
            }
            _ if is_allowed(slot, clock.now) => {
                (*counts).unwound += 1;
                let (stack, complete) = unwound(&wait, slot, &regs, counts)?;
                wait.place.stack = stack;
                if !complete {
                    wait.repeated = REPEATS;
                }
            }
            _ => {
                (*counts).without_stack += 1;
                wait.repeated = REPEATS;
            }
        }
        match last {
            Some(last) => *last = wait,
            None => {
                if WAITS.insert(id, wait, u64::from(BPF_ANY)).is_err() {
                    (*counts).unrecorded += 1;
                }
            }
        }
    }
    Some(())
}

/// Whether a wait has the stack of the thread's last one: the same futex, by
/// the same task, at the same place and depth.
#[inline(always)]
unsafe fn repeats(last: *const Wait, wait: &Wait) -> bool {
    // SAFETY: a map value.
    unsafe {
        (*last).repeated < REPEATS
            && (*last).address == wait.address
            && (*last).ip == wait.ip
            && (*last).sp == wait.sp
            && (*last).place.task == wait.place.task
            && (*last).place.epoch == wait.place.epoch
    }
}

/// Whether another stack may be unwound for the target in this second. Two
/// processors may take one too many.
#[inline(always)]
unsafe fn is_allowed(slot: u32, now: u64) -> bool {
    let Some(allowance) = WAIT_ALLOWANCES.get_ptr_mut(slot) else {
        return false;
    };
    let allowance: *mut WaitAllowance = allowance;
    // SAFETY: a map value.
    unsafe {
        if now.wrapping_sub((*allowance).since_ns) > SECOND_NS {
            (*allowance).since_ns = now;
            (*allowance).used = 0;
        }
        (*allowance).used += 1;
        (*allowance).used <= UNWOUND_PER_S
    }
}

/// The wait's stack, and whether it is complete.
#[inline(always)]
unsafe fn unwound(
    wait: &Wait,
    slot: u32,
    regs: &pt_regs,
    counts: *mut WaitCounts,
) -> Option<(u64, bool)> {
    // Events of one CPU cannot preempt each other.
    let scratch = FAULT_SCRATCH.get_ptr_mut(0)?;
    // Apart from the hashes of other stacks.
    let seed = (u64::from(wait.place.tgid) << 32) | u64::from(wait.place.epoch) | 1 << 30;
    let of = unwind::Owner::new(wait.place.tgid, slot);
    unwind::unwind_fault(scratch, of, seed, regs.rip, regs.rsp, regs.rbp);
    // SAFETY: map values.
    unsafe {
        let hash = (*scratch).hash;
        if WAIT_STACKS.get_ptr(hash).is_none() {
            let owner = (u64::from(wait.place.tgid) << 32) | u64::from(wait.place.epoch);
            let told = unwind::announce(scratch, wait.place.tgid, wait.place.epoch)
                && WAIT_STACKS.insert(hash, owner, u64::from(BPF_ANY)).is_ok();
            if !told {
                (*counts).untold += 1;
            }
        }
        Some((hash, (*scratch).end == StackEnd::Complete as u64))
    }
}

/// Adds an open wait to the totals of its place.
#[inline(always)]
unsafe fn end(wait: *mut Wait, clock: Clock, counts: *mut WaitCounts) {
    // SAFETY: map values.
    unsafe {
        if (*wait).open == 0 {
            return;
        }
        (*wait).open = 0;
        let busy = clock.ran.saturating_sub((*wait).ran_ns)
            + clock.delayed.saturating_sub((*wait).delayed_ns);
        let waited = clock
            .now
            .saturating_sub((*wait).began_ns)
            .saturating_sub(busy);
        let place = (*wait).place;
        if let Some(totals) = WAIT_TOTALS.get_ptr_mut(place) {
            add(&raw mut (*totals).count, 1);
            add(&raw mut (*totals).total_ns, waited);
            if waited > (*totals).longest_ns {
                (*totals).longest_ns = waited;
            }
            return;
        }
        let totals = WaitTotals {
            count: 1,
            total_ns: waited,
            longest_ns: waited,
        };
        match WAIT_TOTALS.insert(place, totals, u64::from(BPF_NOEXIST)) {
            Err(code) if code != -17 => (*counts).unrecorded += 1,
            _ => {}
        }
    }
}

/// A thread of a target ends.
#[inline(always)]
pub(super) fn forget_thread(id: u64, slot: u32) {
    let (Some(wait), Some(counts)) = (WAITS.get_ptr_mut(id), WAIT_COUNTS.get_ptr_mut(slot)) else {
        return;
    };
    // SAFETY: map values; the thread does not wait now.
    unsafe { end(wait, Clock::read(), counts) };
    let _ = WAITS.remove(id);
}

/// What an iterator over threads gets: `bpf_iter__task` and `bpf_iter_meta` of
/// the kernel.
#[repr(C)]
struct TaskIteration {
    meta: *const IterationMeta,
    task: *mut task_struct,
}

#[repr(C)]
struct IterationMeta {
    seq: *mut seq_file,
}

/// Tells the registers of every thread of a target. The frame pointer of a
/// thread that waits is nowhere else to be had.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn thread_registers(ctx: *mut c_void) -> i32 {
    let iteration = ctx as *const TaskIteration;
    // SAFETY: the kernel's own context; the helpers check what they read.
    unsafe {
        let task = (*iteration).task;
        if task.is_null() {
            return 0;
        }
        let field = |offset: u64| -> u32 {
            bpf_probe_read_kernel(task.cast::<u8>().add(offset as usize).cast()).unwrap_or(0)
        };
        let tgid = field(global(&maps::TASK_TGID));
        if SLOTS.get_ptr(tgid).is_none() {
            return 0;
        }
        let saved = bpf_task_pt_regs(task) as *const pt_regs;
        let Ok(regs) = bpf_probe_read_kernel(saved) else {
            return 0;
        };
        let thread = ThreadRegisters {
            tgid,
            thread: field(global(&maps::TASK_PID)),
            ip: regs.rip,
            sp: regs.rsp,
            bp: regs.rbp,
        };
        bpf_seq_write(
            (*(*iteration).meta).seq,
            (&raw const thread).cast(),
            size_of::<ThreadRegisters>() as u32,
        );
    }
    0
}
