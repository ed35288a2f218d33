//! Messages about many alerts, and about suppressions.

use super::{Message, SUMMARY_MESSAGE_ID, SUPPRESSION_MESSAGE_ID};
use crate::{
    alert::{Line, Priority, Summary, SuppressionNote, SuppressionTrouble},
    finding::units::{rate, time},
};

impl Message {
    /// Names the alerts that were held back.
    pub fn summary(summary: &Summary) -> Self {
        let held = summary.held_back();
        let states: Vec<String> = summary
            .states
            .iter()
            .map(|(state, count)| format!("{count} {state}"))
            .collect();
        let mut sentence = format!(
            "{held} more alerts in {}: {}",
            time(summary.window),
            states.join(", ")
        );
        if held == 0 {
            sentence = format!("more findings in {} than are told", time(summary.window));
        }
        if summary.no_room > 0 {
            sentence.push_str("; there are too many different ones to remember them all");
        }
        let mut lines: Vec<String> = summary.lines.iter().map(line).collect();
        let unnamed = held.saturating_sub(lines.len());
        if unnamed > 0 {
            lines.push(format!("and {unnamed} more that are less urgent"));
        }
        if lines.is_empty() {
            lines.push("none of them is remembered".to_owned());
        }
        let mut message = Self::begin(&sentence, SUMMARY_MESSAGE_ID, summary.priority);
        message.field("LINGERSCOPE_HELD_BACK", &held.to_string());
        message.field("LINGERSCOPE_NO_ROOM", &summary.no_room.to_string());
        message.field("LINGERSCOPE_SUMMARY", &lines.join("\n"));
        // Fields may be given several times: whoever asks for one of these
        // findings, or for the alerts of one of these units, gets this too.
        for line in &summary.lines {
            message.field("LINGERSCOPE_FINGERPRINT", &line.fingerprint.to_string());
            message.field("LINGERSCOPE_FINDING", &line.finding);
        }
        let mut units: Vec<&str> = summary
            .lines
            .iter()
            .filter_map(|line| Some(line.unit.as_ref()?.as_str()))
            .collect();
        units.sort_unstable();
        units.dedup();
        for unit in units {
            message.field("OBJECT_SYSTEMD_UNIT", unit);
        }
        message
    }

    /// Says that a suppression does nothing.
    pub fn suppression(note: &SuppressionNote) -> Self {
        let matter = match note.trouble {
            SuppressionTrouble::Expired => "has expired",
            SuppressionTrouble::NeverMatches => "has not matched anything for a week",
        };
        let sentence = format!(
            "suppressions[{}] ({}) {matter}: take it away or renew it",
            note.index, note.words
        );
        let mut message = Self::begin(&sentence, SUPPRESSION_MESSAGE_ID, Priority::Notice);
        message.field("LINGERSCOPE_SUPPRESSION", note.words.as_str());
        message.field("LINGERSCOPE_TROUBLE", matter);
        message
    }
}

fn line(line: &Line) -> String {
    format!(
        "{}: {} (process {}): {} ({}), {}, {}",
        line.state,
        line.comm,
        line.pid,
        line.verdict,
        line.confidence,
        rate(line.rate),
        line.fingerprint
    )
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::{
        alert::State,
        finding::{Confidence, Text, Verdict, fingerprint},
        output::journald::message::tests::fields,
    };

    #[test]
    fn a_summary_names_what_it_can() {
        let line = Line {
            priority: Priority::Page,
            state: State::Firing,
            fingerprint: fingerprint("server", &["f"]),
            finding: "id".to_owned(),
            pid: 7,
            comm: Text::name("evil\nPRIORITY=0"),
            unit: Some(Text::name("a.service")),
            verdict: Verdict::UnboundedGrowth,
            confidence: Confidence::Strong,
            rate: 2048.0,
        };
        let fields = fields(&Message::summary(&Summary {
            priority: Priority::Page,
            window: Duration::from_mins(10),
            states: BTreeMap::from([(State::Firing, 4), (State::Ended, 1)]),
            lines: vec![line.clone(), line],
            no_room: 0,
        }));
        let values = |name: &str| -> Vec<&str> {
            fields
                .iter()
                .filter(|field| field.0 == name)
                .map(|field| field.1.as_str())
                .collect()
        };
        assert_eq!(
            values("MESSAGE"),
            ["5 more alerts in 10 min: 4 firing, 1 ended"]
        );
        assert_eq!(values("PRIORITY"), ["3"]);
        assert_eq!(values("LINGERSCOPE_FINGERPRINT").len(), 2);
        assert_eq!(values("OBJECT_SYSTEMD_UNIT"), ["a.service"]);
        let summary = values("LINGERSCOPE_SUMMARY")[0];
        assert_eq!(summary.lines().count(), 3);
        assert!(
            summary.starts_with(
                "firing: evil\\nPRIORITY=0 (process 7): unbounded-growth (strong), 2.0 KiB/s"
            ),
            "{summary}"
        );
        assert!(
            summary.ends_with("and 3 more that are less urgent"),
            "{summary}"
        );
    }
}
