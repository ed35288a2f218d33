//! Which findings are told, when, and how loudly.
//!
//! One alert per fingerprint, however many processes share it: when it is
//! first seen, when it gets worse, again after `alerts.repeat`, and one when
//! it is gone. A fingerprint that comes back is told once as recurring; if it
//! comes and goes more often than that (a service that leaks, dies and is
//! restarted), the times are counted and told with the next message. More
//! than `alerts.burst` alerts in a while are summed up in one. Nothing is
//! dropped without being counted in a message.
//!
//! Knows no clock, no journal and no processes: time is passed in, messages
//! come out.

mod burst;
mod entry;
mod suppressed;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{
    config::{self, Settings, Verdicts},
    finding::{Confidence, Death, Finding, Fingerprint, Leak, Process},
};
use burst::Burst;
use entry::{Entry, Member};
use suppressed::Rules;

pub use burst::{Line, Summary};
pub use suppressed::{SuppressionNote, SuppressionTrouble, SuppressionUse};

/// Fingerprints that are remembered. One takes a few hundred bytes, or 10 KiB
/// with names as long as they may be.
pub const MAX_FINGERPRINTS: usize = 1024;

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// On a clock that only goes forward, from any start.
    pub monotonic: Duration,
    /// Seconds since 1970, for what expires on a day.
    pub unix_s: i64,
}

/// What happened to a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// It was found, or still is after `alerts.repeat`.
    Firing,
    /// Its rate grew by the factor, or it became more urgent.
    Worsened,
    /// Its processes run and it is not found any more.
    Resolved,
    /// Its last process ended.
    Ended,
    /// It was resolved or ended, and was found again.
    Recurring,
}

impl State {
    /// Stable name.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Worsened => "worsened",
            Self::Resolved => "resolved",
            Self::Ended => "ended",
            Self::Recurring => "recurring",
        }
    }

    /// Whether this is the end of something.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Resolved | Self::Ended)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

/// How urgent a message is; the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Wakes somebody: sure, and memory runs out soon.
    Page,
    /// For the morning: sure.
    Warning,
    /// For whoever looks: suspected.
    Notice,
    /// No leak, or no longer.
    Information,
}

impl Priority {
    /// The number that syslog and the journal use.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Page => "3",
            Self::Warning => "4",
            Self::Notice => "5",
            Self::Information => "6",
        }
    }

    /// How urgent a finding is. `page_within`: sure findings that reach the
    /// memory limit within this time are [`Priority::Page`].
    pub fn of(finding: &Finding, page_within: Duration) -> Self {
        let near = finding
            .time_to_limit_s
            .is_some_and(|left| left < page_within.as_secs_f64());
        match (finding.leak, finding.confidence) {
            (Leak::No, _) => Self::Information,
            (_, Confidence::Suspected) => Self::Notice,
            _ if near => Self::Page,
            _ => Self::Warning,
        }
    }
}

/// One message about one fingerprint.
#[derive(Clone, Debug)]
pub struct Alert {
    /// What happened.
    pub state: State,
    /// How urgent it is.
    pub priority: Priority,
    /// Processes that have it now.
    pub processes: usize,
    /// Times it came back since the message before, this one included.
    pub recurrences: u32,
    /// A process that has or had it, without its findings.
    pub process: Process,
    /// The finding; for an end, what is remembered of it: no stack but the
    /// site's own frame, no evidence, no tasks.
    pub finding: Finding,
}

/// Something to tell.
#[derive(Clone, Debug)]
pub enum Notice {
    /// About a fingerprint.
    Alert(Box<Alert>),
    /// About a death under probes, which is told at once and whatever the
    /// limits are.
    Death(Box<Death>),
    /// About alerts that were held back.
    Summary(Summary),
    /// About a suppression that does nothing.
    Suppression(SuppressionNote),
}

/// What was told, and what was not yet.
#[derive(Debug)]
pub struct Alerts {
    policy: config::Alerts,
    least: Verdicts,
    rules: Rules,
    entries: BTreeMap<Fingerprint, Entry>,
    burst: Burst,
}

impl Alerts {
    /// Nothing was told yet.
    pub fn new(settings: &Settings, now: Moment) -> Self {
        Self {
            policy: settings.alerts.clone(),
            least: settings.verdicts.clone(),
            rules: Rules::new(&settings.suppressions, now),
            entries: BTreeMap::new(),
            burst: Burst::default(),
        }
    }

    /// Takes new settings; what was told stays known.
    pub fn reload(&mut self, settings: &Settings, now: Moment) {
        self.policy = settings.alerts.clone();
        self.least = settings.verdicts.clone();
        self.rules.replace(&settings.suppressions, now);
    }

    /// A process was judged: its findings are all there are, conclusively. A
    /// finding that it had before and that is missing for
    /// `alerts.resolve_after` is resolved. Fills in `suppressed_by`.
    pub fn judged(&mut self, now: Moment, process: &mut Process) -> Vec<Notice> {
        let mut notices = Vec::new();
        let member = Member::of(process);
        let mut findings = std::mem::take(&mut process.findings);
        let mut seen = Vec::new();
        for finding in &mut findings {
            finding.suppressed_by = self.rules.find(now, process, finding);
            if finding.leak == Leak::No {
                continue;
            }
            if finding.suppressed_by.is_some() {
                // Somebody knows: it goes without a word, and comes back with
                // one when the suppression expires.
                self.leave_silently(now, finding.fingerprint, member);
            } else {
                seen.push(finding.fingerprint);
                self.found(now, process, finding, &mut notices);
            }
        }
        process.findings = findings;
        for fingerprint in self.having(member) {
            if !seen.contains(&fingerprint) {
                self.missing(now, fingerprint, member, &mut notices);
            }
        }
        notices
    }

