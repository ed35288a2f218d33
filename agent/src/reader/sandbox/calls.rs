//! The system calls that are left.

use std::collections::BTreeMap;

use anyhow::Result;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Operation,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// When a call is let through.
#[derive(Clone, Copy)]
enum Only {
    Always,
    /// This argument, as 32 bits, has this value.
    With(u8, i32),
    /// This argument has none of these bits.
    Without(u8, i32),
}

use Only::{Always, With, Without};

/// Every call that the reader may make, and why; any other ends it.
#[rustfmt::skip]
const CALLS: &[(libc::c_long, Only, &str)] = &[
    (libc::SYS_recvmsg, Always, "questions, and the files they are about"),
    (libc::SYS_sendmsg, Always, "answers"),
    (libc::SYS_close, Always, "files that were answered about"),
    (libc::SYS_fcntl, With(1, libc::F_GETFD), "the standard library's check of what it closes"),
    (libc::SYS_lseek, Always, "how long a file is"),
    (libc::SYS_mmap, Without(2, libc::PROT_EXEC), "a file, or heap"),
    (libc::SYS_mprotect, Without(2, libc::PROT_EXEC), "the C library's heap of a second thread"),
    (libc::SYS_munmap, Always, "files and heap given back"),
    (libc::SYS_mremap, Always, "large blocks that grow"),
    (libc::SYS_madvise, Always, "heap given back"),
    (libc::SYS_brk, Always, "heap"),
    (libc::SYS_futex, Always, "locks of the standard library"),
    (libc::SYS_getrandom, Always, "keys of hash tables, and the C library's heap"),
    (libc::SYS_clock_gettime, Always, "time limits, where the vDSO has no clock"),
    (libc::SYS_rt_sigreturn, Always, "the end of a signal handler"),
    (libc::SYS_alarm, Always, "its own end, should nobody wait for an answer any more"),
    (libc::SYS_sigaltstack, Always, "the standard library's guard of the stack"),
    (libc::SYS_exit, Always, "the end"),
    (libc::SYS_exit_group, Always, "the end"),
    // So that a death tells its kind by its signal or code:
    (libc::SYS_write, With(0, libc::STDERR_FILENO), "words before a panic, into /dev/null"),
    (libc::SYS_rt_sigprocmask, Always, "abort(3)"),
    (libc::SYS_rt_sigaction, Always, "abort(3)"),
    (libc::SYS_getpid, Always, "abort(3)"),
    (libc::SYS_gettid, Always, "abort(3)"),
    (libc::SYS_tgkill, With(2, libc::SIGABRT), "abort(3)"),
];

/// Lets this thread make no other call.
pub(super) fn restrict() -> Result<()> {
    let mut rules = BTreeMap::new();
    for (call, only, _) in CALLS {
        let condition = match *only {
            Always => None,
            With(argument, value) => Some((argument, Operation::Eq, value)),
            Without(argument, bits) => Some((argument, Operation::MaskedEq(bits as u64), 0)),
        };
        let rule = condition.map(|(argument, operation, value)| {
            let condition =
                SeccompCondition::new(argument, Length::Dword, operation, value as u64)?;
            SeccompRule::new(vec![condition])
        });
        rules.insert(*call, rule.transpose()?.into_iter().collect());
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}
