//! Sampled page faults: by which stacks a process's memory grows, without a
//! breakpoint. They serve processes that are too busy for one, and growth that
//! no allocator function shows.

use std::collections::{HashMap, HashSet};

use agent_ebpf::abi::fault::FaultSite;
use anyhow::{Context as _, Result, bail};
use aya::programs::perf_event::{
    PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};

use super::{Capture, TargetId, bpf, object::Object};

/// One fault in so many is recorded, of all that a processor takes. Each of a
/// target's costs it about what a recorded allocation costs; a page is 4 KiB.
pub const PERIOD: u64 = 64;

/// Which targets' page faults are sampled, and by what.
///
/// The event is one of each processor, not of the target's threads: those
/// make each of their switches 0.7 µs longer, which a server notices that
/// switches 10 000 times a second. A fault of another process takes no longer
/// than the kernel's count of faults does (measured: within 5 % of a fault).
/// A processor that is added later is not sampled.
#[derive(Default)]
pub(super) struct Sampling {
    targets: HashSet<TargetId>,
    events: Vec<PerfEventLinkId>,
}

impl Sampling {
    fn begin(&mut self, object: &mut Object) -> Result<()> {
        let processors = aya::util::online_cpus()
            .map_err(|(path, error)| anyhow::anyhow!("cannot read {path}: {error}"))?;
        let program = object.perf_event("page_fault")?;
        let mut refusal = None;
        for cpu in processors {
            let attached = program.attach(
                PerfEventConfig::Software(SoftwareEvent::PageFaults),
                PerfEventScope::AllProcessesOneCpu { cpu },
                SamplePolicy::Period(PERIOD),
                false,
            );
            match attached {
                Ok(event) => self.events.push(event),
                // It may have been taken out meanwhile.
                Err(error) => refusal = Some(error),
            }
        }
        match refusal {
            Some(error) if self.events.is_empty() => {
                bail!("the kernel refuses an event of page faults: {error}")
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, object: &mut Object) {
        let Ok(program) = object.perf_event("page_fault") else {
            return;
        };
        for event in self.events.drain(..) {
            if let Err(error) = program.detach(event) {
                tracing::debug!(%error, "an event of page faults ends with this program");
            }
        }
    }
}

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
    /// When it is no target or the kernel refuses.
    pub fn sample_faults(&mut self, id: TargetId) -> Result<()> {
        self.targets.get(&id).context("no such target")?;
        if self.faults.targets.is_empty() {
            self.faults.begin(&mut self.object)?;
        }
        self.faults.targets.insert(id);
        Ok(())
    }

    /// Ends it.
    pub fn end_faults(&mut self, id: TargetId) {
        if self.faults.targets.remove(&id) && self.faults.targets.is_empty() {
            self.faults.end(&mut self.object);
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
