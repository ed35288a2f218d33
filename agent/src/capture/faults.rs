//! Sampled page faults: by which stacks a process's memory grows, without a
//! breakpoint. They serve processes that are too busy for one, and growth that
//! no allocator function shows.

use std::collections::HashMap;

use agent_ebpf::abi::fault::FaultSite;
use anyhow::{Context as _, Result};
use aya::programs::perf_event::SoftwareEvent;

use super::{Capture, TargetId, bpf, thread_events::ThreadEvents};

/// One fault in so many is recorded. Each of those costs the process about
/// what a recorded allocation costs; a page is 4 KiB.
pub const PERIOD: u64 = 64;

/// Page faults of one stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// The stack's hash.
    pub stack: u64,
    /// Faults recorded; each stands for [`PERIOD`].
    pub recorded: u64,
    /// Address of the last one.
    pub address: u64,
}

impl Capture {
    /// Starts to sample the page faults of a target.
    ///
    /// # Errors
    /// When it is no target, has ended, or the kernel refuses.
    pub fn sample_faults(&mut self, id: TargetId) -> Result<()> {
        let target = self.targets.get(&id).context("no such target")?;
        if self.faults.contains_key(&id) {
            return Ok(());
        }
        let pid = target.process.pid;
        let events = ThreadEvents::attach(
            &mut self.object,
            "page_fault",
            SoftwareEvent::PageFaults,
            PERIOD,
            pid,
        )?;
        self.faults.insert(id, events);
        Ok(())
    }

    /// Ends it.
    pub fn end_faults(&mut self, id: TargetId) {
        if let Some(events) = self.faults.remove(&id) {
            events.detach(&mut self.object);
        }
    }

    /// The page faults of every target so far.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn page_faults(&self) -> Result<HashMap<TargetId, Vec<Faults>>> {
        let mut faults: HashMap<TargetId, Vec<Faults>> = HashMap::new();
        // SAFETY: the map's own types.
        unsafe {
            bpf::read_all(self.object.map("FAULTS")?, |stack: u64, site: FaultSite| {
                if self.epoch(site.tgid) == site.epoch {
                    faults.entry(site.tgid).or_default().push(Faults {
                        stack,
                        recorded: site.faults,
                        address: site.address,
                    });
                }
            })
        }
        .context("cannot read the table of page faults")?;
        Ok(faults)
    }
}
