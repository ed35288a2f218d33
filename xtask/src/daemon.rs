//! The daemon under test, with a real journald of its own.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    fleet::census::{self, Files, Process},
    interrupt, shell,
};

/// Until it is up, and until it has ended.
const LIMIT: Duration = Duration::from_secs(30);

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    /// The script that runs journald beside it.
    script: Child,
    pid: u32,
    journal: PathBuf,
    log: PathBuf,
    /// Bytes of the log that were told.
    told: usize,
}

/// What it takes at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    pub(crate) resident: u64,
    pub(crate) files: Files,
    pub(crate) threads: u64,
    /// Processor time since its start.
    pub(crate) time: Duration,
}

/// A message that it has sent to the journal.
#[derive(Clone, Debug)]
pub(crate) struct Alert(pub(crate) Value);

impl Daemon {
    /// Starts it with these settings, a YAML text; its files go to `directory`.
    pub(crate) fn start(lingerscope: &Path, directory: &Path, settings: &str) -> Result<Self> {
        let directory = directory.join("daemon");
        let journal = directory.join("journal");
        fs::create_dir_all(&journal)
            .with_context(|| format!("cannot make {}", journal.display()))?;
        let file = directory.join("lingerscope.yaml");
        let metrics = directory.join("lingerscope.prom");
        let metrics = format!("metrics:\n  textfile: {}\n", metrics.display());
        fs::write(&file, format!("{settings}{metrics}"))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let catalogue = catalogue(&directory)?;
        let log = directory.join("log");
        let mut command = Command::new(shell::root().join("agent/live/programs/with-journald"));
        command
            .arg(&journal)
            .arg(&catalogue)
            .arg(lingerscope)
            .args(["daemon", "--config"])
            .arg(&file)
            .env("NO_COLOR", "1");
        shell::print(&command);
        let script = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("cannot start the daemon")?;
        let mut daemon = Self {
            script,
            pid: 0,
            journal,
            log,
            told: 0,
        };
        let outcome = interrupt::await_that("the daemon does not watch", LIMIT, || {
            daemon.log().contains("watching") || daemon.has_ended()
        });
        if outcome.is_err() || daemon.has_ended() {
            bail!("the daemon did not start\n{}", daemon.log());
        }
        daemon.pid = census::tree(&census::all(), daemon.script.id())
            .find(|process| process.name == "lingerscope")
            .map(|process| process.pid)
            .with_context(|| format!("no daemon runs\n{}", daemon.log()))?;
        Ok(daemon)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its last lines.
    pub(crate) fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(50)..].join("\n")
    }

    /// The lines that were logged since this was asked the last time.
    pub(crate) fn news(&mut self) -> Vec<String> {
        let log = self.log();
        let new = log.get(self.told..).unwrap_or_default();
        let whole = new.rfind('\n').map_or(0, |end| end + 1);
        let lines = new[..whole].lines().map(str::to_owned).collect();
        self.told += whole;
        lines
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.script
            .try_wait()
            .map_or(true, |status| status.is_some())
    }

    /// An error when it is gone.
    pub(crate) fn footprint(&mut self) -> Result<Footprint> {
        let process = Process::of(self.pid).filter(|process| !process.is_zombie());
        let Some(process) = process else {
            bail!("the daemon has ended\n{}", self.log());
        };
        Ok(Footprint {
            resident: process.resident,
            files: Files::of(self.pid),
            threads: process.threads,
            time: process.time,
        })
    }

    /// Ends it as systemd does.
    pub(crate) fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid as i32), Signal::SIGTERM).context("the daemon is gone")?;
        let ended = interrupt::await_that("the daemon does not end", LIMIT, || self.has_ended());
        ended.with_context(|| self.log())?;
        let status = self.script.wait()?;
        if !status.success() {
            bail!("the daemon: {status}\n{}", self.log());
        }
        Ok(())
    }

    /// What the journal holds of it; complete after its end.
    pub(crate) fn alerts(&self) -> Result<Vec<Alert>> {
        let lines = shell::answer(
            Command::new("journalctl")
                .arg("--directory")
                .arg(&self.journal)
                .args(["--output=json", "--all", "--no-pager"])
                .arg("SYSLOG_IDENTIFIER=lingerscope"),
        )?;
        lines
            .lines()
            .map(|line| serde_json::from_str(line).context("journalctl printed no JSON"))
            .map(|value| value.map(Alert))
            .collect()
    }

    /// How often each process was suspected and followed, by its log.
    pub(crate) fn attention(&self) -> BTreeMap<u32, Attention> {
        attention(&self.log())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let all = census::all();
        for process in census::tree(&all, self.script.id()) {
            let _ = kill(Pid::from_raw(process.pid as i32), Signal::SIGKILL);
        }
        drop(self.script.wait());
    }
}

