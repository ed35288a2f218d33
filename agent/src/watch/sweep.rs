//! What one sweep over all processes found.

use std::time::Duration;

use crate::host::population::Identity;

use super::suspect::Suspect;

/// Result of one sweep.
#[derive(Debug, Default)]
pub struct Sweep {
    /// All present suspects, the most urgent first.
    pub suspects: Vec<Suspect>,
    /// Processes seen for the first time; in the first sweep these are all.
    pub born: Vec<Identity>,
    /// Processes that run another program since the sweep before.
    pub executed: Vec<Identity>,
    /// Processes that are no more, or have become zombies.
    pub gone: Vec<Identity>,
    /// Processes that were read.
    pub read: usize,
    /// Those whose memory changed.
    pub moved: usize,
    /// What was not watched.
    pub skipped: Skipped,
    /// How long it took.
    pub took: Duration,
}

/// Counts of what was not watched in one sweep, by cause (LOSS-1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Kernel threads and zombies: they have no memory. No loss.
    pub without_memory: usize,
    /// Ended while being read. No loss.
    pub vanished: usize,
    /// More processes than [`super::Settings::max_processes`].
    pub over_bound: usize,
    /// `/proc` refused or could not be understood.
    pub unreadable: usize,
    /// Growth that the page tables did not confirm, or that the process has
    /// given back and the kernel not yet taken (`MADV_FREE`).
    pub unconfirmed: usize,
    /// More suspects than [`super::Settings::max_suspects`].
    pub suspects_over_bound: usize,
    /// Sweeps that should have been between the last one and this.
    pub missed_sweeps: u64,
}
