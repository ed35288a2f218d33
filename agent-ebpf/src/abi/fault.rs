//! Page faults by stack.

use super::assert_size;

/// Sampled page faults of one stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultSite {
    /// Process.
    pub tgid: u32,
    /// Its epoch.
    pub epoch: u32,
    /// 1 once the frames were sent to user space.
    pub announced: u64,
    /// Sampled faults; two processors may lose one to each other.
    pub faults: u64,
    /// Address of the last one.
    pub address: u64,
}
assert_size!(FaultSite, 32);