    /// A process is gone.
    pub fn ended(&mut self, now: Moment, pid: u32, start_time: u64) -> Vec<Notice> {
        let mut notices = Vec::new();
        let member = Member { pid, start_time };
        for fingerprint in self.having(member) {
            self.leave(now, fingerprint, member, State::Ended, &mut notices);
        }
        notices
    }

    /// Time passes; to be called every few seconds.
    pub fn tick(&mut self, now: Moment) -> Vec<Notice> {
        let mut notices = Vec::new();
        let repeat = self.policy.repeat;
        let due: Vec<(Fingerprint, State)> = self
            .entries
            .iter()
            .filter_map(|(fingerprint, entry)| Some((*fingerprint, entry.due(now, repeat)?)))
            .collect();
        for (fingerprint, state) in due {
            self.tell(now, fingerprint, state, None, &mut notices);
        }
        notices.extend(self.burst.flush(now, &self.policy).map(Notice::Summary));
        notices.extend(
            self.rules
                .troubles(now)
                .into_iter()
                .map(Notice::Suppression),
        );
        notices
    }

    /// Fingerprints that are found now: with a process that has it, and what
    /// is remembered of the finding.
    pub fn open(&self) -> impl Iterator<Item = (&Process, &Finding)> {
        self.entries
            .values()
            .filter(|entry| entry.is_open())
            .map(|entry| (&entry.process, &entry.finding))
    }

    /// How the suppressions are used.
    pub fn suppressions(&self, now: Moment) -> Vec<SuppressionUse> {
        self.rules.uses(now)
    }

    fn having(&self, member: Member) -> Vec<Fingerprint> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.has(member))
            .map(|(fingerprint, _)| *fingerprint)
            .collect()
    }

    fn found(
        &mut self,
        now: Moment,
        process: &Process,
        finding: &Finding,
        notices: &mut Vec<Notice>,
    ) {
        let worth_telling = finding.confidence >= self.least.min_confidence
            && finding.leak_bytes_per_s.value >= self.least.min_rate.0;
        let priority = Priority::of(finding, self.policy.page_within);
        let fingerprint = finding.fingerprint;
        let known = self.entries.contains_key(&fingerprint);
        if !known && !worth_telling {
            return;
        }
        if !known && !self.make_room(now) {
            let summary = self.burst.no_room(now, priority, &self.policy);
            notices.extend(summary.map(Notice::Summary));
            return;
        }
        let entry = self
            .entries
            .entry(fingerprint)
            .or_insert_with(|| Entry::new(process, finding));
        if worth_telling || entry.is_open() {
            entry.seen(process, finding);
        }
        let state = entry
            .next(now, finding, priority, &self.policy)
            .filter(|_| worth_telling);
        if let Some(state) = state {
            self.tell(now, fingerprint, state, Some((process, finding)), notices);
        }
    }

    fn missing(
        &mut self,
        now: Moment,
        fingerprint: Fingerprint,
        member: Member,
        notices: &mut Vec<Notice>,
    ) {
        let gone = self
            .entries
            .get_mut(&fingerprint)
            .is_some_and(|entry| entry.missing(now, member) >= self.policy.resolve_after);
        if gone {
            self.leave(now, fingerprint, member, State::Resolved, notices);
        }
    }

    fn leave(
        &mut self,
        now: Moment,
        fingerprint: Fingerprint,
        member: Member,
        state: State,
        notices: &mut Vec<Notice>,
    ) {
        let to_tell = self
            .entries
            .get_mut(&fingerprint)
            .is_some_and(|entry| entry.leave(now, member, state));
        if to_tell {
            self.tell(now, fingerprint, state, None, notices);
        }
    }

    fn leave_silently(&mut self, now: Moment, fingerprint: Fingerprint, member: Member) {
        if let Some(entry) = self.entries.get_mut(&fingerprint) {
            entry.leave(now, member, State::Resolved);
        }
    }

    /// Sends a message, or holds it back for the summary.
    fn tell(
        &mut self,
        now: Moment,
        fingerprint: Fingerprint,
        state: State,
        fresh: Option<(&Process, &Finding)>,
        notices: &mut Vec<Notice>,
    ) {
        let Some(entry) = self.entries.get_mut(&fingerprint) else {
            return;
        };
        let alert = entry.alert(now, state, fresh, self.policy.page_within);
        notices.extend(self.burst.flush(now, &self.policy).map(Notice::Summary));
        notices.extend(
            self.burst
                .admit(now, alert, &self.policy)
                .map(|alert| Notice::Alert(Box::new(alert))),
        );
    }

    /// Forgets what ended longest ago, if it may come back as new by now.
    fn make_room(&mut self, now: Moment) -> bool {
        if self.entries.len() < MAX_FINGERPRINTS {
            return true;
        }
        let oldest = self
            .entries
            .iter()
            .filter_map(|(fingerprint, entry)| {
                Some((entry.forgettable(now, self.policy.repeat)?, *fingerprint))
            })
            .max();
        oldest.is_some_and(|(_, fingerprint)| self.entries.remove(&fingerprint).is_some())
    }
}
