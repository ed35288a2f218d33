//! Keeps COST-1: what observing costs targets, bystanders and the host stays
//! within the budget, and where that cannot be, nothing is probed.
//!
//! A decision core: it reads no clock and sets no probe. Times are passed in,
//! as time since any fixed moment, counters as [`Reading`]s. Who owns the
//! probes calls, per target:
//!
//! 1. [`Governor::admit`], once.
//! 2. [`Governor::decide`], which says what to do: trace for good, a window at
//!    some moment, nothing for now, or no probes at all. At that moment
//!    `decide` is asked again, because the world may have changed.
//! 3. [`Governor::opening`] just before attaching with the decided mean, and
//!    [`Governor::opened`] right after it.
//! 4. [`Governor::check`] as often as the answer before said, about every
//!    10 ms in a window, until it answers [`Check::Detach`]. Then the probes
//!    come off at once, and [`Governor::closed`] is told when they are off. A
//!    window can be closed earlier at any time.
//! 5. Again from 2.
//!
//! The average holds by an account per target (`account`): running time
//! earns, traps spend, and a window is opened only when its planned cost *and*
//! the worst that can still come after the decision to detach are there. What
//! overruns nevertheless is a debt, and pauses repay it. On credit are the
//! first look at a target, the first window that catches blocks, and in the
//! first minute the moment in which a target that was quiet enough to be
//! traced for good turns out not to be any more: less than half a second in
//! all, so that the average holds for any observation of a minute or longer.
//! Later, tracing keeps the price of that moment back. More threads than were
//! seen so far can leave a debt as well, when all of them suddenly allocate.

mod account;
mod agent;
mod brake;
pub mod budget;
pub mod costs;
pub mod meter;
mod plan;
pub mod reading;
mod room;
mod targets;
#[cfg(test)]
mod tests;
pub mod window;

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use agent_ebpf::abi::heap::MAX_TARGETS;

use self::{
    account::Account,
    agent::Agent,
    brake::Brake,
    plan::{Kind, Plan},
    targets::Watched,
    window::Window,
};
pub use self::{
    agent::Allowance,
    budget::Budget,
    costs::Costs,
    meter::Meter,
    reading::{Profile, Reading, Wish},
    targets::Standing,
    window::{Check, Close},
};
use super::TargetId;

/// Notes kept until they are fetched.
const MAX_NOTES: usize = 256;

/// What to do with a target now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Attach now and stay attached.
    Trace {
        /// Sampling mean in bytes.
        mean: u64,
    },
    /// A window.
    Survey(Slot),
    /// No probes now; ask again at that time.
    Hold {
        /// When.
        again: Duration,
    },
    /// No breakpoints; page-fault stacks must do.
    Refuse {
        /// When it is worth asking again.
        again: Option<Duration>,
    },
}

/// A window to come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slot {
    /// When it may open; not before.
    pub at: Duration,
    /// How long it stays open, from attached to detaching.
    pub open: Duration,
    /// Sampling mean in bytes; [`agent_ebpf::abi::heap::Target::COUNT_ONLY`]
    /// in the first window, which learns the rates.
    pub mean: u64,
    /// From one window to the next in the long run.
    pub period: Duration,
}

/// A decision with its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What to do.
    pub mode: Mode,
    /// Why, a sentence with the numbers.
    pub why: String,
}

/// A sentence for users: what was decided, shed or ended early, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// When.
    pub at: Duration,
    /// Of which target; none: of all.
    pub target: Option<TargetId>,
    /// A whole sentence.
    pub sentence: String,
}

/// The decision core.
#[derive(Clone, Debug)]
pub struct Governor {
    budget: Budget,
    costs: Costs,
    /// As measured at start.
    base: Costs,
    targets: HashMap<TargetId, Watched>,
    brake: Brake,
    agent: Agent,
    notes: VecDeque<Note>,
    notes_dropped: u64,
}

