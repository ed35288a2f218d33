//! Sampled page faults: by which stacks a process's memory grows, without a
//! breakpoint. They serve processes that are too busy for one, and growth that
//! no allocator function shows.

use std::collections::HashMap;

use agent_ebpf::abi::fault::FaultSite;
use anyhow::{Context as _, Result, bail};
use aya::programs::perf_event::{
    PerfEvent, PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};

use super::{Capture, TargetId, bpf, object::Object};
use crate::host::process;

/// One fault in so many is recorded. Each of those costs the process about
/// what a recorded allocation costs; a page is 4 KiB.
pub const PERIOD: u64 = 64;
/// Threads that get an event of their own; later ones inherit one.
const MAX_THREADS: usize = 512;

/// Events on the threads of one process.
#[derive(Default)]
pub(super) struct FaultLinks(Vec<PerfEventLinkId>);

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
        let program = program(&mut self.object)?;
        let mut links = FaultLinks::default();
        let mut refusal = None;
        for thread in process::threads(pid).into_iter().take(MAX_THREADS) {
            let attached = program.attach(
                PerfEventConfig::Software(SoftwareEvent::PageFaults),
                PerfEventScope::OneProcess {
                    pid: thread,
                    cpu: None,
                },
                SamplePolicy::Period(PERIOD),
                true,
            );
            match attached {
                Ok(link) => links.0.push(link),
                // A thread may have ended meanwhile.
                Err(error) => refusal = Some(error),
            }
        }
        match refusal {
            Some(error) if links.0.is_empty() => {
                bail!("cannot sample the page faults of process {pid}: {error}")
            }
            _ => {
                self.faults.insert(id, links);
                Ok(())
            }
        }
    }

    /// Ends it.
    pub fn end_faults(&mut self, id: TargetId) {
        let Some(links) = self.faults.remove(&id) else {
            return;
        };
        let Ok(program) = program(&mut self.object) else {
            return;
        };
        for link in links.0 {
            if let Err(error) = program.detach(link) {
                tracing::debug!(%error, "a page fault event ends with this program");
            }
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

fn program(object: &mut Object) -> Result<&mut PerfEvent> {
    object.perf_event("page_fault")
}
