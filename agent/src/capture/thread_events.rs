//! Software events on the threads of one process: they call a kernel program
//! without a breakpoint, and no other process pays for them.

use anyhow::{Result, bail};
use aya::programs::perf_event::{
    PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};

use super::object::Object;
use crate::host::process;

/// Threads that get an event of their own; later ones inherit one.
const MAX_THREADS: usize = 512;

/// Events of one kind on one process.
pub(super) struct ThreadEvents {
    program: &'static str,
    links: Vec<PerfEventLinkId>,
}

impl ThreadEvents {
    /// Has a program called for every so many events of each thread, and of
    /// those that it starts.
    ///
    /// # Errors
    /// When the process has ended or the kernel refuses.
    pub(super) fn attach(
        object: &mut Object,
        program: &'static str,
        event: SoftwareEvent,
        period: u64,
        pid: u32,
    ) -> Result<Self> {
        let loaded = object.perf_event(program)?;
        let mut links = Vec::new();
        let mut refusal = None;
        for thread in process::threads(pid).into_iter().take(MAX_THREADS) {
            let attached = loaded.attach(
                PerfEventConfig::Software(event),
                PerfEventScope::OneProcess {
                    pid: thread,
                    cpu: None,
                },
                SamplePolicy::Period(period),
                true,
            );
            match attached {
                Ok(link) => links.push(link),
                // A thread may have ended meanwhile.
                Err(error) => refusal = Some(error),
            }
        }
        match refusal {
            Some(error) if links.is_empty() => bail!("cannot attach to process {pid}: {error}"),
            _ => Ok(Self { program, links }),
        }
    }

    /// Ends them.
    pub(super) fn detach(self, object: &mut Object) {
        let Ok(program) = object.perf_event(self.program) else {
            return;
        };
        for link in self.links {
            if let Err(error) = program.detach(link) {
                tracing::debug!(%error, "an event of a thread ends with this program");
            }
        }
    }
}