impl Governor {
    /// A governor without targets.
    pub fn new(budget: Budget, costs: Costs, now: Duration) -> Self {
        let costs = costs.clamped();
        Self {
            budget: budget.sane(),
            costs,
            base: costs,
            targets: HashMap::new(),
            brake: Brake::default(),
            agent: Agent::new(now),
            notes: VecDeque::new(),
            notes_dropped: 0,
        }
    }

    /// New settings; debts stay.
    pub fn set_budget(&mut self, budget: Budget) {
        self.budget = budget.sane();
    }

    /// The settings in force.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The costs in force; attach and detach times are learnt.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// Opens an account. Known targets keep theirs and get the new profile.
    ///
    /// # Errors
    /// A sentence when there is no room.
    pub fn admit(
        &mut self,
        id: TargetId,
        profile: Profile,
        now: Duration,
        cpu: Option<Duration>,
    ) -> Result<(), String> {
        if let Some(watched) = self.targets.get_mut(&id) {
            watched.profile = profile;
            return Ok(());
        }
        if self.targets.len() >= MAX_TARGETS as usize {
            return Err(format!("{MAX_TARGETS} targets have accounts already"));
        }
        let mut account = Account::new(now, cpu);
        // The look and the first window are on credit.
        let latency = self.costs.attach + self.costs.detach;
        account.noticed = (plan::LOOK + plan::SHORT + latency * 2).as_secs_f64();
        self.targets.insert(id, Watched::new(profile, account));
        Ok(())
    }

    /// Closes an account; the process ended or is of no interest any more.
    pub fn forget(&mut self, id: TargetId) {
        self.targets.remove(&id);
    }

    /// Enters the host's memory pressure, `some avg10` in percent. True: take
    /// all probes off at once; every [`Self::check`] says so too.
    pub fn press(&mut self, now: Duration, percent: f64) -> bool {
        if let Some(sentence) = self.brake.press(now, percent, self.budget.pressure_percent) {
            self.note(now, None, sentence);
        }
        self.brake.held(now).is_some()
    }

    /// No probes until then; those that are on come off at their next check.
    pub fn pause(&mut self, now: Duration, until: Duration) {
        self.brake.pause(until);
        let seconds = until.saturating_sub(now).as_secs();
        self.note(now, None, format!("paused for {seconds} s"));
    }

    /// Ends a pause.
    pub fn resume(&mut self, now: Duration) {
        self.brake.resume();
        self.note(now, None, "the pause has ended".to_owned());
    }

    /// Enters our own processor time since the start, about once a second.
    /// Returns what our own work may be now.
    pub fn account_for(&mut self, now: Duration, cpu: Duration) -> Allowance {
        let limit = self.budget.agent_percent / 100.0;
        if let Some(sentence) = self.agent.enter(now, cpu, limit, self.budget.suspects) {
            self.note(now, None, sentence);
        }
        self.allowance()
    }

    /// What our own work may be now.
    pub fn allowance(&self) -> Allowance {
        self.agent.allowance(self.budget.suspects)
    }

    /// How long a scan or a re-reading that takes about so much of our own
    /// processor time must wait.
    pub fn wait_for_work(&self, now: Duration, work: Duration) -> Duration {
        self.agent
            .wait(now, work, self.budget.agent_percent / 100.0)
    }

    /// Our own average share of a core of late, in percent.
    pub fn agent_percent(&self) -> Option<f64> {
        let (share, _) = self.agent.share(Duration::ZERO)?;
        Some(share * 100.0)
    }

    /// Notes since the last call, oldest first, and how many found no room.
    pub fn take_notes(&mut self) -> (Vec<Note>, u64) {
        (
            self.notes.drain(..).collect(),
            std::mem::take(&mut self.notes_dropped),
        )
    }

    fn note(&mut self, at: Duration, target: Option<TargetId>, sentence: String) {
        if self.notes.len() == MAX_NOTES {
            self.notes.pop_front();
            self.notes_dropped += 1;
        }
        self.notes.push_back(Note {
            at,
            target,
            sentence,
        });
    }
}
