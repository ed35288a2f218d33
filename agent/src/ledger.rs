//! What is live, per process and allocation site: the account that analysis
//! judges. Pure; times are passed in.

use std::time::Duration;

/// Names an allocation stack; the kernel's hash of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u64);

/// One process at one moment, as the kernel maps held it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Time since the capture of this process began.
    pub at: Duration,
    /// Totals per allocation stack since the capture began. Sampled events,
    /// unweighted; they never decrease.
    pub sites: Vec<SiteTotals>,
    /// Every sampled block that is live now.
    pub live: Vec<LiveBlock>,
    /// Anonymous resident memory and swap in bytes, where it could be read.
    pub anonymous_bytes: Option<u64>,
}

/// What one allocation stack did so far.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteTotals {
    /// The stack.
    pub stack: StackId,
    /// Sampled blocks allocated.
    pub allocated: u64,
    /// Those of them that were freed.
    pub freed: u64,
    /// Longest life of a freed one.
    pub longest_life: Duration,
    /// Sum of the lives of the freed ones.
    pub lives: Duration,
}

/// A sampled block that is live at the time of the observation.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveBlock {
    /// Its address; unique among the live blocks of one observation.
    pub address: u64,
    /// Requested size in bytes.
    pub size: u64,
    /// Allocation stack.
    pub stack: StackId,
    /// Tokio task that allocated it.
    pub task: Option<u64>,
    /// When it was allocated, since the capture of this process began.
    pub born: Duration,
    /// Sampling mean in bytes at that time; 1: every allocation was taken.
    /// A sampled block stands for `agent_ebpf::logic::sampling::weight` blocks.
    pub mean: u64,
}