/// What the daemon's log says of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attention {
    pub(crate) suspected: usize,
    pub(crate) followed: usize,
}

fn attention(log: &str) -> BTreeMap<u32, Attention> {
    let mut seen: BTreeMap<u32, Attention> = BTreeMap::new();
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    };
    for line in log.lines() {
        if let Some((start, rest)) = line.split_once(" grows by ")
            && rest.contains(" so far")
            && let Some((_, pid)) = start.rsplit_once("process ")
            && let Some(pid) = number(pid)
        {
            seen.entry(pid).or_default().suspected += 1;
        } else if let Some((_, pid)) = line.split_once("INFO following pid=")
            && let Some(pid) = number(pid)
        {
            seen.entry(pid).or_default().followed += 1;
        }
    }
    seen
}

impl Alert {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    /// The process it is about; none for a summary.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.field("LINGERSCOPE_PID").parse().ok()
    }

    /// Whether somebody is to look at it: not the end of something.
    pub(crate) fn is_loud(&self) -> bool {
        let priority: u32 = self.field("PRIORITY").parse().unwrap_or(0);
        let end = ["resolved", "ended"].contains(&self.field("LINGERSCOPE_STATE"));
        priority <= 5 && !end
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        format!(
            "priority {}, {}: {}",
            self.field("PRIORITY"),
            self.field("LINGERSCOPE_STATE"),
            self.field("MESSAGE")
        )
    }
}

/// The compiled message catalogue; the directory of its database.
fn catalogue(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("root");
    let sources = root.join("usr/lib/systemd/catalog");
    let database = root.join("var/lib/systemd/catalog");
    fs::create_dir_all(&sources)?;
    fs::create_dir_all(&database)?;
    fs::copy(
        shell::root().join("systemd/lingerscope.catalog"),
        sources.join("lingerscope.catalog"),
    )
    .context("cannot read systemd/lingerscope.catalog")?;
    shell::answer(
        Command::new("journalctl")
            .arg("--update-catalog")
            .arg("--root")
            .arg(&root),
    )?;
    Ok(database)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_log_tells_who_was_looked_at() {
        let log = "\
\x20INFO process 17 grows by 100 KiB/s (at least 90 KiB/s), 4 MiB so far
\x20INFO following pid=17 process=server
\x20INFO no longer following pid=18
";
        let seen = attention(log);
        assert_eq!(seen.len(), 1);
        assert_eq!(
            seen[&17],
            Attention {
                suspected: 1,
                followed: 1
            }
        );
    }

    #[test]
    fn ends_are_quiet() {
        let alert = |state, priority| {
            Alert(json!({"LINGERSCOPE_STATE": state, "PRIORITY": priority, "LINGERSCOPE_PID": "7"}))
        };
        assert!(alert("firing", "5").is_loud() && alert("worsened", "3").is_loud());
        assert!(!alert("ended", "6").is_loud() && !alert("resolved", "6").is_loud());
        assert_eq!(alert("firing", "5").pid(), Some(7));
    }
}
