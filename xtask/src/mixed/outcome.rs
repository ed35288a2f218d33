//! What came of a run: the table, the alerts, and whether they are right.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::programs::{CONTAINED, LEAKING_FUNCTION};
use crate::{
    daemon::{Alert, Attention, Footprint},
    fleet::{
        Fleet,
        census::{self, Process, mebibytes},
    },
};

/// The one that has to be told.
pub(super) struct Leak {
    pub(super) pid: u32,
    /// Of the control group that it is in, if it could be given one.
    pub(super) container_id: Option<String>,
    /// It has a root of its own, in which it is [`CONTAINED`], and process
    /// ids of its own, in which it is 1.
    pub(super) own_root: bool,
}

/// The measurements of a run.
pub(super) struct Outcome {
    begin: Instant,
    /// By the name of the program.
    rows: BTreeMap<String, Row>,
    daemon_begin: Footprint,
    daemon_end: Footprint,
    most_files: usize,
    most_resident: u64,
}

/// A program with its processes.
struct Row {
    /// The name that the kernel knows.
    comm: String,
    start: u64,
    end: u64,
    most: u64,
    processes: usize,
}

impl Outcome {
    pub(super) fn begin(all: &[Process], fleet: &Fleet, daemon: Footprint) -> Self {
        let mut outcome = Self {
            begin: Instant::now(),
            rows: BTreeMap::new(),
            daemon_begin: daemon,
            daemon_end: daemon,
            most_files: 0,
            most_resident: 0,
        };
        outcome.look(all, fleet, daemon);
        outcome
    }

    /// One more look.
    pub(super) fn look(&mut self, all: &[Process], fleet: &Fleet, daemon: Footprint) {
        self.daemon_end = daemon;
        self.most_files = self.most_files.max(daemon.files.all);
        self.most_resident = self.most_resident.max(daemon.resident);
        for program in fleet.programs() {
            let tree: Vec<&Process> = census::tree(all, program.pid()).collect();
            let anonymous = tree.iter().map(|process| process.anonymous()).sum();
            let row = self
                .rows
                .entry(program.name.clone())
                .or_insert_with(|| Row {
                    comm: tree
                        .iter()
                        .find(|process| process.pid == program.pid())
                        .map_or_else(String::new, |process| process.name.clone()),
                    start: anonymous,
                    end: 0,
                    most: 0,
                    processes: 0,
                });
            row.end = anonymous;
            row.most = row.most.max(anonymous);
            row.processes = row.processes.max(tree.len());
        }
    }

    /// Prints everything. The last sentence; an error if something is wrong.
    pub(super) fn print(
        &self,
        fleet: &Fleet,
        leak: &Leak,
        alerts: &[Alert],
        attention: &BTreeMap<u32, Attention>,
    ) -> Result<String, String> {
        println!("\n{}", self.table(fleet, alerts, attention));
        println!("{}\n", self.daemon());
        let mut right = 0;
        let mut wrong = Vec::new();
        for alert in alerts {
            let owner = alert.pid().and_then(|pid| fleet.owner(pid));
            let judged = judge(alert, leak, owner.map(|program| program.name.as_str()));
            println!("[{}] {}", judged.word(), alert.line());
            match judged {
                Judged::Leak => right += 1,
                Judged::Wrong(why) => wrong.push(format!("{why}: {}", alert.line())),
                Judged::Quiet | Judged::Elsewhere => {}
            }
        }
        if let Some(first) = alerts
            .iter()
            .find(|alert| judge(alert, leak, None) == Judged::Leak)
        {
            println!("\nthe first alert about the leak, as the journal has it:");
            for name in [
                "MESSAGE",
                "PRIORITY",
                "LINGERSCOPE_VERDICT",
                "LINGERSCOPE_CONFIDENCE",
                "LINGERSCOPE_PID",
                "LINGERSCOPE_NS_PID",
                "LINGERSCOPE_EXE",
                "LINGERSCOPE_CGROUP",
                "LINGERSCOPE_CONTAINER_ID",
                "LINGERSCOPE_SITE",
                "LINGERSCOPE_EVIDENCE",
            ] {
                println!("  {name}={}", first.field(name).replace('\n', "\n    "));
            }
            println!("  the program's own frames of LINGERSCOPE_STACK:");
            let stack = first.field("LINGERSCOPE_STACK");
            for frame in stack.lines().filter(|frame| frame.starts_with('>')) {
                println!("    {frame}");
            }
        }
        println!();
        if !wrong.is_empty() {
            return Err(format!("wrong alerts:\n  {}", wrong.join("\n  ")));
        }
        if right == 0 {
            return Err(format!("the leak of process {} was not told", leak.pid));
        }
        Ok(format!(
            "mixed: right: the leak in {LEAKING_FUNCTION} was told ({right} alerts), nothing else of {} programs",
            fleet.programs().len()
        ))
    }

