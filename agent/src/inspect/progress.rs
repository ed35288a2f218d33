//! A live line on a terminal; nothing anywhere else.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

/// The line.
pub(super) struct Progress {
    terminal: bool,
    shown: bool,
}

impl Progress {
    /// Speaks on standard error, if that is a terminal.
    pub(super) fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            shown: false,
        }
    }

    /// Shows how far the run is.
    pub(super) fn show(
        &mut self,
        elapsed: Duration,
        total: Duration,
        processes: usize,
        calls_per_s: f64,
    ) {
        if !self.terminal {
            return;
        }
        self.shown = true;
        let line = format!(
            "inspecting {processes} {}, {} of {} s, {calls_per_s:.0} allocations/s",
            if processes == 1 {
                "process"
            } else {
                "processes"
            },
            elapsed.as_secs(),
            total.as_secs(),
        );
        // Progress that cannot be shown is no reason to fail.
        drop(write!(io::stderr(), "\r\x1b[K{line}"));
    }

    /// Says what happens now, or wipes the line.
    pub(super) fn phase(&mut self, text: &str) {
        if self.terminal && (self.shown || !text.is_empty()) {
            drop(write!(io::stderr(), "\r\x1b[K{text}"));
            self.shown = !text.is_empty();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
