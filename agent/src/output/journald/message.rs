//! The fields of one message.

use std::{fmt::Write as _, time::Duration};

use super::{end_message_id, message_id};
use crate::{
    alert::{Alert, Priority, State},
    finding::{
        Finding, Frame, Process, Task, Text, is_user_frame, site_frame,
        units::{bytes, rate, time},
    },
};

/// Tasks that a message names.
const MAX_TASKS: usize = 10;

/// A message in the journal's native format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// Describes a finding.
    pub fn of(process: &Process, finding: &Finding, page_within: Duration) -> Self {
        let priority = Priority::of(finding, page_within);
        let mut message = Self::begin(
            &sentence(process, finding),
            message_id(finding.verdict),
            priority,
        );
        message.finding(State::Firing, process, finding);
        message.details(finding);
        message.object(State::Firing, process);
        message
    }

    /// Tells what became of a finding.
    pub fn alert(alert: &Alert) -> Self {
        let Alert {
            state,
            process,
            finding,
            ..
        } = alert;
        let id = end_message_id(*state).unwrap_or(message_id(finding.verdict));
        let mut message = Self::begin(&alert_sentence(alert), id, alert.priority);
        message.finding(*state, process, finding);
        if !state.is_end() {
            message.details(finding);
        }
        message.field("LINGERSCOPE_PROCESSES", &alert.processes.to_string());
        let recurrences = (alert.recurrences > 0).then(|| alert.recurrences.to_string());
        message.option("LINGERSCOPE_RECURRENCES", recurrences.as_deref());
        message.object(*state, process);
        message
    }

    /// What every message of ours begins with.
    pub(super) fn begin(sentence: &str, id: &str, priority: Priority) -> Self {
        let mut message = Self::default();
        message.field("MESSAGE", sentence);
        message.field("MESSAGE_ID", id);
        message.field("PRIORITY", priority.code());
        message.field("SYSLOG_IDENTIFIER", "lingerscope");
        message
    }

    /// Who has what.
    fn finding(&mut self, state: State, process: &Process, finding: &Finding) {
        self.field("LINGERSCOPE_STATE", state.id());
        self.field("LINGERSCOPE_FINGERPRINT", &finding.fingerprint.to_string());
        self.field("LINGERSCOPE_FINDING", &finding.id);
        self.field("LINGERSCOPE_VERDICT", finding.verdict.id());
        self.field("LINGERSCOPE_CONFIDENCE", finding.confidence.id());
        self.who(process);
        self.field(
            "LINGERSCOPE_RATE_BYTES_PER_S",
            &format!("{:.0}", finding.leak_bytes_per_s.value),
        );
        self.field(
            "LINGERSCOPE_LIVE_BYTES",
            &format!("{:.0}", finding.live_bytes.value),
        );
        self.field("LINGERSCOPE_SITE", &site(finding));
    }

    /// Whose it is.
    pub(super) fn who(&mut self, process: &Process) {
        self.field("LINGERSCOPE_PID", &process.pid.to_string());
        // What the process is called where it runs: in its container.
        let inside = process.ns_pid.map(|pid| pid.to_string());
        self.option("LINGERSCOPE_NS_PID", inside.as_deref());
        self.field("LINGERSCOPE_COMM", process.comm.as_str());
        self.text("LINGERSCOPE_EXE", process.exe.as_ref());
        self.option("LINGERSCOPE_BUILD_ID", process.build_id.as_deref());
        self.text("LINGERSCOPE_UNIT", process.unit.as_ref());
        self.text("LINGERSCOPE_CGROUP", process.cgroup.as_ref());
        self.text("LINGERSCOPE_CONTAINER_ID", process.container_id.as_ref());
    }

    /// Why, and by whom.
    fn details(&mut self, finding: &Finding) {
        self.field("LINGERSCOPE_STACK", &stack(finding));
        for task in finding.tasks.iter().take(MAX_TASKS) {
            self.task(task);
        }
        let evidence: Vec<&str> = finding
            .evidence
            .iter()
            .map(|line| line.text.as_str())
            .collect();
        self.field("LINGERSCOPE_EVIDENCE", &evidence.join("\n"));
        self.option(
            "LINGERSCOPE_TIME_TO_LIMIT_S",
            finding
                .time_to_limit_s
                .map(|left| format!("{left:.0}"))
                .as_deref(),
        );
    }

    /// So that `journalctl -u` of the leaking unit shows the alert, also after
    /// the process is gone; journald takes these from root only.
    fn object(&mut self, state: State, process: &Process) {
        // The number of a process that has ended may be somebody else's, and
        // journald would add that one's name.
        if state != State::Ended {
            self.field("OBJECT_PID", &process.pid.to_string());
        }
        self.text("OBJECT_SYSTEMD_UNIT", process.unit.as_ref());
    }

    /// The datagram.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn field(&mut self, name: &str, value: &str) {
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0
            .extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }

    fn option(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.field(name, value);
        }
    }

    pub(super) fn text(&mut self, name: &str, value: Option<&Text>) {
        self.option(name, value.map(Text::as_str));
    }

    fn task(&mut self, task: &Task) {
        self.option(
            "LINGERSCOPE_TASK_ID",
            task.id.map(|id| id.to_string()).as_deref(),
        );
        self.text("LINGERSCOPE_TASK_NAME", task.name.as_ref());
    }
}

