//! Who a process is: identity, owner, control group, and what makes probing it
//! dangerous.
//!
//! Parsed as bytes here and not by the procfs crate, which gives up on a
//! process whose name is not UTF-8: names are chosen by targets.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
};

/// Longest file of `/proc/PID` that is read here.
const MAX_BYTES: u64 = 1 << 20;

/// A process at one moment. Strings are raw: chosen by the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id in our namespace.
    pub pid: u32,
    /// Process id in its own namespace.
    pub ns_pid: u32,
    /// Start, in clock ticks since boot: with the pid it names the process.
    pub start_time: u64,
    /// Real user id.
    pub uid: u32,
    /// Name of the main thread.
    pub comm: Vec<u8>,
    /// Executable; empty for a kernel thread or where it cannot be read.
    pub exe: PathBuf,
    /// Path of its control group, such as `/system.slice/x.service`.
    pub cgroup: Vec<u8>,
    /// Has no address space of its own to look at.
    pub kernel_thread: bool,
    /// Has ended and waits for its parent.
    pub zombie: bool,
}

impl Process {
    /// Looks a process up.
    ///
    /// # Errors
    /// `NotFound` when there is none, or whatever `/proc` answers.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = read(pid, "stat")?;
        let status = read(pid, "status")?;
        // The name stands in parentheses and may contain anything.
        let open = position(&stat, b'(').ok_or_else(unexpected)?;
        let close = stat
            .iter()
            .rposition(|byte| *byte == b')')
            .ok_or_else(unexpected)?;
        let comm = stat.get(open + 1..close).unwrap_or_default().to_vec();
        let fields: Vec<&str> = std::str::from_utf8(stat.get(close + 1..).unwrap_or_default())
            .ok()
            .ok_or_else(unexpected)?
            .split_whitespace()
            .collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
        let flags: u64 = field(9).parse().unwrap_or(0);
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let cgroup = read(pid, "cgroup")
            .map(|text| cgroup_path(&text))
            .unwrap_or_default();
        Ok(Self {
            pid,
            ns_pid: last_number(line(&status, b"NSpid:")).unwrap_or(pid),
            start_time: field(22).parse().ok().ok_or_else(unexpected)?,
            uid: first_number(line(&status, b"Uid:")).unwrap_or(u32::MAX),
            comm,
            exe,
            cgroup,
            // PF_KTHREAD, include/linux/sched.h
            kernel_thread: flags & 0x0020_0000 != 0,
            zombie: matches!(field(3), "Z" | "X"),
        })
    }

    /// systemd unit that owns the control group, if one does.
    pub fn unit(&self) -> Option<String> {
        unit(&self.cgroup)
    }

    /// Container id in the control group's path, if there is one.
    pub fn container_id(&self) -> Option<String> {
        container_id(&self.cgroup)
    }

    /// Whether this very process still runs, and not a later one of its pid.
    pub fn is_running(&self) -> bool {
        start_time(self.pid).is_ok_and(|start| start == self.start_time)
    }
}

/// Start of a process in clock ticks since boot.
pub fn start_time(pid: u32) -> io::Result<u64> {
    Process::of(pid).and_then(|process| {
        if process.zombie {
            Err(io::ErrorKind::NotFound.into())
        } else {
            Ok(process.start_time)
        }
    })
}

/// Anonymous resident memory and swap in bytes.
pub fn anonymous_bytes(pid: u32) -> io::Result<u64> {
    let status = read(pid, "status")?;
    let kilobytes = |key: &[u8]| first_number::<u64>(line(&status, key));
    match (kilobytes(b"RssAnon:"), kilobytes(b"VmSwap:")) {
        (Some(anonymous), swap) => Ok((anonymous + swap.unwrap_or(0)) * 1024),
        _ => Err(unexpected()),
    }
}

