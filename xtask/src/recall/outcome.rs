//! What a run found, and what all of them did.

use std::fmt::{self, Write as _};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::subject::Case;

/// The function of the example that leaks.
const LEAKING: &str = "keep_for_ever";
/// What it keeps, bytes per second.
const RATE: f64 = 20.0 * 1024.0;
/// The blocks that the printed limit is for, bytes.
const LARGEST: f64 = 4096.0;
/// Share of the runs that must find the leak.
const FOUND: f64 = 0.9;

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    /// The leak is the first finding.
    first: bool,
    /// Its rate as estimated: value, low, high.
    rate: Option<[f64; 3]>,
    /// Findings elsewhere.
    others: usize,
    /// What would have been found, bytes per second.
    limit: Option<f64>,
    windows: u64,
    open_s: f64,
    slowdown: f64,
    agent: f64,
}

impl Outcome {
    /// From lingerscope's document about one process.
    pub(super) fn of(document: &Value, case: Case) -> Result<Self> {
        let process = &document["processes"][0];
        let findings = process["findings"].as_array().context("no findings")?;
        let leaking = |finding: &Value| {
            case.size > 0
                && finding["site"]["frames"]
                    .as_array()
                    .is_some_and(|frames| frames.iter().any(|frame| names(frame, LEAKING)))
        };
        let number = |value: &Value| value.as_f64();
        let rate = findings
            .iter()
            .find(|finding| leaking(finding))
            .and_then(|finding| {
                let rate = &finding["leak_bytes_per_s"];
                Some([
                    number(&rate["value"])?,
                    number(&rate["low"])?,
                    number(&rate["high"])?,
                ])
            });
        let capture = &process["capture"];
        let share = |name: &str| number(&capture[name]).unwrap_or(f64::NAN);
        Ok(Self {
            first: findings.first().is_some_and(leaking),
            rate,
            others: findings.iter().filter(|finding| !leaking(finding)).count(),
            limit: number(&process["detection_limit_bytes_per_s"]),
            windows: capture["windows"].as_u64().unwrap_or(0),
            open_s: share("open_s"),
            slowdown: share("target_slowdown_percent"),
            agent: share("agent_cpu_percent"),
        })
    }

    fn covers(&self) -> bool {
        self.rate
            .is_some_and(|[_, low, high]| low <= RATE && RATE <= high)
    }
}

fn names(frame: &Value, function: &str) -> bool {
    frame["function"]
        .as_str()
        .is_some_and(|name| name.contains(function))
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rate {
            Some([value, low, high]) => write!(
                f,
                "found, {:.1} KiB/s ({:.1} to {:.1})",
                value / 1024.0,
                low / 1024.0,
                high / 1024.0
            )?,
            None => f.write_str("nothing of the leak")?,
        }
        if self.others > 0 {
            write!(f, ", {} other findings", self.others)?;
        }
        if let Some(limit) = self.limit {
            write!(f, ", limit {:.1} KiB/s", limit / 1024.0)?;
        }
        write!(
            f,
            "; {} windows, open {:.2} s, slowdown {:.2} %, own {:.2} %",
            self.windows, self.open_s, self.slowdown, self.agent
        )
    }
}

/// The runs of one program.
pub(super) struct Tally {
    pub(super) case: Case,
    runs: Vec<Outcome>,
}

impl Tally {
    pub(super) fn new(case: Case) -> Self {
        Self {
            case,
            runs: Vec::new(),
        }
    }

    pub(super) fn enter(&mut self, outcome: Outcome) {
        self.runs.push(outcome);
    }

    fn count(&self, which: impl Fn(&Outcome) -> bool) -> usize {
        self.runs.iter().filter(|run| which(run)).count()
    }

    fn middle(&self, of: impl Fn(&Outcome) -> Option<f64>) -> Option<f64> {
        let mut all: Vec<f64> = self.runs.iter().filter_map(of).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

pub(super) fn table(tallies: &[Tally]) -> String {
    let mut text = String::from(
        "| program | found | first | interval right | other findings | rate, KiB/s | limit, KiB/s | slowdown, % | own, % of a core |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for tally in tallies {
        let of = |count: usize| format!("{count}/{}", tally.runs.len());
        let show = |value: Option<f64>, unit: f64, digits: usize| {
            value.map_or_else(
                || "-".to_owned(),
                |value| format!("{:.digits$}", value / unit),
            )
        };
        let found = tally.count(|run| run.rate.is_some());
        let leak = |text: String| {
            if tally.case.size == 0 {
                "-".to_owned()
            } else {
                text
            }
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            tally.case,
            leak(of(found)),
            leak(of(tally.count(|run| run.first))),
            leak(format!("{}/{found}", tally.count(Outcome::covers))),
            of(tally.count(|run| run.others > 0)),
            show(tally.middle(|run| Some(run.rate?[0])), 1024.0, 1),
            show(tally.middle(|run| run.limit), 1024.0, 1),
            show(tally.middle(|run| Some(run.slowdown)), 1.0, 2),
            show(tally.middle(|run| Some(run.agent)), 1.0, 2),
        );
    }
    text
}

impl Tally {
    /// Whether a leak of these blocks is one that must be found: lingerscope's
    /// own limit, which holds for the largest blocks, says so.
    fn is_within_the_limit(&self) -> bool {
        let share = self.case.size as f64 / LARGEST;
        self.case.size > 0
            && self
                .middle(|run| run.limit)
                .is_none_or(|limit| limit * share <= RATE)
    }
}

/// An error unless enough leaks were found of those that must be, and nothing
/// else.
pub(super) fn judge(tallies: &[Tally]) -> Result<()> {
    let mut wrong = Vec::new();
    for tally in tallies {
        let runs = tally.runs.len() as f64;
        let found = tally.count(|run| run.rate.is_some()) as f64;
        if tally.is_within_the_limit() && found < runs * FOUND {
            wrong.push(format!("{}: found in {found} of {runs} runs", tally.case));
        }
        let others = tally.count(|run| run.others > 0);
        if others > 0 {
            wrong.push(format!(
                "{}: findings elsewhere in {others} of {runs} runs",
                tally.case
            ));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!(wrong.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::recall::subject::Allocator;

    const CASE: Case = Case {
        allocator: Allocator::Glibc,
        size: 64,
        same: false,
    };

    fn document(function: &str) -> Value {
        json!({ "processes": [{
            "capture": { "windows": 5, "open_s": 0.5, "target_slowdown_percent": 0.5, "agent_cpu_percent": 1.5 },
            "detection_limit_bytes_per_s": 9000.0,
            "findings": [{
                "leak_bytes_per_s": { "value": 20000.0, "low": 15000.0, "high": 30000.0 },
                "site": { "frames": [{ "function": "malloc" }, { "function": function }] },
            }],
        }]})
    }

    #[test]
    fn a_finding_counts_where_the_leak_is() {
        let right = Outcome::of(&document("churn::keep_for_ever"), CASE).unwrap();
        assert!(right.first && right.covers() && right.others == 0);
        let wrong = Outcome::of(&document("churn::session"), CASE).unwrap();
        assert!(!wrong.first && wrong.rate.is_none() && wrong.others == 1);
        let mut tally = Tally::new(CASE);
        tally.enter(right);
        assert!(judge(&[tally]).is_ok());
        let mut tally = Tally::new(CASE);
        tally.enter(wrong);
        let said = judge(&[tally]).unwrap_err().to_string();
        assert!(
            said.contains("0 of 1") && said.contains("elsewhere"),
            "{said}"
        );
    }
}
