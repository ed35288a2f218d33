//! What is remembered of one fingerprint.

use std::{collections::BTreeMap, time::Duration};

use super::{Alert, Moment, Priority, State};
use crate::{
    config,
    finding::{Finding, Process, Site, site_frame},
};

/// Processes that are remembered for one fingerprint; a process beyond them
/// does not count for its end.
const MAX_MEMBERS: usize = 256;

/// A process, whatever becomes of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    pub(super) pid: u32,
    pub(super) start_time: u64,
}

impl Member {
    pub(super) fn of(process: &Process) -> Self {
        Self {
            pid: process.pid,
            start_time: process.start_time,
        }
    }
}

/// The last message that was sent or held back for a summary.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// When a beginning, a change or a repetition was told.
    at: Duration,
    /// When a return was told.
    recurring: Option<Duration>,
    rate: f64,
    priority: Priority,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// Who had it last.
    pub(super) process: Process,
    /// What it was, cut down to what an end needs.
    pub(super) finding: Finding,
    /// Who has it, and since when it was not found there.
    members: BTreeMap<Member, Option<Duration>>,
    told: Option<Told>,
    /// Whether the present episode was told, so that its end is to be told.
    announced: bool,
    /// Returns that were not told yet.
    silent: u32,
    /// When and how the last episode ended.
    closed: Option<(Duration, State)>,
}

impl Entry {
    /// Nobody has it yet, and nothing was told.
    pub(super) fn new(process: &Process, finding: &Finding) -> Self {
        Self {
            process: identity(process),
            finding: remembered(finding),
            members: BTreeMap::new(),
            told: None,
            announced: false,
            silent: 0,
            closed: None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.members.is_empty()
    }

    pub(super) fn has(&self, member: Member) -> bool {
        self.members.contains_key(&member)
    }

    /// A process has it.
    pub(super) fn seen(&mut self, process: &Process, finding: &Finding) {
        if !self.is_open() && self.closed.is_some() {
            self.silent = self.silent.saturating_add(1);
        }
        let member = Member::of(process);
        if self.members.len() < MAX_MEMBERS || self.has(member) {
            self.members.insert(member, None);
        }
        self.process = identity(process);
        self.finding = remembered(finding);
    }

    /// What is to be told now that it was seen.
    pub(super) fn next(
        &self,
        now: Moment,
        finding: &Finding,
        priority: Priority,
        policy: &config::Alerts,
    ) -> Option<State> {
        let Some(told) = self.told else {
            return Some(State::Firing);
        };
        let since = |at: Duration| now.monotonic.saturating_sub(at);
        let worse = priority < told.priority
            || finding.leak_bytes_per_s.value >= told.rate * policy.worsened_factor;
        if self.silent > 0 && told.recurring.is_none_or(|at| since(at) >= policy.repeat) {
            Some(State::Recurring)
        } else if worse {
            Some(State::Worsened)
        } else if since(told.at) >= policy.repeat && self.announced {
            Some(State::Firing)
        } else {
            None
        }
    }

    /// A process was judged and does not have it: for how long now.
    pub(super) fn missing(&mut self, now: Moment, member: Member) -> Duration {
        match self.members.get_mut(&member) {
            Some(since) => now
                .monotonic
                .saturating_sub(*since.get_or_insert(now.monotonic)),
            None => Duration::ZERO,
        }
    }

    /// A process does not have it any more; whether that is to be told.
    pub(super) fn leave(&mut self, now: Moment, member: Member, state: State) -> bool {
        if self.members.remove(&member).is_none() || self.is_open() {
            return false;
        }
        self.closed = Some((now.monotonic, state));
        std::mem::take(&mut self.announced)
    }

    /// What time alone makes to be told: returns that were held back.
    pub(super) fn due(&self, now: Moment, repeat: Duration) -> Option<State> {
        let told = self.told?;
        if self.silent == 0 {
            return None;
        }
        let since = |at: Duration| now.monotonic.saturating_sub(at);
        if self.is_open() {
            told.recurring
                .is_none_or(|at| since(at) >= repeat)
                .then_some(State::Recurring)
        } else {
            self.closed
                .filter(|(at, _)| since(*at) >= repeat)
                .map(|(_, state)| state)
        }
    }

    /// For how long it has been closed, if nobody misses it.
    pub(super) fn forgettable(&self, now: Moment, repeat: Duration) -> Option<Duration> {
        let (at, _) = self
            .closed
            .filter(|_| !self.is_open() && self.silent == 0)?;
        let age = now.monotonic.saturating_sub(at);
        (age >= repeat).then_some(age)
    }

    /// The message, which counts as told from now on.
    pub(super) fn alert(
        &mut self,
        now: Moment,
        state: State,
        fresh: Option<(&Process, &Finding)>,
        page_within: Duration,
    ) -> Alert {
        let (process, finding) = match fresh {
            Some((process, finding)) => (identity(process), finding.clone()),
            None => (self.process.clone(), self.finding.clone()),
        };
        let recurrences = std::mem::take(&mut self.silent);
        let priority = if state.is_end() {
            Priority::Information
        } else {
            let priority = Priority::of(&finding, page_within);
            let recurring = self.told.and_then(|told| told.recurring);
            self.told = Some(Told {
                at: now.monotonic,
                recurring: if recurrences > 0 {
                    Some(now.monotonic)
                } else {
                    recurring
                },
                // A growth from nothing has no factor.
                rate: finding.leak_bytes_per_s.value.max(1.0),
                priority,
            });
            self.announced = true;
            priority
        };
        Alert {
            state,
            priority,
            processes: self.members.len(),
            recurrences,
            process,
            finding,
        }
    }
}

/// A process without what was observed of it.
fn identity(process: &Process) -> Process {
    Process {
        pid: process.pid,
        ns_pid: process.ns_pid,
        start_time: process.start_time,
        uid: process.uid,
        comm: process.comm.clone(),
        exe: process.exe.clone(),
        build_id: process.build_id.clone(),
        cgroup: process.cgroup.clone(),
        unit: process.unit.clone(),
        container_id: process.container_id.clone(),
        ..Process::default()
    }
}

/// A finding without what fills memory.
fn remembered(finding: &Finding) -> Finding {
    Finding {
        fingerprint: finding.fingerprint,
        id: finding.id.clone(),
        verdict: finding.verdict,
        confidence: finding.confidence,
        leak: finding.leak,
        leak_bytes_per_s: finding.leak_bytes_per_s,
        live_bytes: finding.live_bytes,
        live_blocks: finding.live_blocks,
        oldest_s: finding.oldest_s,
        site: Site {
            frames: site_frame(&finding.site.frames)
                .cloned()
                .into_iter()
                .collect(),
            truncated: None,
        },
        tasks: Vec::new(),
        members: Vec::new(),
        evidence: Vec::new(),
        advice: String::new(),
        time_to_limit_s: finding.time_to_limit_s,
        suppressed_by: None,
    }
}
