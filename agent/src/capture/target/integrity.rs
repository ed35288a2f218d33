//! Whether a target's code is what its probes were, or are to be, set in.

use std::{thread, time::Duration};

use super::{REFRESH_EVERY, Target};
use crate::capture::{
    address_space::AddressSpace,
    files::Files,
    object::Object,
    refusal::{Dangers, Refusal},
    text::Rewritten,
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
        let looked = dangers
            .check_now(&self.process)
            .and_then(|()| self.check_text(object, files, 0, expect));
        if let Err(refusal) = looked {
            self.refuse(object, refusal);
        }
    }

    /// Looks at the code while probes are on. When it is not what it must be,
    /// they come off for good; false then, or when they are off for good
    /// already.
    pub(in crate::capture) fn look_at_text(
        &mut self,
        object: &mut Object,
        files: &mut Files,
        dangers: Dangers<'_>,
    ) -> bool {
        if self.is_attached() {
            let looked = dangers
                .check_now(&self.process)
                .and_then(|()| self.check_text(object, files, 0, Expect::All));
            if let Err(refusal) = looked {
                self.refuse(object, refusal);
            }
        }
        !self.over
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
