//! What is wrong with a configuration, where, and the mend.

use std::{
    fmt,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{layer::Layer, section::Shown};

/// Problems that are told one by one; a file with more is no configuration.
const MAX_TOLD: usize = 20;

/// A step from the top of a file to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Into a group, or to a value of it.
    Key(String),
    /// To an item of a list, counted from 0.
    Index(usize),
}

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// A key that this version does not know, perhaps a later one does.
    UnknownKey,
    /// Works, but probably not as it was meant.
    Doubt,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// The file.
    pub file: Option<PathBuf>,
    /// Line in it, counted from 1.
    pub line: Option<usize>,
    /// Path of the key, as `budget.memory` or `suppressions[0].reason`.
    pub key: String,
    /// What is wrong, and the mend.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Collects problems, up to a bound.
#[derive(Debug, Default)]
pub(super) struct Problems {
    told: Vec<Problem>,
    untold: usize,
}

impl Problems {
    pub(super) fn push(&mut self, problem: Problem) {
        if self.told.len() < MAX_TOLD {
            self.told.push(problem);
        } else {
            self.untold += 1;
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.told.len() >= MAX_TOLD
    }

    pub(super) fn has(&self, severity: Severity) -> bool {
        self.told.iter().any(|problem| problem.severity == severity)
    }

    /// All of them; a last one counts those that were not kept.
    pub(super) fn into_list(mut self) -> Vec<Problem> {
        if self.untold > 0 {
            self.told.push(Problem {
                severity: Severity::Error,
                file: None,
                line: None,
                key: String::new(),
                message: format!("and {} more; mend the first ones", self.untold),
            });
        }
        self.told
    }
}

/// Where in which file reading has come to.
pub(super) struct Place<'a> {
    layer: &'a Layer,
    path: Vec<Step>,
    problems: &'a mut Problems,
}

impl<'a> Place<'a> {
    /// The top of a file.
    pub(super) fn top(layer: &'a Layer, problems: &'a mut Problems) -> Self {
        Self {
            layer,
            path: Vec::new(),
            problems,
        }
    }

    /// Does something one step further down.
    pub(super) fn within(&mut self, step: Step, read: impl FnOnce(&mut Self)) {
        self.path.push(step);
        read(self);
        self.path.pop();
    }

    /// Reports a value that cannot be used.
    pub(super) fn wrong(&mut self, message: impl Into<String>) {
        self.report(Severity::Error, message.into());
    }

    /// Reports a key that nobody knows.
    pub(super) fn unknown(&mut self, key: &str, known: &[&'static str]) {
        let hint = hint(key, known);
        self.within(Step::Key(key.to_owned()), |place| {
            place.report(Severity::UnknownKey, format!("unknown key `{key}`; {hint}"));
        });
    }

    fn report(&mut self, severity: Severity, message: String) {
        // To find the line the file is parsed again.
        let line = if self.problems.is_full() {
            None
        } else {
            self.layer.line(&self.path)
        };
        self.problems.push(Problem {
            severity,
            file: Some(self.layer.file().to_owned()),
            line,
            key: dotted(&self.path),
            message,
        });
    }
}

/// A problem with a value wherever it was set: the last file that sets it has
/// the say.
pub(super) fn of_key(
    layers: &[Layer],
    severity: Severity,
    path: &[Step],
    message: String,
) -> Problem {
    let found = layers
        .iter()
        .rev()
        .find_map(|layer| Some((layer.file().to_owned(), layer.line(path)?)));
    let (file, line) = found.unzip();
    Problem {
        severity,
        file,
        line,
        key: dotted(path),
        message,
    }
}

/// A problem with a file as a whole.
pub(super) fn of_file(file: &Path, line: Option<usize>, message: String) -> Problem {
    Problem {
        severity: Severity::Error,
        file: Some(file.to_owned()),
        line,
        key: String::new(),
        message,
    }
}

fn dotted(path: &[Step]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                // What stands in the file may be anything.
                out.extend(key.chars().take(60).flat_map(char::escape_debug));
            }
            Step::Index(index) => {
                let _ = write!(out, "[{index}]");
            }
        }
    }
    out
}

/// What the writer may have meant.
fn hint(key: &str, known: &[&'static str]) -> String {
    if let Some(near) = nearest(key, known.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    let elsewhere = sections()
        .into_iter()
        .find(|(_, keys)| keys.contains(&key))
        .map(|(section, _)| section);
    match elsewhere {
        Some(section) => format!("it belongs below `{section}`"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// Names of the groups, each with the names of its keys.
fn sections() -> Vec<(&'static str, Vec<&'static str>)> {
    use super::section::Setting as _;
    let Shown::Section(groups) = super::Settings::default().shown() else {
        return Vec::new();
    };
    groups
        .into_iter()
        .filter_map(|(group, shown)| match shown {
            Shown::Section(keys) => {
                Some((group.name, keys.iter().map(|(key, _)| key.name).collect()))
            }
            _ => None,
        })
        .collect()
}

/// The candidate that differs by the fewest slips of the finger, if these are
/// few for its length.
pub(super) fn nearest<'k>(
    word: &str,
    candidates: impl Iterator<Item = &'k str>,
) -> Option<&'k str> {
    let word: Vec<char> = word.chars().take(60).collect();
    candidates
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(slips, candidate)| *slips <= 1 + candidate.len() / 4)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that lead from
/// one word to the other.
fn distance(word: &[char], candidate: &str) -> usize {
    let candidate: Vec<char> = candidate.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=candidate.len()).collect();
    for (row, &a) in word.iter().enumerate() {
        let mut next = vec![row + 1];
        for (column, &b) in candidate.iter().enumerate() {
            let get = |line: &[usize], at: usize| line.get(at).copied().unwrap_or(usize::MAX / 2);
            let mut slips = (get(&last, column) + usize::from(a != b))
                .min(get(&last, column + 1) + 1)
                .min(get(&next, column) + 1);
            let swapped = row > 0
                && column > 0
                && word.get(row - 1) == Some(&b)
                && candidate.get(column - 1) == Some(&a);
            if swapped {
                slips = slips.min(get(&before, column - 1) + 1);
            }
            next.push(slips);
        }
        before = std::mem::replace(&mut last, next);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_counted() {
        for (word, candidate, slips) in [
            ("budget", "budget", 0),
            ("buget", "budget", 1),
            ("bugdet", "budget", 1),
            ("", "log", 3),
            ("memroy", "memory", 1),
            ("x", "", 1),
        ] {
            let letters: Vec<char> = word.chars().collect();
            assert_eq!(distance(&letters, candidate), slips, "{word} {candidate}");
        }
    }

    #[test]
    fn only_likely_names_are_offered() {
        let known = ["budget", "watch", "log"];
        assert_eq!(nearest("bugdet", known.into_iter()), Some("budget"));
        assert_eq!(nearest("wach", known.into_iter()), Some("watch"));
        assert_eq!(nearest("telemetry", known.into_iter()), None);
    }
}