    fn table(
        &self,
        fleet: &Fleet,
        alerts: &[Alert],
        attention: &BTreeMap<u32, Attention>,
    ) -> String {
        let mut lines = vec![
            "| program | pid | comm | processes | anonymous MiB start -> end (most) | suspected | followed | alerts |"
                .to_owned(),
            "| --- | --- | --- | --- | --- | --- | --- | --- |".to_owned(),
        ];
        for program in fleet.programs() {
            let Some(row) = self.rows.get(&program.name) else {
                continue;
            };
            let ours = |pid: u32| {
                fleet
                    .owner(pid)
                    .is_some_and(|owner| owner.pid() == program.pid())
            };
            let seen = attention.iter().filter(|(pid, _)| ours(**pid)).fold(
                Attention::default(),
                |sum, (_, seen)| Attention {
                    suspected: sum.suspected + seen.suspected,
                    followed: sum.followed + seen.followed,
                },
            );
            let told = alerts
                .iter()
                .filter(|alert| alert.is_loud() && alert.pid().is_some_and(ours))
                .count();
            let yes = |count: usize| if count > 0 { "yes" } else { "no" };
            lines.push(format!(
                "| {} | {} | {} | {} | {:.1} -> {:.1} ({:.1}) | {} | {} | {told} |",
                program.name,
                program.pid(),
                row.comm,
                row.processes,
                mebibytes(row.start),
                mebibytes(row.end),
                mebibytes(row.most),
                yes(seen.suspected),
                yes(seen.followed),
            ));
        }
        lines.join("\n")
    }

    /// What the daemon took.
    fn daemon(&self) -> String {
        let (begin, end) = (&self.daemon_begin, &self.daemon_end);
        let took = end.time.saturating_sub(begin.time);
        let share = took.as_secs_f64()
            / self
                .begin
                .elapsed()
                .max(Duration::from_secs(1))
                .as_secs_f64();
        format!(
            "daemon: {:.2} % of one processor; RSS {:.1} -> {:.1} MiB (most {:.1}); files {} -> {} (most {}); threads {} -> {}",
            share * 100.0,
            mebibytes(begin.resident),
            mebibytes(end.resident),
            mebibytes(self.most_resident),
            begin.files.all,
            end.files.all,
            self.most_files,
            begin.threads,
            end.threads,
        )
    }
}

/// What to think of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Judged {
    /// The leak, with its function.
    Leak,
    /// The end of something told before.
    Quiet,
    /// About a program that we have not started: nobody knows here whether it
    /// leaks.
    Elsewhere,
    /// With its reason.
    Wrong(String),
}

impl Judged {
    fn word(&self) -> &'static str {
        match self {
            Self::Leak => "right",
            Self::Quiet => "end",
            Self::Elsewhere => "not our program",
            Self::Wrong(_) => "WRONG",
        }
    }
}

/// `owner` is the program of ours that the alert is about.
fn judge(alert: &Alert, leak: &Leak, owner: Option<&str>) -> Judged {
    if !alert.is_loud() {
        return Judged::Quiet;
    }
    let Some(pid) = alert.pid() else {
        return Judged::Wrong("about no process".into());
    };
    if pid != leak.pid {
        return owner.map_or(Judged::Elsewhere, |owner| {
            Judged::Wrong(format!("{owner} does not leak"))
        });
    }
    if !alert.field("LINGERSCOPE_STACK").contains(LEAKING_FUNCTION) {
        return Judged::Wrong(format!("it does not name {LEAKING_FUNCTION}"));
    }
    if let Some(id) = &leak.container_id
        && alert.field("LINGERSCOPE_CONTAINER_ID") != id
    {
        return Judged::Wrong(format!(
            "its container is {} and not {id}",
            alert.field("LINGERSCOPE_CONTAINER_ID")
        ));
    }
    if leak.own_root && !alert.field("LINGERSCOPE_EXE").ends_with(CONTAINED) {
        return Judged::Wrong("its executable is not named".into());
    }
    if leak.own_root && alert.field("LINGERSCOPE_NS_PID") != "1" {
        return Judged::Wrong("its process id in the container is not told".into());
    }
    Judged::Leak
}

/// Names of our programs for the process ids in a line of the daemon's log.
pub(super) fn names(line: &str, fleet: &Fleet) -> String {
    line.split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .find_map(|pid| fleet.owner(pid))
        .map_or_else(String::new, |owner| format!("  <- {}", owner.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn alert(pid: &str, state: &str, stack: &str) -> Alert {
        Alert(json!({
            "LINGERSCOPE_PID": pid,
            "LINGERSCOPE_STATE": state,
            "LINGERSCOPE_STACK": stack,
            "LINGERSCOPE_CONTAINER_ID": "c0ffee",
            "LINGERSCOPE_EXE": CONTAINED,
            "LINGERSCOPE_NS_PID": "1",
            "PRIORITY": "5",
        }))
    }

    const STACK: &str = "  malloc\n> server::app::map::remember (map.rs:22)";

    #[test]
    fn only_the_leak_at_its_function_is_right() {
        let leak = Leak {
            pid: 7,
            container_id: None,
            own_root: false,
        };
        let judged = |alert, owner| judge(&alert, &leak, owner).word();
        assert_eq!(judged(alert("7", "firing", STACK), None), "right");
        assert_eq!(
            judged(alert("7", "firing", "> server::main"), None),
            "WRONG"
        );
        assert_eq!(judged(alert("8", "firing", STACK), Some("redis")), "WRONG");
        assert_eq!(judged(alert("8", "firing", STACK), None), "not our program");
        assert_eq!(judged(alert("8", "ended", STACK), Some("redis")), "end");
        assert_eq!(judged(alert("", "firing", STACK), None), "WRONG");
    }

    #[test]
    fn a_container_is_labelled() {
        let leak = |id: &str| Leak {
            pid: 7,
            container_id: Some(id.to_owned()),
            own_root: true,
        };
        let judged = |alert, id| judge(&alert, &leak(id), None).word();
        assert_eq!(judged(alert("7", "firing", STACK), "c0ffee"), "right");
        assert_eq!(judged(alert("7", "firing", STACK), "decaf"), "WRONG");
        let mut outside = alert("7", "firing", STACK);
        outside.0["LINGERSCOPE_NS_PID"] = json!("7");
        assert_eq!(judged(outside, "c0ffee"), "WRONG");
    }
}
