//! Which processes are not probed, and why.

use thiserror::Error;

use super::{address_space::AddressSpace, files::CodeFile};
use crate::host::{
    kernel,
    module::Module,
    process::{self, Process},
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
        self.check_seccomp(process)?;
        if process.shadow_stack && shadow_stack_is_deadly(&kernel::release()) {
            return Err(Refusal::ShadowStack(pid));
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

    /// A kernel that kills processes under seccomp at a probed return spares
    /// only those without a filter. A thread can have one of its own.
    pub(super) fn check_seccomp(&self, process: &Process) -> Result<(), Refusal> {
        let filtered = || process.seccomp != 0 || process::any_thread_is_filtered(process.pid);
        if !self.seccomp_survives && filtered() {
            return Err(Refusal::Seccomp(process.pid));
        }
        Ok(())
    }

    fn check_build(&self, process: &Process, module: Option<&Module>) -> Result<(), Refusal> {
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
        let quarantine = Quarantine::open(std::path::Path::new("/nonexistent/list"));
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
