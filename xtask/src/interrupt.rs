//! Ctrl-C and kill for commands that have started other programs: they end by
//! way of an error, so that everything they started is stopped.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigHandler, Signal, signal};

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    ASKED.store(true, Ordering::Relaxed);
}

/// From now on the signals that end a program are only noted.
pub(crate) fn listen() -> Result<()> {
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but store to an atomic.
        let before =
            unsafe { signal(number, SigHandler::Handler(note)) }.context("cannot await Ctrl-C")?;
        if matches!(before, SigHandler::SigIgn) {
            // As nohup wants it.
            // SAFETY: no handler is installed.
            unsafe { signal(number, SigHandler::SigIgn) }.context("cannot ignore a signal")?;
        }
    }
    Ok(())
}

/// Waits; an error when somebody wants us to end.
pub(crate) fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        if ASKED.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(200)));
    }
}

/// Waits until `ready` says yes; an error after `limit`.
pub(crate) fn await_that(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> bool,
) -> Result<()> {
    let end = Instant::now() + limit;
    while !ready() {
        if Instant::now() >= end {
            bail!("{what}: not after {} s", limit.as_secs());
        }
        pause(Duration::from_millis(100))?;
    }
    Ok(())
}