/// What became of it, in one line.
fn alert_sentence(alert: &Alert) -> String {
    let Alert {
        process, finding, ..
    } = alert;
    let who = format!("{} (process {})", process.comm, process.pid);
    let what = finding.verdict;
    let much = rate(finding.leak_bytes_per_s.value);
    let place = site(finding);
    let mut out = match alert.state {
        State::Firing => sentence(process, finding),
        State::Worsened => format!("got worse: {}", sentence(process, finding)),
        State::Recurring => format!("is back: {}", sentence(process, finding)),
        State::Resolved => format!("{who}: {what} in {place} is not found any more"),
        State::Ended => format!("{who} ended; it had {what}, {much} in {place}"),
    };
    if alert.recurrences > 1 {
        let _ = write!(
            out,
            "; it came back {} times since the message before",
            alert.recurrences
        );
    }
    if alert.processes > 1 {
        let _ = write!(out, "; {} processes have it", alert.processes);
    }
    out
}

fn sentence(process: &Process, finding: &Finding) -> String {
    let left = finding
        .time_to_limit_s
        .and_then(|left| Duration::try_from_secs_f64(left).ok())
        .map_or_else(String::new, |left| {
            format!(
                "; at this rate it reaches its memory limit in {}",
                time(left)
            )
        });
    format!(
        "{} (process {}): {} ({}), {} in {}, {} live{left}",
        process.comm,
        process.pid,
        finding.verdict,
        finding.confidence,
        rate(finding.leak_bytes_per_s.value),
        site(finding),
        bytes(finding.live_bytes.value),
    )
}

/// The first function of the program's own, and where it is.
fn site(finding: &Finding) -> String {
    site_frame(&finding.site.frames).map_or_else(|| "unknown code".to_owned(), line)
}

fn line(frame: &Frame) -> String {
    match frame.location() {
        Some(location) => format!("{} ({location})", frame.label()),
        None => frame.label(),
    }
}

