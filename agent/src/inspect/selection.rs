//! Which processes were asked for.

use anyhow::Result;

use crate::{
    capture::refusal::Refusal,
    finding::{Skipped, Text},
    host::process::{self, Process},
};

/// Most processes of one run.
const MAX_PROCESSES: usize = 64;

/// The processes that were named, and what was named but cannot be inspected.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// In the order of the arguments, none twice.
    pub(super) processes: Vec<Process>,
    /// Each with its reason.
    pub(super) skipped: Vec<Skipped>,
}

/// Looks the named processes up.
pub(super) fn select(pids: &[u32], units: &[String], names: &[String]) -> Result<Selection> {
    let mut selection = Selection::default();
    for pid in pids {
        match Process::of(*pid) {
            Ok(process) => selection.add(process),
            Err(_) => selection.skip(Some(*pid), &Refusal::Gone(*pid).to_string()),
        }
    }
    if units.is_empty() && names.is_empty() {
        return Ok(selection);
    }
    // Processes that end while the list is read are no loss.
    let own = std::process::id();
    let running: Vec<Process> = process::all()?
        .into_iter()
        .filter(|pid| *pid != own)
        .filter_map(|pid| Process::of(pid).ok())
        .filter(|process| !process.kernel_thread && !process.zombie)
        .collect();
    for unit in units {
        // systemd takes a name without a suffix for a service.
        let wanted = if unit.contains('.') {
            unit.clone()
        } else {
            format!("{unit}.service")
        };
        selection.add_all(
            running
                .iter()
                .filter(|process| process.unit().as_deref() == Some(&wanted)),
            &format!(
                "no process runs in unit {wanted}: look for it with `systemctl status {wanted}`"
            ),
        );
    }
    for name in names {
        // The kernel keeps 15 bytes of a name.
        let wanted = name.as_bytes().get(..15).unwrap_or(name.as_bytes());
        selection.add_all(
            running.iter().filter(|process| process.comm == wanted),
            &format!("no process is named {name}: look for it with `ps -eo pid,comm`"),
        );
    }
    Ok(selection)
}

impl Selection {
    fn add(&mut self, process: Process) {
        if self.processes.iter().any(|known| known.pid == process.pid) {
            return;
        }
        if self.processes.len() >= MAX_PROCESSES {
            self.skip(
                Some(process.pid),
                &format!("more than {MAX_PROCESSES} processes were named: name fewer"),
            );
        } else {
            self.processes.push(process);
        }
    }

    fn add_all<'a>(&mut self, found: impl Iterator<Item = &'a Process>, why_none: &str) {
        let mut any = false;
        for process in found {
            any = true;
            self.add(process.clone());
        }
        if !any {
            self.skip(None, why_none);
        }
    }

    /// Notes what cannot be inspected.
    pub(super) fn skip(&mut self, pid: Option<u32>, why: &str) {
        self.skipped.push(Skipped {
            pid,
            why: Text::sentence(why),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_by_pid_and_name_once() {
        let me = Process::of(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .unwrap();
        let selection = select(&[child.id()], &[], &["sleep".to_owned()]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(
            selection
                .processes
                .iter()
                .filter(|p| p.pid == child.id())
                .count(),
            1
        );
        assert!(selection.processes.iter().all(|p| p.pid != me.pid));
    }

    #[test]
    fn names_what_is_missing() {
        let selection = select(
            &[4_000_000],
            &["no-such".to_owned()],
            &["no such name".to_owned()],
        )
        .unwrap();
        assert!(selection.processes.is_empty());
        let reasons: Vec<&str> = selection
            .skipped
            .iter()
            .map(|skipped| skipped.why.as_str())
            .collect();
        assert!(
            reasons[0].contains("4000000")
                && reasons[1].contains("no-such.service")
                && reasons[2].contains("no such name")
        );
    }
}
