//! How processes end.

use super::{assert_size, event::Header};

/// Processes whose end is watched at a time: every target, and as many that
/// were targets until lately.
pub const MAX_WATCHED: u32 = 2 * super::heap::MAX_TARGETS;

/// Byte offset of `si_code` in the kernel's `kernel_siginfo`, which begins as
/// the `siginfo_t` that user space knows: signal, errno, code.
pub const SI_CODE: u64 = 8;

/// What was seen of the signals that tell of a fault, and of the kernel's
/// want of memory, in one process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// CLOCK_MONOTONIC of its last fault, raised by the kernel in one of its
    /// own threads, or of its last `abort()`; 0: none.
    pub fault_ns: u64,
    /// The fault's signal.
    pub fault_signal: u32,
    /// Its `si_code`.
    pub fault_code: i32,
    /// CLOCK_MONOTONIC when somebody else last sent it such a signal; 0:
    /// nobody did.
    pub sent_ns: u64,
    /// That signal.
    pub sent_signal: u32,
    /// Non-zero: the kernel chose it to be killed for want of memory.
    pub oom: u32,
}
assert_size!(Signs, 32);

/// The end of a process that is watched.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitRecord {
    /// `EXIT`.
    pub header: Header,
    /// The wait status.
    pub status: u32,
    /// Non-zero: `signs` were looked for.
    pub watched: u32,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// What came before.
    pub signs: Signs,
}
assert_size!(ExitRecord, 56);
