//! Whether a target's code is what its probes were, or are to be, set in.

use std::{thread, time::Duration};

use super::{REFRESH_ANYWAY, REFRESH_EVERY, Target};
use crate::{
    capture::{
        address_space::AddressSpace,
        files::Files,
        object::Object,
        refusal::{self, Dangers, Refusal},
        text::Rewritten,
    },
    host::process::{self, Condition},
};

/// A page may be on its way from one state to another, when it is made
/// writable for a moment for instance: it is looked at so often more, with a
/// pause before each time.
const LOOKS_MORE: usize = 3;
const PAUSE: Duration = Duration::from_millis(2);

/// Which probes a look at the code expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// None: the files were never probed here.
    None,
    /// None of ours, but those of the last window may be there still.
    Former,
    /// All of them.
    All,
}

impl Target {
    /// Looks at mappings and code before a window, which counts the time from
    /// when its probes are put on; a target that is not fit is refused.
    pub(in crate::capture) fn look_before_window(
        &mut self,
        object: &mut Object,
        files: &mut Files,
        dangers: Dangers<'_>,
    ) {
        if !self.over && self.refreshed.elapsed() >= self.pause(REFRESH_EVERY) {
            self.look_again(object, files, dangers);
        }
        if self.over {
            return;
        }
        let expect = match self.unprobed_ns {
            None => Expect::None,
            Some(_) => Expect::Former,
        };
        let looked = refusal::check_now(&self.process, process::condition(self.process.pid))
            .and_then(|()| self.check_text(object, files, 0, expect));
        if let Err(refusal) = looked {
            self.refuse(object, refusal);
        }
    }

    /// What may have changed within a second: mappings, a tracer, the code.
    pub(super) fn look_for_dangers(
        &mut self,
        object: &mut Object,
        files: &mut Files,
        dangers: Dangers<'_>,
    ) {
        let since = self.refreshed.elapsed();
        let now = process::condition(self.process.pid);
        if since >= self.pause(REFRESH_ANYWAY) {
            if let Err(refusal) = refusal::check_threads(&self.process) {
                self.refuse(object, refusal);
                return;
            }
            self.look_again(object, files, dangers);
        } else if now.executable_kb != self.executable_kb && since >= self.pause(REFRESH_EVERY) {
            self.look_again(object, files, dangers);
        }
        self.executable_kb = now.executable_kb;
        self.look_at_text(object, files, now);
    }

    /// Whether it can still be probed, and its code, if probes are on, is what
    /// it must be. Otherwise they come off for good; false then, or when they
    /// are off for good already.
    pub(in crate::capture) fn look_at_text(
        &mut self,
        object: &mut Object,
        files: &mut Files,
        now: Condition,
    ) -> bool {
        let mut looked = refusal::check_now(&self.process, now);
        if self.is_attached() {
            looked = looked.and_then(|()| self.check_text(object, files, 0, Expect::All));
        }
        if let Err(refusal) = looked {
            self.refuse(object, refusal);
        }
        !self.over
    }

    /// Its probes come off while it runs.
    pub(super) fn refuse(&mut self, object: &mut Object, refusal: Refusal) {
        if self.over {
            return;
        }
        tracing::warn!("no longer observed: {refusal}");
        self.detach(object);
        self.refused = Some(refusal);
    }

    /// At least this pause between two looks at the mappings, and so long that
    /// reading a list of a million takes 2 % of the time at most.
    pub(super) fn pause(&self, least: Duration) -> Duration {
        least.max(self.reading * 50)
    }

    /// Compares the code of the probed files from the `first` on with what it
    /// must be.
    pub(super) fn check_text(
        &self,
        object: &Object,
        files: &mut Files,
        first: usize,
        expect: Expect,
    ) -> Result<(), Refusal> {
        let mut newer: Option<AddressSpace> = None;
        let mut looks = 0;
        loop {
            let space = newer.as_ref().unwrap_or(&self.space);
            let Err(rewritten) = self.ask_text(space, first, expect) else {
                return Ok(());
            };
            // Its end is told apart.
            if !self.process.is_running() {
                return Ok(());
            }
            if looks == LOOKS_MORE {
                return Err(Refusal::Rewritten(self.process.pid, rewritten));
            }
            looks += 1;
            thread::sleep(PAUSE);
            // It may be mapped elsewhere by now.
            let (pid, slot) = (self.process.pid, self.slot);
            if let Ok(anew) = self.space.load_anew(object, files, pid, slot) {
                newer = anew;
            }
        }
    }

    fn ask_text(
        &self,
        space: &AddressSpace,
        first: usize,
        expect: Expect,
    ) -> Result<(), Rewritten> {
        self.text.check_copies(space)?;
        self.text
            .look(&self.process, space, first, expect == Expect::All)?;
        if expect == Expect::None {
            self.text
                .check_own_breakpoints(&self.process, space, first)?;
        }
        Ok(())
    }
}
