//! Findings that somebody has looked at and does not want to be told of.

use std::fmt::Write as _;

use super::{pattern::Pattern, scalar::Day, section::section};
use crate::finding::{Finding, Process, Text, Verdict};

section! {
    /// Silences findings that match everything it names.
    pub struct Suppression {
        /// Verdict, such as unbounded-growth.
        verdict: Option<Verdict> = None,
        /// Executable: a path, or a file name without slash.
        exe: Option<Pattern> = None,
        /// systemd unit.
        unit: Option<Pattern> = None,
        /// Any function of the site's stack.
        function: Option<Pattern> = None,
        /// Why; required.
        reason: Option<String> = None,
        /// Where it is worked on.
        ticket: Option<String> = None,
        /// Last day, in UTC.
        expires: Option<Day> = None,
    }
}

impl Suppression {
    /// Whether nothing is named, so that everything would match.
    pub fn is_empty(&self) -> bool {
        self.verdict.is_none()
            && self.exe.is_none()
            && self.unit.is_none()
            && self.function.is_none()
    }

    /// Whether it names this finding; whether it has expired is another
    /// question.
    pub fn matches(&self, process: &Process, finding: &Finding) -> bool {
        let exe = |pattern: &Pattern| {
            process
                .exe
                .as_ref()
                .is_some_and(|exe| pattern.matches_path(exe.as_str()))
        };
        let unit = |pattern: &Pattern| {
            process
                .unit
                .as_ref()
                .is_some_and(|unit| pattern.matches(unit.as_str()))
        };
        let function = |pattern: &Pattern| {
            finding
                .site
                .frames
                .iter()
                .filter_map(|frame| frame.function.as_ref())
                .any(|name| pattern.matches(name.as_str()))
        };
        !self.is_empty()
            && self
                .verdict
                .is_none_or(|verdict| verdict == finding.verdict)
            && self.exe.as_ref().is_none_or(exe)
            && self.unit.as_ref().is_none_or(unit)
            && self.function.as_ref().is_none_or(function)
    }

    /// The rule in words, for `suppressed_by`: its reason, ticket and end.
    pub fn words(&self) -> Text {
        let mut words = self.reason.clone().unwrap_or_default();
        if let Some(ticket) = &self.ticket {
            let _ = write!(words, " ({ticket})");
        }
        if let Some(day) = self.expires {
            let _ = write!(words, ", until {day}");
        }
        Text::sentence(words)
    }
}
