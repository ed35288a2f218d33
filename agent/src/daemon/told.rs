//! What the journal is told.

use std::path::Path;

use crate::{
    alert::{Alerts, Moment, Notice},
    config::Settings,
    finding::{Death, Finding, Process, units},
    host::population::Identity,
    output::journald::{self, Journal},
    watch::Suspect,
};

/// Messages that wait for a journal that does not listen.
const MAX_WAITING: usize = 256;

/// The alerts and the way to the journal.
pub(super) struct Told {
    alerts: Alerts,
    journal: Option<Journal>,
    waiting: Vec<Notice>,
    /// Messages that could not be sent.
    pub(super) lost: u64,
    complained: bool,
}

impl Told {
    pub(super) fn new(settings: &Settings, now: Moment) -> Self {
        Self {
            alerts: Alerts::new(settings, now),
            journal: None,
            waiting: Vec::new(),
            lost: 0,
            complained: false,
        }
    }

    pub(super) fn reload(&mut self, settings: &Settings, now: Moment) {
        self.alerts.reload(settings, now);
    }

    /// A process was judged.
    pub(super) fn judged(&mut self, now: Moment, process: &mut Process) {
        // Where little was seen, nothing missing means nothing.
        if process.findings.is_empty() && process.detection_limit_bytes_per_s.is_none() {
            return;
        }
        let notices = self.alerts.judged(now, process);
        self.send(notices);
    }

    /// A process is gone.
    pub(super) fn ended(&mut self, now: Moment, identity: Identity) {
        let notices = self.alerts.ended(now, identity.pid, identity.start_time);
        self.send(notices);
    }

    /// A process died under probes.
    pub(super) fn died(&mut self, death: Death) {
        self.send(vec![Notice::Death(Box::new(death))]);
    }

    /// Time passes.
    pub(super) fn tick(&mut self, now: Moment) {
        let notices = self.alerts.tick(now);
        self.send(notices);
    }

    /// The last messages.
    pub(super) fn end(&mut self) {
        self.send(Vec::new());
    }

    /// Findings that are open, each with a process that has it.
    pub(super) fn findings(&self) -> impl Iterator<Item = (&Process, &Finding)> {
        self.alerts.open()
    }

    /// How many.
    pub(super) fn open(&self) -> usize {
        self.alerts.open().count()
    }

    fn send(&mut self, notices: Vec<Notice>) {
        self.waiting.extend(notices);
        while let Some(notice) = self.waiting.first() {
            if self.journal.is_none() {
                self.journal = Journal::connect(Path::new(journald::SOCKET)).ok();
            }
            let sent = self
                .journal
                .as_ref()
                .is_some_and(|journal| journal.tell(notice).is_ok());
            if !sent {
                self.journal = None;
                break;
            }
            self.waiting.remove(0);
            self.complained = false;
        }
        if self.waiting.is_empty() {
            return;
        }
        if !self.complained {
            tracing::error!(
                "the journal does not listen at {}: alerts wait",
                journald::SOCKET
            );
            self.complained = true;
        }
        while self.waiting.len() > MAX_WAITING {
            self.waiting.remove(0);
            self.lost += 1;
        }
    }
}

/// Why a process is looked at, for our own log.
pub(super) fn suspicion(suspect: &Suspect) -> String {
    let left = suspect.time_to_limit.map_or_else(String::new, |left| {
        format!(", {} until its memory limit", units::time(left))
    });
    format!(
        "process {} grows by {} (at least {}), {} so far{left}",
        suspect.identity.pid,
        units::rate(suspect.growth.value),
        units::rate(suspect.growth.low),
        units::bytes(suspect.net_growth as f64),
    )
}
