//! Messages about deaths under probes.

use super::{DEATH_MESSAGE_ID, Message};
use crate::{
    alert::Priority,
    finding::{Death, UnderProbes},
};

impl Message {
    /// Tells of a process that probes may have ended.
    pub fn death(death: &Death) -> Self {
        let Death { process, ended } = death;
        let who = format!("{} (process {})", process.comm, process.pid);
        let mut message = Self::begin(&ended.sentence(&who), DEATH_MESSAGE_ID, Priority::Warning);
        message.who(process);
        let when = ended.under_probes.as_ref().map(UnderProbes::when);
        let fault = format!("{} {}", ended.fault(), when.unwrap_or_default());
        message.field("LINGERSCOPE_FAULT", &fault);
        if let Some(signal) = ended.signal {
            message.field("LINGERSCOPE_SIGNAL", &signal.to_string());
        }
        let consequence = ended
            .under_probes
            .as_ref()
            .map_or_else(String::new, |death| death.consequence(process.uid));
        message.field("LINGERSCOPE_QUARANTINE", &consequence);
        // The process's number may be somebody else's by now.
        message.text("OBJECT_SYSTEMD_UNIT", process.unit.as_ref());
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        finding::{Ended, Text},
        output::{journald::message::tests::fields, sample::document},
    };

    #[test]
    fn a_death_is_told_with_its_consequence() {
        let mut process = document("evil\nPRIORITY=0").processes.remove(0);
        process.findings.clear();
        let fields = fields(&Message::death(&Death {
            process,
            ended: Ended {
                how: "killed",
                signal: Some(11),
                oom: Some(false),
                after_s: 3.0,
                under_probes: Some(UnderProbes {
                    fault_signal: 11,
                    fault_code: 1,
                    quarantined_until: Some("2026-11-29T07:00:00Z".to_owned()),
                    allow: Some(Text::sentence("lingerscope quarantine clear ab12")),
                    ..UnderProbes::default()
                }),
                ..Ended::default()
            },
        }));
        let value = |name: &str| {
            let mut found = fields.iter().filter(|field| field.0 == name);
            let value = found.next().map(|field| field.1.as_str());
            assert!(found.next().is_none(), "{name} stands twice");
            value
        };
        assert_eq!(value("PRIORITY"), Some("4"));
        assert_eq!(
            value("MESSAGE"),
            Some(
                "evil\\nPRIORITY=0 (process 4242) died of a fault (signal 11, SIGSEGV) after 3.0 s, while it was probed."
            )
        );
        assert_eq!(
            value("LINGERSCOPE_QUARANTINE"),
            Some(
                "This file is not probed again for user 1000 until 2026-11-29T07:00:00Z; `lingerscope quarantine clear ab12` allows it."
            )
        );
        assert_eq!(value("LINGERSCOPE_SIGNAL"), Some("11"));
        assert_eq!(value("OBJECT_SYSTEMD_UNIT"), Some("server.service"));
        assert_eq!(value("OBJECT_PID"), None);
    }
}