/// Memory in use and its limit, in bytes: the nearest limit above the control
/// group, or the host's.
pub fn memory_limit(process: &Process) -> Option<(u64, u64)> {
    let number = |path: PathBuf| {
        std::fs::read_to_string(path)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let group = String::from_utf8(process.cgroup.clone()).ok()?;
    let mut group = group.trim_start_matches('/');
    let mut nearest: Option<(u64, u64)> = None;
    while !group.is_empty() {
        let folder = PathBuf::from("/sys/fs/cgroup").join(group);
        if let (Some(limit), Some(used)) = (
            number(folder.join("memory.max")),
            number(folder.join("memory.current")),
        ) {
            let closer = nearest.is_none_or(|(used_before, limit_before)| {
                limit.saturating_sub(used) < limit_before.saturating_sub(used_before)
            });
            if closer {
                nearest = Some((used, limit));
            }
        }
        group = group.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    if nearest.is_some() {
        return nearest;
    }
    let text = std::fs::read("/proc/meminfo").ok()?;
    let total = first_number::<u64>(line(&text, b"MemTotal:"))? * 1024;
    let available = first_number::<u64>(line(&text, b"MemAvailable:"))? * 1024;
    Some((total.saturating_sub(available), total))
}

/// All process ids of the host.
pub fn all() -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> = std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// Ids of a process's threads.
pub fn threads(pid: u32) -> Vec<u32> {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .map(|entries| {
            entries
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .collect()
        })
        .unwrap_or_default()
}

/// Threads whose tracer is looked at.
const MAX_THREADS: usize = 4096;

/// What may change in a process at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Who traces the main thread by ptrace, as debuggers and strace do.
    pub tracer: Option<u32>,
    /// Kilobytes of executable mappings, but for the program's own.
    pub executable_kb: u64,
}

/// How a process is now; the default when it is gone.
pub fn condition(pid: u32) -> Condition {
    let status = read(pid, "status").unwrap_or_default();
    Condition {
        tracer: tracer_in(&status),
        executable_kb: first_number(line(&status, b"VmLib:")).unwrap_or(0),
    }
}

/// Who traces any of its threads.
pub fn tracer_of_a_thread(pid: u32) -> Option<u32> {
    threads(pid)
        .into_iter()
        .take(MAX_THREADS)
        .find_map(|thread| tracer_in(&read(pid, &format!("task/{thread}/status")).ok()?))
}

fn tracer_in(status: &[u8]) -> Option<u32> {
    first_number(line(status, b"TracerPid:")).filter(|tracer| *tracer != 0)
}

/// Whether the process has a handler for a signal.
pub fn catches(pid: u32, signal: i32) -> bool {
    let Ok(status) = read(pid, "status") else {
        return false;
    };
    let caught = line(&status, b"SigCgt:").trim_ascii();
    let caught = std::str::from_utf8(caught)
        .ok()
        .and_then(|mask| u64::from_str_radix(mask, 16).ok())
        .unwrap_or(0);
    caught >> (signal - 1) & 1 != 0
}

/// Path of the unified hierarchy (`0::`), else of systemd's own, else of the
/// memory controller's.
pub(super) fn cgroup_path(text: &[u8]) -> Vec<u8> {
    let mut best: (u8, Vec<u8>) = (0, Vec::new());
    for entry in text.split(|byte| *byte == b'\n') {
        let mut parts = entry.splitn(3, |byte| *byte == b':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let rank = match controllers {
            b"" if path != b"/" => 4,
            b"name=systemd" => 3,
            b"memory" => 2,
            _ => 1,
        };
        if rank > best.0 {
            best = (rank, path.to_vec());
        }
    }
    best.1
}

pub(super) fn unit(cgroup: &[u8]) -> Option<String> {
    const KINDS: [&str; 3] = [".service", ".scope", ".socket"];
    let path = std::str::from_utf8(cgroup).ok()?;
    path.rsplit('/')
        .find(|part| KINDS.iter().any(|kind| part.ends_with(kind)))
        .map(str::to_owned)
}

pub(super) fn container_id(cgroup: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(cgroup).ok()?;
    path.rsplit(['/', '-', ':', '.'])
        .find(|part| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(str::to_owned)
}

fn read(pid: u32, name: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{name}"))?
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Rest of the first line that starts with `key`; empty when none does.
fn line<'a>(text: &'a [u8], key: &[u8]) -> &'a [u8] {
    text.split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(key))
        .unwrap_or_default()
}

fn numbers<N: std::str::FromStr>(text: &[u8]) -> impl DoubleEndedIterator<Item = N> {
    text.split(u8::is_ascii_whitespace)
        .filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok())
}

fn first_number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    numbers(text).next()
}

fn last_number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    numbers(text).next_back()
}

fn position(text: &[u8], wanted: u8) -> Option<usize> {
    text.iter().position(|byte| *byte == wanted)
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "/proc has an unexpected form")
}

/// Path of the executable as a person would type it: without the mark that
/// the kernel adds when the file is gone.
pub fn exe_path(process: &Process) -> PathBuf {
    let bytes = process.exe.clone().into_os_string().into_vec();
    let bare = bytes.strip_suffix(b" (deleted)").unwrap_or(&bytes);
    PathBuf::from(std::ffi::OsString::from_vec(bare.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_itself() {
        let me = Process::of(std::process::id()).unwrap();
        assert_eq!(me.pid, std::process::id());
        assert!(me.is_running() && !me.kernel_thread && !me.zombie);
        assert!(me.exe.is_absolute());
        assert!(anonymous_bytes(me.pid).unwrap() > 0);
        let other = Process {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!other.is_running());
    }

    #[test]
    fn knows_who_traces_and_what_is_caught() {
        let me = std::process::id();
        let now = condition(me);
        assert_eq!(now.tracer, tracer_of_a_thread(me));
        assert!(now.executable_kb > 0);
        assert_eq!(tracer_in(b"TracerPid:\t0\nUid:\t0\n"), None);
        assert_eq!(tracer_in(b"Name:\tx\nTracerPid:\t34\n"), Some(34));
        // Rust's runtime looks for an overflow of the stack.
        assert!(catches(me, libc::SIGSEGV) && !catches(me, libc::SIGCONT));
    }

    #[test]
    fn names_units_and_containers() {
        assert_eq!(
            unit(b"/system.slice/nginx.service").as_deref(),
            Some("nginx.service")
        );
        assert_eq!(
            unit(b"/user.slice/user-0.slice/session-3.scope/x").as_deref(),
            Some("session-3.scope")
        );
        assert_eq!(unit(b"/"), None);
        let id = "a".repeat(64);
        assert_eq!(
            container_id(format!("/system.slice/docker-{id}.scope").as_bytes()),
            Some(id.clone())
        );
        assert_eq!(
            container_id(format!("/kubepods/pod1/{id}").as_bytes()),
            Some(id)
        );
        assert_eq!(container_id(b"/system.slice/a.service"), None);
    }

    #[test]
    fn prefers_the_unified_hierarchy() {
        assert_eq!(
            cgroup_path(b"4:memory:/m\n1:name=systemd:/s\n0::/u\n"),
            b"/u"
        );
        assert_eq!(
            cgroup_path(b"4:memory:/m\n1:name=systemd:/s\n0::/\n"),
            b"/s"
        );
    }
}
