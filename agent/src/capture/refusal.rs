//! Which processes are not probed, and why.

mod instruments;

use thiserror::Error;

use super::{address_space::AddressSpace, files::CodeFile, text::Rewritten};
use crate::host::{
    mapping::code::TooMany,
    module::Module,
    process::{self, Condition, Process},
    quarantine::{Build, Entry, Quarantine},
};

/// Why a process cannot be followed, with the mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such process, or it has ended.
    #[error("no process {0} is running: look for it with `pgrep`")]
    Gone(u32),
    /// A kernel thread.
    #[error("process {0} is a kernel thread, which has no heap: name a program's process")]
    KernelThread(u32),
    /// Ourselves.
    #[error("process {0} is lingerscope itself, which it never traces: name another process")]
    Itself(u32),
    /// A Go program.
    #[error(
        "process {0} is a Go program: its heap is its garbage collector's, which no probe on an allocator shows; use Go's own heap profile (net/http/pprof)"
    )]
    Go(u32),
    /// A build that died while it was probed.
    #[error(
        "process {pid} runs a file that died of a fault (signal {signal}) while it was probed, as the same user, at {when}; it is not probed again until {until}: look for the cause, or allow it by `{mend}`"
    )]
    Quarantined {
        /// The process.
        pid: u32,
        /// What it died of.
        signal: i32,
        /// When.
        when: String,
        /// The entry holds until then.
        until: String,
        /// The command that takes it away.
        mend: String,
    },
    /// Something in it copies or overwrites code.
    #[error(
        "process {0} runs under {1}, which rewrites its code and would copy breakpoints, of which it dies: look at it without {1}"
    )]
    Instrumented(u32, &'static str),
    /// A debugger or the like is attached.
    #[error(
        "process {0} is traced by process {1}, and a debugger's breakpoints and ours overwrite each other: end the debugger or strace first"
    )]
    Traced(u32, u32),
    /// Its code is not what its files hold.
    #[error("process {0} {1}")]
    Rewritten(u32, Rewritten),
    /// Its list of mappings is too long.
    #[error("process {0} cannot be followed: {1}")]
    TooMany(u32, TooMany),
    /// Nothing to probe.
    #[error("no allocator to follow in process {pid}: {why}")]
    NoAllocator {
        /// The process.
        pid: u32,
        /// What was looked at.
        why: String,
    },
    /// Anything else, a whole sentence.
    #[error("{0}")]
    Other(String),
}

impl Refusal {
    /// The refusal that an error is, if it is one.
    pub(super) fn of(pid: u32, error: anyhow::Error) -> Result<Self, anyhow::Error> {
        error.downcast::<Self>().or_else(|error| {
            let too_many = error.downcast::<TooMany>()?;
            Ok(Self::TooMany(pid, too_many))
        })
    }
}

/// What probes could harm, on this kernel and by what was seen here before.
/// Asked at the attach, and again whenever a process may have become another
/// program.
#[derive(Clone, Copy)]
pub(super) struct Dangers<'a> {
    /// Builds that died while they were probed.
    pub(super) quarantine: &'a Quarantine,
}

impl Dangers<'_> {
    /// Whether the process can be probed with the files that it has mapped,
    /// or is about to map.
    pub(super) fn check<'f>(
        self,
        process: &Process,
        space: &AddressSpace,
        upcoming: impl Iterator<Item = &'f CodeFile>,
    ) -> Result<(), Refusal> {
        let pid = process.pid;
        check_now(process, process::condition(pid))?;
        if let Some(instrument) = instruments::of(process, space) {
            return Err(Refusal::Instrumented(pid, instrument));
        }
        if space.is_go() {
            return Err(Refusal::Go(pid));
        }
        self.check_build(process, space.module(&process::exe_path(process)))?;
        for file in upcoming {
            if file.is_go {
                return Err(Refusal::Go(pid));
            }
            self.check_build(process, file.module.as_ref())?;
        }
        Ok(())
    }

    fn check_build(self, process: &Process, module: Option<&Module>) -> Result<(), Refusal> {
        let build = module.and_then(Build::of);
        match build.and_then(|build| self.quarantine.find(&build, process.uid)) {
            Some(entry) => Err(quarantined(process.pid, entry)),
            None => Ok(()),
        }
    }
}

fn quarantined(pid: u32, entry: &Entry) -> Refusal {
    Refusal::Quarantined {
        pid,
        signal: entry.signal,
        when: format!("{:.0}", entry.when),
        until: format!("{:.0}", entry.until),
        mend: entry.mend(),
    }
}

/// Who must not be probed whatever it runs.
pub(super) fn check(process: &Process) -> Result<(), Refusal> {
    let pid = process.pid;
    if pid == std::process::id() {
        return Err(Refusal::Itself(pid));
    }
    if process.kernel_thread {
        return Err(Refusal::KernelThread(pid));
    }
    if process.zombie {
        return Err(Refusal::Gone(pid));
    }
    Ok(())
}

/// What can change at any time.
pub(super) fn check_now(process: &Process, now: Condition) -> Result<(), Refusal> {
    match now.tracer {
        Some(tracer) => Err(Refusal::Traced(process.pid, tracer)),
        None => Ok(()),
    }
}

/// Whether a thread is traced: debuggers trace all of them, but who traces
/// one only need not begin with the first. Reads a file for each thread.
pub(super) fn check_threads(process: &Process) -> Result<(), Refusal> {
    match process::tracer_of_a_thread(process.pid) {
        Some(tracer) => Err(Refusal::Traced(process.pid, tracer)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process::of(std::process::id()).unwrap()
    }

    #[test]
    fn refuses_what_must_not_be_probed() {
        let me = process();
        assert_eq!(check(&me), Err(Refusal::Itself(me.pid)));
        let other = Process { pid: 1, ..me };
        assert_eq!(
            check(&Process {
                kernel_thread: true,
                ..other.clone()
            }),
            Err(Refusal::KernelThread(1))
        );
        assert_eq!(
            check(&Process {
                zombie: true,
                ..other.clone()
            }),
            Err(Refusal::Gone(1))
        );
        assert_eq!(check(&other), Ok(()));
    }
}
