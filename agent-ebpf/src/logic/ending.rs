//! Whether a process ended by a fault of its own: one that probes could have
//! caused.
//!
//! A signal's name does not tell. Anybody may send `SIGSEGV`; and programs
//! that catch a fault to print a stack, as Rust's and Go's runtimes do, send
//! it to themselves again. So the kernel's own word counts, the `si_code` of
//! the signal when it was raised, and the end that followed.

use crate::abi::ending::Signs;

/// Signals of faults, and `SIGSYS`, by which seccomp refuses a system call: on
/// some kernels probes make calls in the process's name.
pub const SIGILL: u32 = 4;
/// A breakpoint that belongs to nobody.
pub const SIGTRAP: u32 = 5;
/// What a program sends itself when it finds itself broken.
pub const SIGABRT: u32 = 6;
/// Memory whose file is gone.
pub const SIGBUS: u32 = 7;
/// A wrong address.
pub const SIGSEGV: u32 = 11;
/// A refused system call.
pub const SIGSYS: u32 = 31;

/// `si_code` of `kill()`. What is sent has a code of 0 or less; only the
/// kernel, and a process to itself, can raise a signal with a larger one
/// (`rt_sigqueueinfo(2)`).
pub const SI_USER: i32 = 0;
/// `si_code` of a fault that the kernel does not tell more of.
pub const SI_KERNEL: i32 = 0x80;

/// How long before its end a process may have had the fault that it ended of:
/// handlers write reports first.
pub const WITHIN_NS: u64 = 10_000_000_000;
/// The same where the kernel wrote a core before the end: some gigabytes.
pub const WITHIN_CORE_NS: u64 = 300_000_000_000;

/// In a wait status: a core was written.
const CORE: u32 = 0x80;

/// Whether a signal tells of a fault.
#[inline]
pub const fn is_fault_signal(signal: u32) -> bool {
    matches!(
        signal,
        SIGILL | SIGTRAP | SIGABRT | SIGBUS | SIGSEGV | SIGSYS
    )
}

/// Whether such a signal, raised in a thread of the process itself, is a
/// fault: by the kernel, or `abort()`.
#[inline]
pub const fn is_fault(signal: u32, code: i32) -> bool {
    code > 0 || signal == SIGABRT
}

/// The signal of a wait status; 0: it exited.
pub const fn signal(status: u32) -> u32 {
    status & 0x7f
}

/// Whether a process with this wait status, ended at `at_ns`, ended of its
/// last fault.
///
/// A process that goes on after its faults, as a Java machine does a thousand
/// times a second, ends by something else in the end. Where somebody sent it
/// such a signal shortly before, that is taken for the cause, even if an
/// `abort()` in a handler came after it.
pub const fn is_of_fault(status: u32, at_ns: u64, signs: &Signs) -> bool {
    let within = if status & CORE == 0 {
        WITHIN_NS
    } else {
        WITHIN_CORE_NS
    };
    is_fault_signal(signal(status))
        && signs.fault_ns != 0
        && at_ns.saturating_sub(signs.fault_ns) <= within
        && (signs.sent_ns == 0 || at_ns.saturating_sub(signs.sent_ns) > within)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const END: u64 = 1000 * SECOND;

    fn fault(signal: u32, code: i32, before_ns: u64) -> Signs {
        Signs {
            fault_ns: END - before_ns,
            fault_signal: signal,
            fault_code: code,
            ..Signs::default()
        }
    }

    #[test]
    fn the_kernel_and_abort_raise_faults() {
        assert!(is_fault(SIGSEGV, 1) && is_fault(SIGTRAP, SI_KERNEL));
        // raise(), kill() and sigqueue() of the process to itself
        for code in [-6, SI_USER, -1] {
            assert!(!is_fault(SIGSEGV, code), "{code}");
            assert!(is_fault(SIGABRT, code), "{code}");
        }
    }

    #[test]
    fn a_fault_and_an_end_by_it() {
        for status in [SIGSEGV, SIGSEGV | CORE, SIGABRT, SIGILL | CORE] {
            assert!(is_of_fault(status, END, &fault(SIGSEGV, 1, SECOND)));
            assert!(!is_of_fault(status, END, &Signs::default()));
        }
    }

    #[test]
    fn other_ends_are_none() {
        // exit(0), exit(139), SIGTERM, SIGKILL
        for status in [0, 139 << 8, 15, 9] {
            assert!(!is_of_fault(status, END, &fault(SIGSEGV, 1, SECOND)));
        }
    }

    #[test]
    fn a_caught_fault_long_ago_is_none() {
        let old = fault(SIGSEGV, 1, 20 * SECOND);
        assert!(!is_of_fault(SIGABRT, END, &old));
        // the core took its time
        assert!(is_of_fault(SIGSEGV | CORE, END, &old));
    }

    #[test]
    fn who_is_sent_the_signal_did_not_fault() {
        // faults that it catches, then a kill -SEGV; or an abort in the handler
        for fault_before in [SECOND, 3 * SECOND] {
            let signs = Signs {
                sent_ns: END - 2 * SECOND,
                sent_signal: SIGSEGV,
                ..fault(SIGSEGV, 1, fault_before)
            };
            assert!(!is_of_fault(SIGSEGV, END, &signs));
            assert!(!is_of_fault(SIGABRT, END, &signs));
        }
        let long_ago = Signs {
            sent_ns: END - 100 * SECOND,
            sent_signal: SIGABRT,
            ..fault(SIGSEGV, 1, SECOND)
        };
        assert!(is_of_fault(SIGSEGV, END, &long_ago));
    }
}
