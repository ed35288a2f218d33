//! How a process ended.

use std::time::Duration;

use serde::Serialize;

use super::{Process, Text, units::time};

/// The end of a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ended {
    /// `exited`, or `killed` by a signal.
    pub how: &'static str,
    /// The signal.
    pub signal: Option<i32>,
    /// The exit status.
    pub exit_status: Option<i32>,
    /// Whether the kernel killed it for want of memory; null: not known.
    pub oom: Option<bool>,
    /// Seconds from the beginning of the observation to the end.
    pub after_s: f64,
    /// Set when it was a fault that ended it, and probes may have been the
    /// cause: while they were on, or within 60 s after.
    pub under_probes: Option<UnderProbes>,
}

/// A death that probes may have caused.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct UnderProbes {
    /// Signal of the fault; a handler may have ended the process by another.
    pub fault_signal: i32,
    /// The kernel's `si_code` of it.
    pub fault_code: i32,
    /// Seconds from the end of probing to the fault; null: probes were on.
    pub probes_off_s: Option<f64>,
    /// The file is not probed again for this user until then, RFC 3339.
    pub quarantined_until: Option<String>,
    /// The command that allows it earlier.
    pub allow: Option<Text>,
    /// Why the file is not, or not reliably, in quarantine.
    pub why_not: Option<Text>,
}

/// A death under probes, and whose it was.
#[derive(Clone, Debug)]
pub struct Death {
    /// Who died, without findings.
    pub process: Process,
    /// How.
    pub ended: Ended,
}

impl Ended {
    /// In a sentence about `who`: the process, the command.
    pub fn sentence(&self, who: &str) -> String {
        let after = seconds(self.after_s);
        if let Some(death) = &self.under_probes {
            return format!(
                "{who} died of {} after {after}, {}.",
                self.fault(),
                death.when()
            );
        }
        match (self.signal, self.exit_status, self.oom) {
            (Some(signal), _, Some(true)) => {
                format!("{who} was killed (out of memory, signal {signal}) after {after}.")
            }
            (Some(signal), _, None) => format!(
                "{who} was killed (signal {signal}; whether for want of memory is not known) after {after}."
            ),
            (Some(signal), _, Some(false)) => {
                format!("{who} was killed (signal {signal}) after {after}.")
            }
            (None, Some(status), _) => {
                format!("{who} ended with exit status {status} after {after}.")
            }
            (None, None, _) => format!("{who} ended after {after}."),
        }
    }

    /// `a fault (signal 11, SIGSEGV)`.
    pub fn fault(&self) -> String {
        let Some(death) = &self.under_probes else {
            return String::new();
        };
        let fault = name(death.fault_signal);
        let by = match self.signal {
            Some(signal) if signal != death.fault_signal => {
                format!("{fault}, then {}", name(signal))
            }
            _ => fault,
        };
        format!("a fault ({by})")
    }
}

impl UnderProbes {
    /// Where probes were: `while it was probed`.
    pub fn when(&self) -> String {
        self.probes_off_s.map_or_else(
            || "while it was probed".to_owned(),
            |off| format!("{} after its probes came off", seconds(off)),
        )
    }

    /// What follows from it, in a sentence about user `uid`.
    pub fn consequence(&self, uid: Option<u32>) -> String {
        let user = uid.map_or_else(|| "its user".to_owned(), |uid| format!("user {uid}"));
        let kept = match (&self.quarantined_until, &self.allow) {
            (Some(until), Some(allow)) => Some(format!(
                "This file is not probed again for {user} until {until}; `{allow}` allows it."
            )),
            _ => None,
        };
        match (kept, &self.why_not) {
            (Some(kept), _) => kept,
            (None, Some(why)) => format!("It is not in quarantine: {why}."),
            (None, None) => "It is not in quarantine.".to_owned(),
        }
    }
}

fn seconds(seconds: f64) -> String {
    time(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default())
}

/// A signal with its name, where it tells of a fault.
fn name(signal: i32) -> String {
    let name = match signal {
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        11 => "SIGSEGV",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal}, {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_sentence() {
        let killed = |signal, oom| Ended {
            how: "killed",
            signal: Some(signal),
            oom,
            after_s: 12.3,
            ..Ended::default()
        };
        let died = |off| Ended {
            under_probes: Some(UnderProbes {
                fault_signal: 11,
                probes_off_s: off,
                ..UnderProbes::default()
            }),
            ..killed(6, Some(false))
        };
        let exited = Ended {
            how: "exited",
            exit_status: Some(3),
            oom: Some(false),
            after_s: 0.2,
            ..Ended::default()
        };
        for (ended, sentence) in [
            (
                killed(9, Some(true)),
                "The process was killed (out of memory, signal 9) after 12 s.",
            ),
            (
                killed(9, Some(false)),
                "The process was killed (signal 9) after 12 s.",
            ),
            (
                killed(9, None),
                "The process was killed (signal 9; whether for want of memory is not known) after 12 s.",
            ),
            (exited, "The process ended with exit status 3 after 200 ms."),
            (
                died(None),
                "The process died of a fault (signal 11, SIGSEGV, then signal 6, SIGABRT) after 12 s, while it was probed.",
            ),
            (
                died(Some(31.0)),
                "The process died of a fault (signal 11, SIGSEGV, then signal 6, SIGABRT) after 12 s, 31 s after its probes came off.",
            ),
        ] {
            assert_eq!(ended.sentence("The process"), sentence);
        }
    }
}
