//! Futex waits: open ones by thread, ended ones by stack and task.

use super::assert_size;

/// Threads whose waits can be followed at the same time, of all targets.
pub const MAX_WAITING: u32 = 8192;
/// Different places of waiting, by stack and task, of all targets.
pub const MAX_PLACES: u32 = 8192;
/// Stacks that are unwound for one target in a second; a wait beyond that has
/// none.
pub const UNWOUND_PER_S: u64 = 2000;

/// What one thread waited for last; the key is the thread, as the kernel
/// programs name it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// Its place.
    pub place: Place,
    /// CLOCK_MONOTONIC at its start, nanoseconds.
    pub began_ns: u64,
    /// Processor time of the thread then, nanoseconds: as long as it has not
    /// changed, the thread waits.
    pub ran_ns: u64,
    /// Time that it had been ready and not running.
    pub delayed_ns: u64,
    /// Address of the futex.
    pub address: u64,
    /// Where the thread entered the kernel, and its stack pointer there.
    pub ip: u64,
    /// See `ip`.
    pub sp: u64,
    /// 1: it is not known to have ended.
    pub open: u32,
    /// Waits in a row that looked the same, since the stack was unwound.
    pub repeated: u32,
}
assert_size!(Wait, 88);

/// Where a thread waits: what ended waits are added up by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// Process.
    pub tgid: u32,
    /// Its epoch.
    pub epoch: u32,
    /// Hash of the stack; 0: not unwound.
    pub stack: u64,
    /// Tokio task id, 0 for none.
    pub task: u64,
    /// [`Place::LIMITED`], [`Place::CONTENDED`].
    pub hints: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(Place, 32);

impl Place {
    /// The wait has a time limit.
    pub const LIMITED: u32 = 1;
    /// The futex is taken and somebody waits already: what locks of the
    /// standard library wait on. Or it is one of the kernel's own locks (PI).
    pub const CONTENDED: u32 = 2;
}

/// Ended waits of one place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitTotals {
    /// How many.
    pub count: u64,
    /// How long in all, nanoseconds.
    pub total_ns: u64,
    /// How long the longest, nanoseconds; two processors may lose one to each
    /// other.
    pub longest_ns: u64,
}
assert_size!(WaitTotals, 24);

/// Counters of one target; kept per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitCounts {
    /// Times that a thread was taken off its processor.
    pub switches: u64,
    /// Waits begun.
    pub waits: u64,
    /// Stacks unwound.
    pub unwound: u64,
    /// Waits that have no stack, because there were too many.
    pub without_stack: u64,
    /// Waits that found no place in a table.
    pub unrecorded: u64,
    /// Stacks that the ring buffer had no room for, or the table.
    pub untold: u64,
}
assert_size!(WaitCounts, 48);

impl WaitCounts {
    /// Adds another count.
    pub fn add(&mut self, other: &Self) {
        self.switches += other.switches;
        self.waits += other.waits;
        self.unwound += other.unwound;
        self.without_stack += other.without_stack;
        self.unrecorded += other.unrecorded;
        self.untold += other.untold;
    }
}

/// How many stacks may still be unwound for a target.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitAllowance {
    /// CLOCK_MONOTONIC when this second's began, nanoseconds.
    pub since_ns: u64,
    /// Unwound since.
    pub used: u64,
}
assert_size!(WaitAllowance, 16);

/// A thread of a target, as the iterator over threads tells it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadRegisters {
    /// Its process.
    pub tgid: u32,
    /// Its id.
    pub thread: u32,
    /// Where it entered the kernel.
    pub ip: u64,
    /// Its stack pointer there.
    pub sp: u64,
    /// Its frame pointer there.
    pub bp: u64,
}
assert_size!(ThreadRegisters, 32);
