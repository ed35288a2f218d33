//! Which processes are not probed, and why.

mod instruments;

use std::path::Path;

use thiserror::Error;

use super::{address_space::AddressSpace, files::CodeFile, text::Rewritten};
use crate::host::{
    kernel,
    mapping::code::TooMany,
    process::{self, Condition, Process},
    quarantine::{Entry, Quarantine},
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
        "process {0} is a Go program: Go moves its stacks, so return probes could crash it, and its heap is its garbage collector's; use Go's own heap profile (net/http/pprof)"
    )]
    Go(u32),
    /// A user shadow stack under a kernel that would kill the process.
    #[error(
        "process {0} runs with a shadow stack, and return probes of this kernel would kill it: use kernel 6.11 or later"
    )]
    ShadowStack(u32),
    /// A seccomp filter under a kernel that would kill the process.
    #[error(
        "process {0} runs under a seccomp filter, and this kernel kills such a process when a return is probed (tried on a process of our own): update the kernel"
    )]
    Seccomp(u32),
    /// A build that died while it was probed.
    #[error(
        "process {pid} is a build that died by signal {signal} while it was probed ({when}): look at it, and delete its entry in {list} to probe it again"
    )]
    Quarantined {
        /// The process.
        pid: u32,
        /// What it died of.
        signal: i32,
        /// When.
        when: String,
        /// File of the list.
        list: String,
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
    /// Whether a process under seccomp survives a probed return.
    pub(super) seccomp_survives: bool,
}

impl Dangers<'_> {
    /// Whether the process can be probed with the files that it has mapped,
    /// or is about to map.
    pub(super) fn check<'f>(
        &self,
        process: &Process,
        space: &AddressSpace,
        upcoming: impl Iterator<Item = &'f CodeFile>,
    ) -> Result<(), Refusal> {
        let pid = process.pid;
        self.check_now(process, process::condition(pid))?;
        if let Some(instrument) = instruments::of(process, space) {
            return Err(Refusal::Instrumented(pid, instrument));
        }
        if process.shadow_stack && shadow_stack_is_deadly(&kernel::release()) {
            return Err(Refusal::ShadowStack(pid));
        }
        if space.is_go() {
            return Err(Refusal::Go(pid));
        }
        self.check_build(pid, space.build_id(&process::exe_path(process)))?;
        for file in upcoming {
            if file.is_go {
                return Err(Refusal::Go(pid));
            }
            let module = file.module.as_ref();
            self.check_build(pid, module.and_then(|module| module.build_id.as_deref()))?;
        }
        Ok(())
    }

    /// What can change at any time.
    pub(super) fn check_now(&self, process: &Process, now: Condition) -> Result<(), Refusal> {
        self.check_seccomp(process)?;
        match now.tracer {
            Some(tracer) => Err(Refusal::Traced(process.pid, tracer)),
            None => Ok(()),
        }
    }

    /// A kernel that kills processes under seccomp at a probed return spares
    /// only those without a filter. A thread can have one of its own.
    pub(super) fn check_seccomp(&self, process: &Process) -> Result<(), Refusal> {
        let filtered = || process.seccomp != 0 || process::any_thread_is_filtered(process.pid);
        if !self.seccomp_survives && filtered() {
            return Err(Refusal::Seccomp(process.pid));
        }
        Ok(())
    }

    fn check_build(&self, pid: u32, build_id: Option<&str>) -> Result<(), Refusal> {
        match build_id.and_then(|build_id| self.quarantine.find(build_id)) {
            Some(entry) => Err(quarantined(pid, entry, self.quarantine.file())),
            None => Ok(()),
        }
    }
}

fn quarantined(pid: u32, entry: &Entry, list: &Path) -> Refusal {
    Refusal::Quarantined {
        pid,
        signal: entry.signal,
        when: entry.when.clone(),
        list: list.display().to_string(),
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

/// Whether a thread is traced: debuggers trace all of them, but who traces
/// one only need not begin with the first. Reads a file for each thread.
pub(super) fn check_threads(process: &Process) -> Result<(), Refusal> {
    match process::tracer_of_a_thread(process.pid) {
        Some(tracer) => Err(Refusal::Traced(process.pid, tracer)),
        None => Ok(()),
    }
}

/// Return probes learnt to keep a shadow stack in step in 6.11; before, the
/// hijacked return address raises a control protection fault.
fn shadow_stack_is_deadly(release: &str) -> bool {
    kernel::version(release).is_none_or(|version| version < (6, 11))
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

    #[test]
    fn seccomp_counts_where_the_trial_died() {
        let quarantine = Quarantine::open(Path::new("/nonexistent/list")).unwrap();
        let here = |seccomp_survives| Dangers {
            quarantine: &quarantine,
            seccomp_survives,
        };
        // Whatever the test itself runs under.
        let gone = Process {
            pid: 4_000_000,
            ..process()
        };
        let filtered = Process {
            seccomp: 2,
            ..gone.clone()
        };
        let free = Process { seccomp: 0, ..gone };
        assert_eq!(here(true).check_seccomp(&filtered), Ok(()));
        assert_eq!(
            here(false).check_seccomp(&filtered),
            Err(Refusal::Seccomp(filtered.pid))
        );
        assert_eq!(here(false).check_seccomp(&free), Ok(()));
    }

    #[test]
    fn shadow_stacks_need_6_11() {
        assert!(shadow_stack_is_deadly("6.10.9"));
        assert!(!shadow_stack_is_deadly("6.11.0-rc1"));
        assert!(shadow_stack_is_deadly("odd"));
    }
}
