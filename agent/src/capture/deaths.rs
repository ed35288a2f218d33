//! How targets end, and whether probes may have been the cause.
//!
//! Watched are processes whose probes are on, and those whose probes came off
//! within the last minute, followed or not.

use std::collections::HashMap;

use agent_ebpf::{
    abi::ending::{ExitRecord, Signs},
    logic::ending,
};
use anyhow::{Context as _, Result};

use super::{Capture, TargetId, bpf, events::Reason, target::Target};
use crate::{
    finding::Text,
    host::{
        kernel,
        process::{self, Process},
        quarantine::{Build, Entry},
    },
};

/// A fault within so long after the probes came off may still be theirs.
pub const LATELY_NS: u64 = 60_000_000_000;
/// Processes that are watched beyond their time as targets; the kernel's table
/// has room for as many beside the targets.
const MAX_LATELY: usize = agent_ebpf::abi::heap::MAX_TARGETS as usize;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The wait status.
    pub status: u32,
    /// When, CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// Whether the kernel killed it for want of memory; `None`: not known.
    pub oom: Option<bool>,
    signs: Signs,
}

/// A fault that ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its signal, which may be another than the one that ended the process.
    pub signal: i32,
    /// Its `si_code`.
    pub code: i32,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
}

impl Ending {
    pub(super) fn of(record: &ExitRecord) -> Self {
        let killed = ending::signal(record.status) == libc::SIGKILL as u32;
        let chosen = (record.watched != 0).then_some(record.signs.oom != 0);
        Self {
            status: record.status,
            at_ns: record.at_ns,
            oom: if killed { chosen } else { Some(false) },
            signs: record.signs,
        }
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        let signal = ending::signal(self.status);
        (signal != 0).then_some(signal as i32)
    }

    /// Its exit status.
    pub fn exit_status(&self) -> Option<i32> {
        (self.signal().is_none()).then_some((self.status >> 8 & 0xff) as i32)
    }

    /// The fault of its own that it ended of.
    pub fn fault(&self) -> Option<Fault> {
        ending::is_of_fault(self.status, self.at_ns, &self.signs).then_some(Fault {
            signal: self.signs.fault_signal as i32,
            code: self.signs.fault_code,
            at_ns: self.signs.fault_ns,
        })
    }
}

/// A process whose probes may have been the end of it.
#[derive(Clone, Debug)]
pub struct Suspected {
    /// Who it is.
    pub process: Process,
    /// Its executable; `None` where that could not be read.
    pub build: Option<Build>,
    /// CLOCK_MONOTONIC when it became a target.
    pub began_ns: u64,
    /// CLOCK_MONOTONIC when its probes came off; `None`: they are on.
    pub off_ns: Option<u64>,
}

/// Whose end is watched.
#[derive(Default)]
pub(super) struct Deaths {
    /// The kernel tells whom it kills for want of memory.
    tells_oom: bool,
    /// No targets any more.
    pub(super) lately: HashMap<TargetId, Suspected>,
}