/// One frame per line, the program's own marked.
fn stack(finding: &Finding) -> String {
    let lines: Vec<String> = finding
        .site
        .frames
        .iter()
        .map(|frame| {
            let mark = if is_user_frame(frame) { "> " } else { "  " };
            let inlined = if frame.inlined { " inlined" } else { "" };
            format!("{mark}{}{inlined}", line(frame))
        })
        .collect();
    if lines.is_empty() {
        "unknown".to_owned()
    } else {
        lines.join("\n")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        finding::{Confidence, Leak},
        output::sample::document,
    };

    /// Reads the format back.
    pub(in crate::output::journald) fn fields(message: &Message) -> Vec<(String, String)> {
        let mut rest = message.as_bytes();
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
            let name = String::from_utf8(rest[..end].to_vec()).unwrap();
            let length = u64::from_le_bytes(rest[end + 1..end + 9].try_into().unwrap()) as usize;
            let value = String::from_utf8(rest[end + 9..end + 9 + length].to_vec()).unwrap();
            assert_eq!(rest[end + 9 + length], b'\n');
            rest = &rest[end + 10 + length..];
            fields.push((name, value));
        }
        fields
    }

    fn sent(name: &str, change: impl FnOnce(&mut Process, &mut Finding)) -> Vec<(String, String)> {
        let mut process = document(name).processes.remove(0);
        let mut finding = process.findings.remove(0);
        change(&mut process, &mut finding);
        fields(&Message::of(&process, &finding, Duration::from_hours(6)))
    }

    fn value<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
        fields
            .iter()
            .find(|field| field.0 == name)
            .map(|field| field.1.as_str())
    }

    #[test]
    fn all_fields_are_sent() {
        let fields = sent("History::push", |_, _| {});
        for (name, expected) in [
            (
                "MESSAGE",
                "History::push (process 4242): unbounded-growth (suspected), 34.1 KiB/s in History::push (src/history.rs:42), 2.0 MiB \
                 live; at this rate it reaches its memory limit in 24 h",
            ),
            ("PRIORITY", "5"),
            ("LINGERSCOPE_STATE", "firing"),
            ("LINGERSCOPE_VERDICT", "unbounded-growth"),
            ("LINGERSCOPE_PID", "4242"),
            ("LINGERSCOPE_RATE_BYTES_PER_S", "34901"),
            ("LINGERSCOPE_LIVE_BYTES", "2094080"),
            ("LINGERSCOPE_SITE", "History::push (src/history.rs:42)"),
            ("LINGERSCOPE_TASK_ID", "17"),
            ("LINGERSCOPE_TASK_NAME", "History::push"),
            ("LINGERSCOPE_TIME_TO_LIMIT_S", "86400"),
            ("OBJECT_PID", "4242"),
            ("OBJECT_SYSTEMD_UNIT", "server.service"),
        ] {
            assert_eq!(value(&fields, name), Some(expected), "{name}");
        }
        assert_eq!(value(&fields, "LINGERSCOPE_CONTAINER_ID"), None);
        assert_eq!(value(&fields, "LINGERSCOPE_NS_PID"), None);
        let inside = sent("f", |process, _| process.ns_pid = Some(1));
        assert_eq!(value(&inside, "LINGERSCOPE_NS_PID"), Some("1"));
        assert_eq!(
            value(&fields, "LINGERSCOPE_STACK").unwrap().lines().count(),
            6
        );
        for (name, _) in &fields {
            assert!(
                name.len() <= 64 && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'),
                "{name}"
            );
        }
    }

    #[test]
    fn no_value_passes_for_a_field() {
        let fields = sent("x\nPRIORITY=0\n\x1b[31m", |_, _| {});
        assert_eq!(
            fields.iter().filter(|field| field.0 == "PRIORITY").count(),
            1
        );
        assert!(
            fields
                .iter()
                .all(|field| field.1.chars().all(|c| !c.is_control() || c == '\n'))
        );
        assert_eq!(
            value(&fields, "LINGERSCOPE_COMM"),
            Some("x\\nPRIORITY=0\\n\\x1b[31m")
        );
    }

    fn told(state: State, recurrences: u32, processes: usize) -> Vec<(String, String)> {
        let mut process = document("f").processes.remove(0);
        let finding = process.findings.remove(0);
        fields(&Message::alert(&Alert {
            state,
            priority: Priority::Warning,
            processes,
            recurrences,
            process,
            finding,
        }))
    }

    #[test]
    fn a_state_has_its_words_and_fields() {
        let worse = told(State::Worsened, 0, 3);
        let said = value(&worse, "MESSAGE").unwrap();
        assert!(said.starts_with("got worse: f (process 4242): "), "{said}");
        assert!(said.ends_with("; 3 processes have it"), "{said}");
        assert_eq!(value(&worse, "LINGERSCOPE_STATE"), Some("worsened"));
        assert_eq!(value(&worse, "LINGERSCOPE_RECURRENCES"), None);
        assert_eq!(
            value(&worse, "MESSAGE_ID"),
            Some(message_id(crate::finding::Verdict::UnboundedGrowth))
        );
        let back = told(State::Recurring, 4, 1);
        assert_eq!(value(&back, "LINGERSCOPE_RECURRENCES"), Some("4"));
        assert!(
            value(&back, "MESSAGE")
                .unwrap()
                .contains("came back 4 times")
        );
        let ended = told(State::Ended, 0, 0);
        assert_eq!(
            value(&ended, "MESSAGE"),
            Some(
                "f (process 4242) ended; it had unbounded-growth, 34.1 KiB/s in f (src/history.rs:42)"
            )
        );
        assert_eq!(value(&ended, "OBJECT_PID"), None);
        assert_eq!(value(&ended, "OBJECT_SYSTEMD_UNIT"), Some("server.service"));
        assert_eq!(value(&ended, "LINGERSCOPE_EVIDENCE"), None);
        let resolved = told(State::Resolved, 0, 0);
        assert_eq!(value(&resolved, "OBJECT_PID"), Some("4242"));
        assert_ne!(value(&resolved, "MESSAGE_ID"), value(&ended, "MESSAGE_ID"));
        for state in [State::Firing, State::Recurring] {
            let names: Vec<String> = told(state, 0, 1).into_iter().map(|field| field.0).collect();
            let old: Vec<String> = sent("f", |_, _| {})
                .into_iter()
                .map(|field| field.0)
                .collect();
            assert!(old.iter().all(|name| names.contains(name)), "{names:?}");
        }
    }

    #[test]
    fn priority_follows_confidence_and_time() {
        let priority = |confidence, left: Option<f64>, leak| {
            let fields = sent("f", |_, finding| {
                finding.confidence = confidence;
                finding.time_to_limit_s = left;
                finding.leak = leak;
            });
            value(&fields, "PRIORITY").unwrap().to_owned()
        };
        assert_eq!(priority(Confidence::Strong, Some(3600.0), Leak::Yes), "3");
        assert_eq!(priority(Confidence::Proven, Some(3600.0), Leak::Yes), "3");
        assert_eq!(priority(Confidence::Strong, Some(90_000.0), Leak::Yes), "4");
        assert_eq!(priority(Confidence::Strong, None, Leak::Yes), "4");
        assert_eq!(priority(Confidence::Suspected, Some(60.0), Leak::Yes), "5");
        assert_eq!(priority(Confidence::Strong, Some(60.0), Leak::No), "6");
    }
}
