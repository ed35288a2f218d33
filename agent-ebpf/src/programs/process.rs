//! Fork, exec and exit of targets, and the end of their threads. Attached only
//! while there are targets (`capture/events.rs`): all processes of the host
//! pass here.
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macro passes the context by value"
)]

use agent_ebpf::abi::{
    ending::ExitRecord,
    event::{Header, ProcessRecord},
    loss::Loss,
};
use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_ns, bpf_probe_read_kernel,
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;

use super::{ending, futex};
use crate::{
    maps::{self, COUNTS, EPOCHS, GENERATIONS, MAPPINGS, RING, SLOTS, TARGETS, global},
    threads,
};

fn send(kind: u32, tgid: u32, slot: u32, detail: u32) {
    if let Some(mut entry) = RING.reserve::<ProcessRecord>(0) {
        entry.write(ProcessRecord {
            header: Header { kind, tgid },
            detail,
            reserved: 0,
        });
        entry.submit(0);
    } else {
        count_loss(slot);
    }
}

fn count_loss(slot: u32) {
    if let Some(counts) = COUNTS.get_ptr_mut(slot) {
        // SAFETY: a map value; these events are too rare to race.
        unsafe { (*counts).lost[Loss::RingFull as usize] += 1 };
    }
}

/// Slot of a target; none for any other process.
#[inline(always)]
fn slot_of(tgid: u32) -> Option<u32> {
    // SAFETY: map values stay valid while the program runs.
    SLOTS.get_ptr(tgid).map(|slot| unsafe { *slot })
}

/// Reads a 32-bit field of a kernel structure; 0 when it cannot be read.
#[inline(always)]
pub(super) fn field(base: u64, offset: u64) -> u32 {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_kernel((base + offset) as *const u32) }.unwrap_or(0)
}

/// `sched_process_fork(parent, child)`: runs in the parent, before the child.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn process_fork(ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(slot) = slot_of(tgid) else { return 0 };
    let child: u64 = ctx.arg(1);
    let child_pid = field(child, global(&maps::TASK_PID));
    // A new thread has another pid than its thread group.
    if child_pid != 0 && child_pid == field(child, global(&maps::TASK_TGID)) {
        send(Header::FORK, tgid, slot, child_pid);
    }
    0
}

/// `sched_process_exec(task, old_pid, bprm)`: the address space is replaced,
/// so every record of it is void.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(ctx: RawTracePointContext) -> i32 {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    let Some(slot) = slot_of(tgid) else {
        // The end of another program than the one that had probes.
        let _ = ending::take(tgid);
        return 0;
    };
    let (Some(target), Some(epoch)) = (TARGETS.get_ptr_mut(slot), EPOCHS.get_ptr_mut(slot)) else {
        return 0;
    };
    // SAFETY: map values; only this program raises the epoch.
    let epoch = unsafe {
        (*target).task_id.kind = 0;
        *epoch += 1;
        *epoch
    };
    if let Some(generation) = GENERATIONS.get_ptr_mut(slot) {
        // SAFETY: a map value.
        unsafe { *generation = 0 };
    }
    let _ = MAPPINGS.remove(tgid);
    // A thread that runs another program takes the place of the first one.
    threads::forget(id & !0xffff_ffff | (ctx.arg::<u64>(1) & 0xffff_ffff));
    debug!(
        &ctx,
        "process {} runs another program, epoch {}", tgid, epoch
    );
    send(Header::EXEC, tgid, slot, epoch);
    0
}

/// `sched_process_exit(task, …)`: once per thread.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn process_exit(_ctx: RawTracePointContext) -> i32 {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    // Also of processes that are followed no more.
    threads::forget(id);
    let slot = slot_of(tgid);
    if let Some(slot) = slot {
        futex::forget_thread(id, slot);
    } else if !ending::is_watched(tgid) {
        return 0;
    }
    // SAFETY: no arguments; the result is only read through checked helpers.
    let task = unsafe { bpf_get_current_task() };
    // SAFETY: the helper checks the address itself.
    let signal =
        unsafe { bpf_probe_read_kernel((task + global(&maps::TASK_SIGNAL)) as *const u64) }
            .unwrap_or(0);
    // The kernel has already taken this thread off the count.
    if field(signal, global(&maps::SIGNAL_LIVE)) == 0 {
        let signs = ending::take(tgid);
        let record = ExitRecord {
            header: Header {
                kind: Header::EXIT,
                tgid,
            },
            status: field(task, global(&maps::TASK_EXIT_CODE)),
            watched: u32::from(signs.is_some()),
            // SAFETY: a helper without arguments.
            at_ns: unsafe { bpf_ktime_get_ns() },
            signs: signs.unwrap_or_default(),
        };
        match (RING.reserve::<ExitRecord>(0), slot) {
            (Some(mut entry), _) => {
                entry.write(record);
                entry.submit(0);
            }
            (None, Some(slot)) => count_loss(slot),
            // Missed by user space when it looks for the process.
            (None, None) => {}
        }
    }
    0
}
