//! Fork, exec and exit of targets, and the end of their threads.

use agent_ebpf::abi::event::{Header, ProcessRecord};
use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;

use crate::maps::{self, MAPPINGS, RING, SLOTS, TARGETS, THREADS, global};

fn send(kind: u32, tgid: u32, detail: u32) {
    if let Some(mut entry) = RING.reserve::<ProcessRecord>(0) {
        entry.write(ProcessRecord {
            header: Header { kind, tgid },
            detail,
            reserved: 0,
        });
        entry.submit(0);
    }
}

/// Reads a 32-bit field of a kernel structure; 0 when it cannot be read.
#[inline(always)]
fn field(base: u64, offset: u64) -> u32 {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_kernel((base + offset) as *const u32) }.unwrap_or(0)
}

/// `sched_process_fork(parent, child)`: runs in the parent, before the child.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if SLOTS.get_ptr(tgid).is_none() {
        return 0;
    }
    let child: u64 = ctx.arg(1);
    let child_pid = field(child, global(&maps::TASK_PID));
    // A new thread has another pid than its thread group.
    if child_pid != 0 && child_pid == field(child, global(&maps::TASK_TGID)) {
        send(Header::FORK, tgid, child_pid);
    }
    0
}

/// `sched_process_exec(task, old_pid, bprm)`: the address space is replaced,
/// so every record of it is void.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    let Some(slot) = SLOTS.get_ptr(tgid) else {
        return 0;
    };
    // SAFETY: map values stay valid while the program runs.
    let Some(target) = TARGETS.get_ptr_mut(unsafe { *slot }) else {
        return 0;
    };
    // SAFETY: as above; only this program changes the epoch.
    let epoch = unsafe {
        (*target).epoch += 1;
        (*target).task_id.kind = 0;
        (*target).epoch
    };
    let _ = MAPPINGS.remove(tgid);
    let _ = THREADS.remove(id);
    debug!(
        &ctx,
        "process {} runs another program, epoch {}", tgid, epoch
    );
    send(Header::EXEC, tgid, epoch);
    0
}

/// `sched_process_exit(task, …)`: once per thread.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(_ctx: RawTracePointContext) -> i32 {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    if SLOTS.get_ptr(tgid).is_none() {
        return 0;
    }
    let _ = THREADS.remove(id);
    // SAFETY: no arguments; the result is only read through checked helpers.
    let task = unsafe { bpf_get_current_task() };
    // SAFETY: the helper checks the address itself.
    let signal =
        unsafe { bpf_probe_read_kernel((task + global(&maps::TASK_SIGNAL)) as *const u64) }
            .unwrap_or(0);
    // The kernel has already taken this thread off the count.
    if field(signal, global(&maps::SIGNAL_LIVE)) == 0 {
        send(
            Header::EXIT,
            tgid,
            field(task, global(&maps::TASK_EXIT_CODE)),
        );
    }
    0
}
