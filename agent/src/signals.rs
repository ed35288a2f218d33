//! Signals to ourselves.
//!
//! `inspect` ends early at Ctrl-C, SIGTERM, or when its terminal goes away,
//! and reports what it has; a second Ctrl-C or SIGTERM ends it at once. SIGQUIT
//! (Ctrl-\) keeps its meaning: an end at once, without a report. SIGUSR1 and
//! SIGUSR2, whose default is an end, mean nothing here.

use std::{
    io, mem, ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use libc::c_int;

use crate::host::kernel;

/// A second signal counts only after so long: `timeout` sends its signal to
/// the process and to its group, and fingers bounce.
const AGAIN_NS: u64 = 1_000_000_000;

/// When we were asked to end, CLOCK_MONOTONIC; 0: not yet.
static ASKED_NS: AtomicU64 = AtomicU64::new(0);

/// Takes the signals that `inspect` understands, from here on; also while it
/// does not wait for any.
///
/// # Errors
/// What the system answers.
pub fn take_for_inspection() -> io::Result<()> {
    shrug_off()?;
    handle(libc::SIGINT, ask)?;
    handle(libc::SIGTERM, ask)?;
    if is_told_of_hangups()? {
        handle(libc::SIGHUP, ask_gently)?;
    }
    Ok(())
}

/// Lets no signal that means nothing to us end us.
///
/// # Errors
/// What the system answers.
pub fn shrug_off() -> io::Result<()> {
    // A handler, not SIG_IGN, which our children would inherit.
    handle(libc::SIGUSR1, nothing)?;
    handle(libc::SIGUSR2, nothing)
}

/// Whether a terminal that goes away is to end us: `nohup` asks that it does
/// not.
///
/// # Errors
/// What the system answers.
pub fn is_told_of_hangups() -> io::Result<bool> {
    // SAFETY: all zeros are a valid sigaction.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: `action` is a valid place for the answer.
    check(unsafe { libc::sigaction(libc::SIGHUP, ptr::null(), &raw mut action) })?;
    Ok(action.sa_sigaction != libc::SIG_IGN)
}

/// Whether we were asked to end.
pub fn is_asked() -> bool {
    ASKED_NS.load(Ordering::Relaxed) != 0
}

fn handle(signal: c_int, handler: extern "C" fn(c_int)) -> io::Result<()> {
    // SAFETY: all zeros are a valid sigaction.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the action is complete; the handlers call only what may be
    // called in one.
    check(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) })
}

fn check(answer: c_int) -> io::Result<()> {
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn nothing(_: c_int) {}

extern "C" fn ask_gently(_: c_int) {
    // Another value than 0 at any time after the boot.
    let now = kernel::monotonic_ns().max(1);
    let _ = ASKED_NS.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
}

extern "C" fn ask(signal: c_int) {
    let first = ASKED_NS.load(Ordering::Relaxed);
    if first == 0 {
        ask_gently(signal);
    } else if kernel::monotonic_ns().saturating_sub(first) >= AGAIN_NS {
        // SAFETY: both may be called in a handler; it ends us when this
        // handler has returned.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}
