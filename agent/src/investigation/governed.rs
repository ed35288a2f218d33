//! Processes under the governor: surveyed in windows, or traced while that is
//! affordable.

use std::time::Duration;

use super::{Account, Investigation, Sampling, survey, survey::Step, survey::Survey};
use crate::{
    capture::{
        TargetId,
        governor::{Budget, Governor, Profile, Wish, costs::measure},
        refusal::Refusal,
        target::Target,
    },
    finding::{TargetCpu, Text},
    host::{cpu_clock::CpuClock, kernel, process::Process},
};
use agent_ebpf::abi::heap::TargetCounts;

/// When nothing is due, the next look.
const IDLE: Duration = Duration::from_secs(1);

/// What observing has cost a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// What its threads have spent in traps, of the time of one, in percent.
    pub(super) slowdown_percent: Option<f64>,
    /// Its own processor time.
    pub(super) cpu: TargetCpu,
}

impl Investigation {
    /// Measures what probing costs here, and limits it from now on. To be
    /// called before anything is followed.
    pub fn govern(&mut self, budget: Budget) {
        let costs = measure::measure(&mut self.capture);
        self.governor = Some(Governor::new(budget, costs, survey::now()));
    }

    /// Other limits.
    pub fn set_budget(&mut self, budget: Budget) {
        if let Some(governor) = &mut self.governor {
            governor.set_budget(budget);
        }
    }

    /// Starts to follow a process within the budget: in windows, or all the
    /// time where `wish` and its allocation rate allow that.
    ///
    /// # Errors
    /// Why it cannot be followed.
    pub fn survey(&mut self, process: &Process, wish: Wish) -> Result<(), Refusal> {
        let pid = process.pid;
        let own_cpu = self.own_cpu(pid);
        self.capture.prepare(process.clone())?;
        self.begin(process.clone(), Sampling::ByRate, own_cpu.clone());
        let other = |why: String| Refusal::Other(why);
        if let Err(error) = self.capture.watch_for_end(pid) {
            self.release(pid);
            return Err(other(format!("{error:#}")));
        }
        let files = self
            .capture
            .target(pid)
            .map(Target::probed_files)
            .unwrap_or_default();
        let survey = Survey::new(process, own_cpu);
        let profile = Profile {
            wish,
            cgroup: Text::name(&process.cgroup).as_str().to_owned(),
            files,
            ..Profile::default()
        };
        let governor = self
            .governor
            .as_mut()
            .ok_or_else(|| other("there is no budget for windows".to_owned()))?;
        let admitted = governor.admit(pid, profile, survey::now(), survey.cpu());
        if let Err(why) = admitted {
            self.release(pid);
            return Err(other(why));
        }
        if let Some(account) = self.accounts.get_mut(&pid) {
            account.survey = Some(Box::new(survey));
        }
        Ok(())
    }

    /// Does what is due in windows. Returns after how long it is to be called
    /// again; earlier does no harm.
    pub fn advance(&mut self) -> Duration {
        let Some(governor) = &mut self.governor else {
            return IDLE;
        };
        let ids: Vec<TargetId> = self.accounts.keys().copied().collect();
        for id in ids {
            let Some(account) = self.accounts.get_mut(&id).filter(|account| !account.ended) else {
                continue;
            };
            let Some(mut survey) = account.survey.take() else {
                continue;
            };
            let step = survey.advance(&account.process, &mut self.capture, governor);
            account.step(survey, step);
        }
        let now = survey::now();
        self.accounts
            .values()
            .filter(|account| !account.ended)
            .filter_map(|account| Some(account.survey.as_ref()?.next))
            .min()
            .map_or(IDLE, |next| next.saturating_sub(now).min(IDLE))
    }

    /// Tells the governor how the host and we ourselves are, once a second.
    pub(super) fn account_for_ourselves(&mut self) {
        let (Some(governor), Ok(cpu)) = (&mut self.governor, CpuClock::OURS.read()) else {
            return;
        };
        let now = survey::now();
        self.read_every = governor.account_for(now, cpu).read_every;
        for (id, why) in governor.shed(now) {
            let Some(account) = self.accounts.get_mut(&id) else {
                continue;
            };
            if let Some(mut survey) = account.survey.take() {
                let step = survey.shed(why, &account.process, &mut self.capture, governor);
                account.step(survey, step);
            }
        }
    }

    /// Enters the host's memory pressure, `some avg10` in percent: when it is
    /// high, probes come off until it is over.
    pub fn press(&mut self, percent: f64) {
        if let Some(governor) = &mut self.governor {
            let held = governor.press(survey::now(), percent);
            if held {
                for account in self.accounts.values_mut() {
                    if let Some(survey) = &mut account.survey {
                        survey.next = Duration::ZERO;
                    }
                }
            }
        }
    }

    /// Time until a process meets its memory limit: the nearer, the later it
    /// is given up.
    pub fn rank(&mut self, id: TargetId, time_to_limit: Option<Duration>) {
        if let Some(governor) = &mut self.governor {
            governor.rank(id, time_to_limit);
        }
    }

    /// What was decided since the last call, in sentences.
    pub fn take_notes(&mut self) -> Vec<String> {
        let Some(governor) = &mut self.governor else {
            return Vec::new();
        };
        let (notes, dropped) = governor.take_notes();
        let mut sentences: Vec<String> = notes
            .into_iter()
            .map(|note| match note.target {
                Some(pid) => format!("process {pid}: {}", note.sentence),
                None => note.sentence,
            })
            .collect();
        if dropped > 0 {
            sentences.push(format!("{dropped} decisions more were not noted"));
        }
        sentences
    }

    /// What observing has cost a process: under the governor by the costs that
    /// were measured here, else by usual ones.
    pub(super) fn cost(&self, account: &Account) -> Cost {
        let governed = || {
            let standing = self.governor.as_ref()?.standing(account.id)?;
            let elapsed = account.survey.as_ref()?.elapsed(survey::now());
            Some((standing.trapped.as_secs_f64(), elapsed))
        };
        let (trapped, elapsed) =
            governed().unwrap_or_else(|| (account.trapped_s(), account.observed));
        Cost {
            slowdown_percent: (elapsed > Duration::ZERO)
                .then(|| trapped / elapsed.as_secs_f64() * 100.0),
            cpu: account.target_cpu(Some(trapped)),
        }
    }

    /// Follows a process no more.
    pub fn release(&mut self, id: TargetId) {
        self.accounts.remove(&id);
        self.capture.forget(id);
        if let Some(governor) = &mut self.governor {
            governor.forget(id);
        }
    }

    /// Takes all probes off.
    pub fn detach_all(&mut self) {
        for id in self.accounts.keys() {
            self.capture.detach(*id);
        }
    }
}

impl Account {
    /// Enters what became of its survey.
    fn step(&mut self, mut survey: Box<Survey>, step: Step) {
        for address in survey.take_addresses() {
            self.growth.block(address);
        }
        match step {
            Step::Nothing => {}
            Step::Traced(mean) => self.trace(mean),
            Step::Resampled(mean) => self.coarsest = self.coarsest.max(mean),
            Step::Untraced => self.untrace(),
        }
        self.survey = Some(survey);
    }

    /// All allocations are followed from now on.
    fn trace(&mut self, mean: u64) {
        self.sampling = Sampling::Fixed(mean);
        self.coarsest = mean;
        self.begin_again(kernel::monotonic_ns(), TargetCounts::default());
    }

    /// They are not any more: what they showed is out of date.
    fn untrace(&mut self) {
        self.begin_again(kernel::monotonic_ns(), TargetCounts::default());
    }
}
