//! All processes of the host, as far as our tables need them.

use std::{collections::HashSet, fs, path::Path, time::Duration};

/// The kernel's unit for processor time on every Linux that we build for.
const TICK: Duration = Duration::from_millis(10);
const PAGE: u64 = 4096;

/// One process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) name: String,
    state: char,
    /// Processor time so far, in user mode and in the kernel.
    pub(crate) time: Duration,
    pub(crate) threads: u64,
    /// Resident bytes, with files' and shared ones.
    pub(crate) resident: u64,
}

impl Process {
    /// `None` when it is gone.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Self::parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// From `/proc/PID/stat`; see proc_pid_stat(5).
    fn parse(pid: u32, stat: &str) -> Option<Self> {
        let (head, tail) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        // Field 3 of the manual is the first after the name.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            pid,
            parent: number(4)? as u32,
            name: head.split_once('(')?.1.to_owned(),
            state: fields.first()?.chars().next()?,
            time: TICK * (number(14)? + number(15)?) as u32,
            threads: number(20)?,
            resident: number(24)? * PAGE,
        })
    }

    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Bytes of anonymous memory: what can leak.
    pub(crate) fn anonymous(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid)).unwrap_or_default();
        let mut pages = statm
            .split_whitespace()
            .map(|word| word.parse().unwrap_or(0));
        let (resident, shared): (u64, u64) = (pages.nth(1).unwrap_or(0), pages.next().unwrap_or(0));
        resident.saturating_sub(shared) * PAGE
    }
}

/// For tables.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// All that run now.
pub(crate) fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Process::of)
        .collect()
}

/// A process and all that descend from it.
pub(crate) fn tree(all: &[Process], root: u32) -> impl Iterator<Item = &Process> {
    let mut members = HashSet::from([root]);
    loop {
        let before = members.len();
        for process in all {
            if members.contains(&process.parent) {
                members.insert(process.pid);
            }
        }
        if members.len() == before {
            break;
        }
    }
    all.iter()
        .filter(move |process| members.contains(&process.pid))
}

/// Open files of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Files {
    pub(crate) all: usize,
    /// `statm` of processes that are alive: as many as there are processes.
    pub(crate) of_living: usize,
}

impl Files {
    /// Zeros when it is gone.
    pub(crate) fn of(pid: u32) -> Self {
        let mut files = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            files.all += 1;
            let living = fs::read_link(entry.path()).is_ok_and(|target| {
                target.ends_with("statm")
                    && target
                        .parent()
                        .is_some_and(|process| process.starts_with("/proc") && is_there(process))
            });
            files.of_living += usize::from(living);
        }
        files
    }
}

fn is_there(process: &Path) -> bool {
    process.join("stat").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_seen() {
        let all = all();
        let own = std::process::id();
        let process = all.iter().find(|process| process.pid == own).unwrap();
        assert!(process.threads >= 1 && process.resident > 0 && process.anonymous() > 0);
        assert!(tree(&all, process.parent).any(|process| process.pid == own));
        assert!(Files::of(own).all >= 3);
    }

    #[test]
    fn a_name_may_contain_anything() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 0 1 2 3 4 50 25 8 9 20 0 4 0 99 1000 12 0";
        let process = Process::parse(7, stat).unwrap();
        assert_eq!(process.name, "a) b (c");
        assert_eq!((process.parent, process.threads), (3, 4));
        assert_eq!(process.time, Duration::from_millis(750));
        assert_eq!(process.resident, 12 * PAGE);
    }
}
