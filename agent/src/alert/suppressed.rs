//! Suppressions at work, and those that do nothing.

use std::time::Duration;

use super::Moment;
use crate::{
    config::Suppression,
    finding::{Finding, Process, Text},
};

/// A suppression that has not matched for this long is told.
const UNUSED: Duration = Duration::from_hours(7 * 24);

/// What is the matter with a suppression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuppressionTrouble {
    /// Its last day is over.
    Expired,
    /// It has not matched any finding for a week.
    NeverMatches,
}

/// A suppression that does nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct SuppressionNote {
    /// Its place in the list, from 0.
    pub index: usize,
    /// Reason, ticket and last day.
    pub words: Text,
    /// What is the matter.
    pub trouble: SuppressionTrouble,
}

/// How a suppression is used.
#[derive(Clone, Debug, PartialEq)]
pub struct SuppressionUse {
    /// Reason, ticket and last day.
    pub words: Text,
    /// Times it silenced a finding.
    pub matched: u64,
    /// Whether its last day is over.
    pub expired: bool,
}

#[derive(Debug)]
struct Rule {
    names: Suppression,
    since: Duration,
    matched: u64,
    told: Option<SuppressionTrouble>,
}

#[derive(Debug)]
pub(super) struct Rules(Vec<Rule>);

impl Rules {
    pub(super) fn new(list: &[Suppression], now: Moment) -> Self {
        let mut rules = Self(Vec::new());
        rules.replace(list, now);
        rules
    }

    /// Takes a new list; what is known of rules that stay is kept.
    pub(super) fn replace(&mut self, list: &[Suppression], now: Moment) {
        let mut before = std::mem::take(&mut self.0);
        for rule in list {
            let known = before.iter().position(|known| known.names == *rule);
            self.0.push(match known {
                Some(at) => before.swap_remove(at),
                None => Rule {
                    names: rule.clone(),
                    since: now.monotonic,
                    matched: 0,
                    told: None,
                },
            });
        }
    }

    /// The words of the first rule that silences a finding.
    pub(super) fn find(
        &mut self,
        now: Moment,
        process: &Process,
        finding: &Finding,
    ) -> Option<Text> {
        let rule = self
            .0
            .iter_mut()
            .find(|rule| !rule.is_over(now) && rule.names.matches(process, finding))?;
        rule.matched = rule.matched.saturating_add(1);
        Some(rule.names.words())
    }

    /// Rules that do nothing, each told once.
    pub(super) fn troubles(&mut self, now: Moment) -> Vec<SuppressionNote> {
        let mut notes = Vec::new();
        for (index, rule) in self.0.iter_mut().enumerate() {
            let trouble = if rule.is_over(now) {
                SuppressionTrouble::Expired
            } else if rule.matched == 0 && now.monotonic.saturating_sub(rule.since) >= UNUSED {
                SuppressionTrouble::NeverMatches
            } else {
                continue;
            };
            if rule.told != Some(trouble) {
                rule.told = Some(trouble);
                notes.push(SuppressionNote {
                    index,
                    words: rule.names.words(),
                    trouble,
                });
            }
        }
        notes
    }

    pub(super) fn uses(&self, now: Moment) -> Vec<SuppressionUse> {
        self.0
            .iter()
            .map(|rule| SuppressionUse {
                words: rule.names.words(),
                matched: rule.matched,
                expired: rule.is_over(now),
            })
            .collect()
    }
}

impl Rule {
    fn is_over(&self, now: Moment) -> bool {
        self.names
            .expires
            .is_some_and(|day| day.is_over(now.unix_s))
    }
}
