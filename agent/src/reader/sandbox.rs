//! What the reader gives up before it reads anything: descriptors,
//! capabilities, its user, files, memory beyond a bound, and all system calls
//! but a few.

mod calls;

use std::io;

use anyhow::{Context as _, Result};
use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, Scope};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// Whoever the reader becomes where that is permitted: `nobody`.
const NOBODY: u32 = 65_534;
/// Largest number of a capability that is dropped; the kernel has 41.
const MAX_CAPABILITY: libc::c_ulong = 63;

/// What the reader may take, each with the reason. Soft and hard limits are
/// the same.
const LIMITS: &[(libc::__rlimit_resource_t, u64)] = &[
    // Standard descriptors, a question's, and room.
    (libc::RLIMIT_NOFILE, 8),
    // It writes no file.
    (libc::RLIMIT_FSIZE, 0),
    // It starts nothing.
    (libc::RLIMIT_NPROC, 0),
    // What it has read reaches no disk.
    (libc::RLIMIT_CORE, 0),
    // Its heap. The compiler's own library of 150 MB takes 60 MiB; what a
    // file takes beyond, it loses.
    (libc::RLIMIT_DATA, super::MAX_HEAP),
    (libc::RLIMIT_STACK, 8 << 20),
    (libc::RLIMIT_MEMLOCK, 0),
    (libc::RLIMIT_MSGQUEUE, 0),
];

/// Gives everything up.
///
/// # Errors
/// Why something stays that must not: then nothing may be read. To stay the
/// same user, or without Landlock, is no error, as not every kernel and
/// service manager permits the change.
pub(super) fn enter() -> Result<()> {
    close_others().context("cannot close inherited descriptors")?;
    for (resource, most) in LIMITS {
        let limit = libc::rlimit {
            rlim_cur: *most,
            rlim_max: *most,
        };
        // SAFETY: a limit to read.
        check(unsafe { libc::setrlimit(*resource, &raw const limit) })
            .context("cannot set a limit")?;
    }
    set(libc::PR_SET_NO_NEW_PRIVS, 1).context("cannot give up new privileges")?;
    for capability in 0..=MAX_CAPABILITY {
        // Needs a capability itself; without it the sets below are empty for
        // good all the same, as nothing is executed any more.
        let _ = set(libc::PR_CAPBSET_DROP, capability);
    }
    let _ = set(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as _);
    become_nobody();
    drop_capabilities().context("cannot give capabilities up")?;
    // After the change of user, which sets it anew.
    set(libc::PR_SET_DUMPABLE, 0).context("cannot forbid memory dumps")?;
    forbid_files();
    calls::restrict().context("cannot restrict system calls")
}

fn set(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: options that take numbers.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) })
}

fn check(outcome: libc::c_int) -> io::Result<()> {
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// All but the three standard ones: the socket and twice `/dev/null`.
fn close_others() -> io::Result<()> {
    // SAFETY: nothing of ours is behind the others.
    let outcome = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    // Kernels before 5.9, and filters that do not know the call.
    if outcome != 0 {
        for descriptor in std::fs::read_dir("/proc/self/fd")? {
            let number = descriptor?.file_name();
            if let Some(number) = number.to_str().and_then(|text| text.parse().ok())
                && number > 2
            {
                // SAFETY: as above; the directory's own is closed twice, which
                // is an error without effect in a program of one thread.
                unsafe { libc::close(number) };
            }
        }
    }
    Ok(())
}

/// Another user, where there is the right to: the service has it not.
fn become_nobody() {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let changed = setgroups(&[])
        .and_then(|()| setresgid(group, group, group))
        .and_then(|()| setresuid(user, user, user));
    let _ = changed;
}

fn drop_capabilities() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
    const VERSION: u32 = 0x2008_0522;
    // Version and process; effective, permitted and inheritable, twice.
    let (header, sets) = ([VERSION, 0], [0_u32; 6]);
    // SAFETY: structures of the size that the version says.
    let outcome = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    check(outcome as libc::c_int)
}

/// No file and no network by Landlock, where the kernel has it.
fn forbid_files() {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V6)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create);
    let restricted = ruleset.and_then(landlock::RulesetCreated::restrict_self);
    drop(restricted);
}
