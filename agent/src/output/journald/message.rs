//! The fields of one message.

use std::time::Duration;

use super::message_id;
use crate::finding::{
    Confidence, Finding, Frame, Leak, Process, Task, Text, is_user_frame, site_frame,
    units::{bytes, rate, time},
};

/// Tasks that a message names.
const MAX_TASKS: usize = 10;

/// A message in the journal's native format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// Describes a finding.
    pub fn of(process: &Process, finding: &Finding, page_within: Duration) -> Self {
        let mut message = Self::default();
        message.field("MESSAGE", &sentence(process, finding));
        message.field("MESSAGE_ID", message_id(finding.verdict));
        message.field("PRIORITY", priority(finding, page_within));
        message.field("SYSLOG_IDENTIFIER", "lingerscope");
        message.field("LINGERSCOPE_STATE", "firing");
        message.field("LINGERSCOPE_FINGERPRINT", &finding.fingerprint.to_string());
        message.field("LINGERSCOPE_FINDING", &finding.id);
        message.field("LINGERSCOPE_VERDICT", finding.verdict.id());
        message.field("LINGERSCOPE_CONFIDENCE", finding.confidence.id());
        message.field("LINGERSCOPE_PID", &process.pid.to_string());
        message.field("LINGERSCOPE_COMM", process.comm.as_str());
        message.text("LINGERSCOPE_EXE", process.exe.as_ref());
        message.option("LINGERSCOPE_BUILD_ID", process.build_id.as_deref());
        message.text("LINGERSCOPE_UNIT", process.unit.as_ref());
        message.text("LINGERSCOPE_CGROUP", process.cgroup.as_ref());
        message.text("LINGERSCOPE_CONTAINER_ID", process.container_id.as_ref());
        message.field(
            "LINGERSCOPE_RATE_BYTES_PER_S",
            &format!("{:.0}", finding.leak_bytes_per_s.value),
        );
        message.field(
            "LINGERSCOPE_LIVE_BYTES",
            &format!("{:.0}", finding.live_bytes.value),
        );
        message.field("LINGERSCOPE_SITE", &site(finding));
        message.field("LINGERSCOPE_STACK", &stack(finding));
        for task in finding.tasks.iter().take(MAX_TASKS) {
            message.task(task);
        }
        let evidence: Vec<&str> = finding
            .evidence
            .iter()
            .map(|line| line.text.as_str())
            .collect();
        message.field("LINGERSCOPE_EVIDENCE", &evidence.join("\n"));
        message.option(
            "LINGERSCOPE_TIME_TO_LIMIT_S",
            finding
                .time_to_limit_s
                .map(|left| format!("{left:.0}"))
                .as_deref(),
        );
        // So that `journalctl -u` of the leaking unit shows the alert, also
        // after the process is gone; journald takes these from root only.
        message.field("OBJECT_PID", &process.pid.to_string());
        message.text("OBJECT_SYSTEMD_UNIT", process.unit.as_ref());
        message
    }

    /// The datagram.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn field(&mut self, name: &str, value: &str) {
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

    fn text(&mut self, name: &str, value: Option<&Text>) {
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

/// 3 wakes somebody, 4 is for the morning, 5 for whoever looks, 6 is no leak.
fn priority(finding: &Finding, page_within: Duration) -> &'static str {
    let near = finding
        .time_to_limit_s
        .is_some_and(|left| left < page_within.as_secs_f64());
    match (finding.leak, finding.confidence) {
        (Leak::No, _) => "6",
        (_, Confidence::Suspected) => "5",
        _ if near => "3",
        _ => "4",
    }
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
mod tests {
    use super::*;
    use crate::output::sample::document;

    /// Reads the format back.
    fn fields(message: &Message) -> Vec<(String, String)> {
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
