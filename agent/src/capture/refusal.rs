//! Which processes are not probed, and why.

use thiserror::Error;

use crate::host::{kernel, process::Process};

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

/// A kernel that kills processes under seccomp at a probed return spares only
/// those without a filter.
pub(super) fn check_seccomp(process: &Process, survives: bool) -> Result<(), Refusal> {
    if process.seccomp != 0 && !survives {
        return Err(Refusal::Seccomp(process.pid));
    }
    Ok(())
}

/// Who must not be probed at all.
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
    if process.shadow_stack && shadow_stack_is_deadly(&kernel::release()) {
        return Err(Refusal::ShadowStack(pid));
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
        let filtered = Process {
            seccomp: 2,
            ..process()
        };
        assert_eq!(check_seccomp(&filtered, true), Ok(()));
        assert_eq!(
            check_seccomp(&filtered, false),
            Err(Refusal::Seccomp(filtered.pid))
        );
        assert_eq!(
            check_seccomp(
                &Process {
                    seccomp: 0,
                    ..filtered
                },
                false
            ),
            Ok(())
        );
    }

    #[test]
    fn shadow_stacks_need_6_11() {
        assert!(shadow_stack_is_deadly("6.10.9"));
        assert!(!shadow_stack_is_deadly("6.11.0-rc1"));
        assert!(shadow_stack_is_deadly("odd"));
    }
}
