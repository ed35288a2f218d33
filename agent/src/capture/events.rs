//! The kernel's events that call our programs: which are on, and why.
//!
//! Whoever forks, executes, ends or switches on this host passes through such a
//! program while it is attached. So each is attached while there is a
//! [`Reason`] for it and no longer; with no target and none lately, none is.

use std::collections::{BTreeMap, HashSet};

use anyhow::Result;
use aya::programs::raw_trace_point::RawTracePointLink;

use super::{TargetId, object::Object};

/// An event of the kernel, and with it the program that it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Fork,
    Exec,
    Exit,
    Switch,
    Signal,
    Victim,
}

impl Event {
    /// Name of the program.
    const fn program(self) -> &'static str {
        match self {
            Self::Fork => "process_fork",
            Self::Exec => "process_exec",
            Self::Exit => "process_exit",
            Self::Switch => "context_switch",
            Self::Signal => "signal_generate",
            Self::Victim => "mark_victim",
        }
    }

    /// Name of the tracepoint.
    const fn name(self) -> &'static str {
        match self {
            Self::Fork => "sched_process_fork",
            Self::Exec => "sched_process_exec",
            Self::Exit => "sched_process_exit",
            Self::Switch => "sched_switch",
            Self::Signal => "signal_generate",
            Self::Victim => "mark_victim",
        }
    }
}

/// What events are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// A process is followed: its forks, its other programs, its end, and the
    /// ends of its threads.
    Target(TargetId),
    /// The end of a process is watched, because it is probed or was until
    /// lately: it may die of us, and its threads may have records in the
    /// kernel's tables.
    Ends,
    /// Whom the kernel kills for want of memory is to be known.
    Victims,
    /// The waits of a process are followed.
    Waits(TargetId),
}

impl Reason {
    const fn events(self) -> &'static [Event] {
        match self {
            Self::Target(_) => &[Event::Fork, Event::Exec, Event::Exit],
            Self::Ends => &[Event::Exec, Event::Exit, Event::Signal],
            Self::Victims => &[Event::Victim],
            Self::Waits(_) => &[Event::Switch],
        }
    }
}

/// The events that are on.
#[derive(Default)]
pub(super) struct Events {
    reasons: HashSet<Reason>,
    on: BTreeMap<Event, RawTracePointLink>,
}

impl Events {
    /// Has the events on until [`Self::release`].
    ///
    /// # Errors
    /// What the kernel answers; nothing more is on then than before.
    pub(super) fn need(&mut self, object: &mut Object, reason: Reason) -> Result<()> {
        let attached = self.attach(object, reason);
        if attached.is_ok() {
            self.reasons.insert(reason);
        }
        self.end_others(object);
        attached
    }

    /// They are not needed for that any more.
    pub(super) fn release(&mut self, object: &mut Object, reason: Reason) {
        self.reasons.remove(&reason);
        self.end_others(object);
    }

    /// How many are on.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.on.len()
    }

    fn attach(&mut self, object: &mut Object, reason: Reason) -> Result<()> {
        for event in reason.events() {
            if self.on.contains_key(event) {
                continue;
            }
            // While no end of a thread was seen, its record stayed, and its id
            // may belong to another thread by now.
            if *event == Event::Exit {
                object.forget_threads()?;
            }
            let link = object.attach_to_event(event.program(), event.name())?;
            self.on.insert(*event, link);
        }
        Ok(())
    }

    /// Detaches what no reason holds.
    fn end_others(&mut self, object: &Object) {
        let reasons = &self.reasons;
        let needed = |event: &Event| {
            let mut reasons = reasons.iter();
            reasons.any(|reason| reason.events().contains(event))
        };
        let over: Vec<Event> = self
            .on
            .keys()
            .copied()
            .filter(|event| !needed(event))
            .collect();
        for event in over {
            let link = self.on.remove(&event);
            // The kernel waits for whoever is in the program, and the loop of
            // a front must not; without a thread it does.
            drop(
                std::thread::Builder::new()
                    .name("detach".into())
                    .spawn(move || drop(link)),
            );
            // 9 KiB each, and nobody removes them from now on.
            if event == Event::Exit
                && let Err(error) = object.forget_threads()
            {
                tracing::debug!(error = %format_args!("{error:#}"), "records of threads stay behind");
            }
        }
    }
}
