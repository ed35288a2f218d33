//! What tells, when a process has ended, why it did: the signals of its
//! faults, and the kernel's choice of whom to kill for want of memory.
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macro passes the context by value"
)]

use agent_ebpf::{
    abi::ending::{SI_CODE, Signs},
    logic::ending,
};
use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};

use super::process::field;
use crate::maps::{self, SIGNS, global};

/// `TRACE_SIGNAL_IGNORED`: it reached nobody.
const IGNORED: u32 = 1;

/// `signal_generate(signal, info, task, group, result)`: runs in whoever
/// raises the signal.
#[raw_tracepoint(tracepoint = "signal_generate")]
pub(crate) fn signal_generate(ctx: RawTracePointContext) -> i32 {
    let signal = ctx.arg::<u64>(0) as u32;
    if !ending::is_fault_signal(signal) {
        return 0;
    }
    let tgid = field(ctx.arg(2), global(&maps::TASK_TGID));
    let Some(signs) = SIGNS.get_ptr_mut(tgid) else {
        return 0;
    };
    // Two small numbers stand for a siginfo: sent by a user, by the kernel.
    let code = match ctx.arg::<u64>(1) {
        0 => ending::SI_USER,
        1 => ending::SI_KERNEL,
        info => field(info, SI_CODE) as i32,
    };
    let own = (bpf_get_current_pid_tgid() >> 32) as u32 == tgid;
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a map value. Threads may race; each leaves a fault of this
    // moment, whosever half it is.
    unsafe {
        if own && ending::is_fault(signal, code) {
            (*signs).fault_ns = now;
            (*signs).fault_signal = signal;
            (*signs).fault_code = code;
        } else if !own && ctx.arg::<u64>(4) as u32 != IGNORED {
            (*signs).sent_ns = now;
            (*signs).sent_signal = signal;
        }
    }
    0
}

/// `mark_victim(task, uid)`, before kernel 6.9 `mark_victim(pid)`.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub(crate) fn mark_victim(ctx: RawTracePointContext) -> i32 {
    let victim: u64 = ctx.arg(0);
    // Addresses of the kernel are in the upper half.
    let tgid = if victim >> 63 == 0 {
        victim as u32
    } else {
        field(victim, global(&maps::TASK_TGID))
    };
    if let Some(signs) = SIGNS.get_ptr_mut(tgid) {
        // SAFETY: a map value.
        unsafe { (*signs).oom = 1 };
    }
    0
}

/// Whether anybody asked for the end of a process.
#[inline(always)]
pub(super) fn is_watched(tgid: u32) -> bool {
    SIGNS.get_ptr(tgid).is_some()
}

/// Takes what is known of a process that has ended; none when nobody asked.
pub(super) fn take(tgid: u32) -> Option<Signs> {
    // SAFETY: map values stay valid while the program runs.
    let signs = unsafe { *SIGNS.get_ptr(tgid)? };
    // The number may be another process's next.
    let _ = SIGNS.remove(tgid);
    Some(signs)
}