impl Capture {
    /// Watches for the end of a process from now on: whoever is to be probed.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn watch_for_end(&mut self, id: TargetId) -> Result<()> {
        self.events.need(&mut self.object, Reason::Ends)?;
        if !self.deaths.tells_oom {
            let told = self.events.need(&mut self.object, Reason::Victims);
            if let Err(error) = &told {
                tracing::debug!(error = %format_args!("{error:#}"), "who is killed for want of memory is not told");
            }
            self.deaths.tells_oom = told.is_ok();
        }
        // Another process has had the number.
        self.deaths.lately.remove(&id);
        // SAFETY: the map's own types.
        unsafe { bpf::update(self.object.map("SIGNS")?, &id, &Signs::default()) }
            .context("cannot watch for the end of a process")?;
        if let Some(target) = self.targets.get_mut(&id) {
            target.watched = true;
        }
        Ok(())
    }

    /// Forgets a process that is not to be probed after all, or is watched no
    /// more.
    pub(super) fn unwatch(&self, id: TargetId) {
        // SAFETY: the map's own types.
        let removed = self
            .object
            .map("SIGNS")
            .and_then(|map| Ok(unsafe { bpf::delete(map, &id) }?));
        if let Err(error) = removed {
            tracing::debug!(error = %format_args!("{error:#}"), "the end of a process is watched in vain");
        }
    }

    /// A target is none any more; its end is watched for a while.
    pub(super) fn part_from(&mut self, target: &Target) {
        if !target.watched {
            return;
        }
        let id = target.process.pid;
        let Some(suspected) = suspected(target).filter(|_| !target.ended) else {
            self.unwatch(id);
            return;
        };
        let lately = &mut self.deaths.lately;
        if lately.len() >= MAX_LATELY
            && let Some(oldest) = lately
                .iter()
                .min_by_key(|(_, suspected)| suspected.off_ns)
                .map(|(id, _)| *id)
        {
            lately.remove(&oldest);
            *self.lost.entry("ends_not_watched").or_default() += 1;
            self.unwatch(oldest);
        }
        self.deaths.lately.insert(id, suspected);
    }

    /// Who ended, if probes may have been the cause of a fault at that time.
    /// To be asked once, when it has ended.
    pub fn suspected(&mut self, id: TargetId, fault_ns: u64) -> Option<Suspected> {
        let lately = self.deaths.lately.remove(&id);
        let suspected = lately.or_else(|| suspected(self.targets.get(&id)?))?;
        let after = fault_ns.saturating_sub(suspected.off_ns.unwrap_or(fault_ns));
        (after < LATELY_NS).then_some(suspected)
    }

    /// Enters a death into the quarantine: the build is not probed again for
    /// that user.
    ///
    /// # Errors
    /// Why it is not remembered, or for this run only.
    pub fn quarantine(&mut self, suspected: &Suspected, signal: i32) -> Result<Entry> {
        let exe = process::exe_path(&suspected.process);
        let exe = Text::name(exe.as_os_str().as_encoded_bytes());
        let build = suspected
            .build
            .clone()
            .context("its executable cannot be read")?;
        let uid = suspected.process.uid;
        self.quarantine
            .add(build, exe.as_str().to_owned(), uid, signal)
            .context("it is remembered for this run only")
    }

    /// A process has ended.
    pub(super) fn ended(&mut self, id: TargetId, ending: &mut Ending) {
        if let Some(target) = self.targets.get_mut(&id) {
            target.ended = true;
        }
        if !self.deaths.tells_oom && ending.signal() == Some(libc::SIGKILL) {
            ending.oom = None;
        }
        if ending.fault().is_none() {
            self.deaths.lately.remove(&id);
        }
    }

    /// Gives up those whose time is over, and the events with the last one.
    pub(super) fn tend_deaths(&mut self) {
        let now = kernel::monotonic_ns();
        let over = |suspected: &Suspected| {
            let off = now.saturating_sub(suspected.off_ns.unwrap_or(now));
            off > LATELY_NS + ending::WITHIN_NS
        };
        let past: Vec<(TargetId, Suspected)> = self
            .deaths
            .lately
            .extract_if(|_, suspected| over(suspected))
            .collect();
        for (id, suspected) in past {
            self.unwatch(id);
            // The record of its end found no room.
            if !suspected.process.is_running() {
                *self.lost.entry("ends_not_watched").or_default() += 1;
            }
        }
        if !self.is_anybody_watched() {
            self.events.release(&mut self.object, Reason::Ends);
            self.events.release(&mut self.object, Reason::Victims);
            self.deaths.tells_oom = false;
        }
    }

    /// Whether the end of any process is watched.
    fn is_anybody_watched(&self) -> bool {
        let watched = |target: &Target| target.watched && !target.ended;
        !self.deaths.lately.is_empty() || self.targets.values().any(watched)
    }
}

/// A target whose probes are, or were, on.
fn suspected(target: &Target) -> Option<Suspected> {
    let off_ns = match (target.is_attached(), target.unprobed_ns) {
        (true, _) => None,
        (false, Some(off)) => Some(off),
        (false, None) => return None,
    };
    let exe = process::exe_path(&target.process);
    Some(Suspected {
        process: target.process.clone(),
        build: target.space.module(&exe).and_then(Build::of),
        began_ns: target.began_ns,
        off_ns,
    })
}
