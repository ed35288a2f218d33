//! Many alerts at once: the first ones are sent, the others summed up.

use std::{collections::BTreeMap, time::Duration};

use super::{Alert, Moment, Priority, State};
use crate::{
    config,
    finding::{Confidence, Fingerprint, Text, Verdict},
};

/// Alerts that a summary names; the others are in its counts.
const MAX_LINES: usize = 100;

/// An alert that was held back.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// How urgent it would have been.
    pub priority: Priority,
    /// What happened.
    pub state: State,
    /// To what.
    pub fingerprint: Fingerprint,
    /// This occurrence, as in [`crate::finding::Finding`].
    pub finding: String,
    /// In which process.
    pub pid: u32,
    /// Its name.
    pub comm: Text,
    /// Its unit.
    pub unit: Option<Text>,
    /// What it is.
    pub verdict: Verdict,
    /// How sure that is.
    pub confidence: Confidence,
    /// Bytes per second.
    pub rate: f64,
}

/// Alerts that were held back within one window.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// As urgent as the most urgent of them.
    pub priority: Priority,
    /// From the first alert of the window to now.
    pub window: Duration,
    /// How many, by what happened.
    pub states: BTreeMap<State, usize>,
    /// The most urgent of them, at most 100, in the order they came.
    pub lines: Vec<Line>,
    /// Times that a finding could not even be remembered, because there are
    /// too many.
    pub no_room: usize,
}

impl Summary {
    /// Alerts that were held back.
    pub fn held_back(&self) -> usize {
        self.states.values().sum()
    }
}

/// The present window.
#[derive(Debug, Default)]
pub(super) struct Burst {
    /// When it began; `None`: the next alert begins one.
    start: Option<Duration>,
    sent: u32,
    priority: Option<Priority>,
    states: BTreeMap<State, usize>,
    /// With their number, counted from the start of the window.
    lines: Vec<(usize, Line)>,
    no_room: usize,
}

impl Burst {
    /// Sends the alert, or keeps it for the summary.
    pub(super) fn admit(
        &mut self,
        now: Moment,
        alert: Alert,
        policy: &config::Alerts,
    ) -> Option<Alert> {
        self.start.get_or_insert(now.monotonic);
        if self.sent < policy.burst {
            self.sent += 1;
            return Some(alert);
        }
        self.held(alert.priority);
        let number = self.states.values().sum();
        *self.states.entry(alert.state).or_default() += 1;
        let line = Line {
            priority: alert.priority,
            state: alert.state,
            fingerprint: alert.finding.fingerprint,
            finding: alert.finding.id,
            pid: alert.process.pid,
            comm: alert.process.comm,
            unit: alert.process.unit,
            verdict: alert.finding.verdict,
            confidence: alert.finding.confidence,
            rate: alert.finding.leak_bytes_per_s.value,
        };
        self.lines.push((number, line));
        if self.lines.len() > 2 * MAX_LINES {
            self.cut();
        }
        None
    }

    /// A finding found no place.
    pub(super) fn no_room(
        &mut self,
        now: Moment,
        priority: Priority,
        policy: &config::Alerts,
    ) -> Option<Summary> {
        let summary = self.flush(now, policy);
        self.start.get_or_insert(now.monotonic);
        self.held(priority);
        self.no_room = self.no_room.saturating_add(1);
        summary
    }

    /// Ends the window, if it is over: with a summary, if there is anything
    /// to sum up.
    pub(super) fn flush(&mut self, now: Moment, policy: &config::Alerts) -> Option<Summary> {
        let window = now.monotonic.saturating_sub(self.start?);
        if window < policy.burst_window {
            return None;
        }
        self.cut();
        let over = std::mem::take(self);
        Some(Summary {
            priority: over.priority?,
            window,
            states: over.states,
            lines: over.lines.into_iter().map(|(_, line)| line).collect(),
            no_room: over.no_room,
        })
    }

    fn held(&mut self, priority: Priority) {
        self.priority = Some(
            self.priority
                .map_or(priority, |before| before.min(priority)),
        );
    }

    /// Keeps the most urgent lines, of equal ones the first.
    fn cut(&mut self) {
        self.lines
            .sort_by_key(|(number, line)| (line.priority, *number));
        self.lines.truncate(MAX_LINES);
        self.lines.sort_by_key(|(number, _)| *number);
    }
}
