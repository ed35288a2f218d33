//! Follows processes and judges them: what the fronts have in common.
//!
//! An [`Investigation`] owns the capture and one [`Account`] per process. Its
//! front decides whom to follow and for how long, calls
//! [`Investigation::handle_records`] when the ring buffer has something,
//! [`Investigation::tick`] about once a second, and asks for a description of
//! a process when it wants one.

mod account;
mod deaths;
mod description;
mod fineness;
mod governed;
mod own_cpu;
mod residence;
mod survey;
mod task_life;
mod waits;

use std::{collections::HashMap, os::fd::OwnedFd, path::PathBuf, time::Duration};

use agent_ebpf::abi::heap::{Target, TargetCounts};
use anyhow::Result;

pub use account::Account;
pub use own_cpu::Sighting;
use own_cpu::{OwnCpu, Phase};

use crate::{
    analysis::Settings,
    capture::{
        self, Capture, Incident, TargetId, governor::Governor, links::Method, object::Sizes,
        refusal::Refusal,
    },
    finding::{self, Death},
    host::{kernel, process::Process, quarantine::Quarantine},
    symbols::Symbols,
};

/// Calls are only counted for so long, to choose a sampling mean; the
/// observation begins then.
pub const FIRST_LOOK: Duration = Duration::from_millis(250);
/// After so many children, a process is probed in a way that spares them.
const MANY_CHILDREN: u64 = 16;

/// How finely a process's allocations are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// By a sampling mean in bytes that stays; 1 records every allocation.
    Fixed(u64),
    /// By the allocation rate, which is looked at first.
    ByRate,
    /// Every allocation from the first on, and coarser when the rate asks for
    /// it.
    FromFirst,
}

impl Sampling {
    const fn first_mean(self) -> u64 {
        match self {
            Self::Fixed(mean) => mean,
            Self::ByRate => Target::COUNT_ONLY,
            Self::FromFirst => 1,
        }
    }
}

/// Something that the front may have to act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A followed process forked; the child is not followed.
    Forked {
        /// Who forked.
        parent: TargetId,
        /// Process id of the child.
        child: u32,
    },
    /// A followed process runs another program.
    Executed(TargetId),
    /// A followed process ended; its last observation is made.
    Ended(TargetId),
}

/// Processes that are followed.
pub struct Investigation {
    capture: Capture,
    accounts: HashMap<TargetId, Account>,
    governor: Option<Governor>,
    live_blocks: u32,
    /// Pause between two readings of the tables.
    read_every: Duration,
    /// The last of them, CLOCK_MONOTONIC.
    read_at: Duration,
    /// Task tables are not read before, CLOCK_MONOTONIC.
    tables_rest: Duration,
    /// What the threads of all other processes pay while waits are followed.
    strangers: waits::Debt,
    /// Processor time of processes that are soon followed.
    sightings: HashMap<u32, Sighting>,
    /// Deaths that are not told yet.
    deaths: Vec<Death>,
}

impl Investigation {
    /// Loads the kernel programs. `live_blocks` is the room for recorded
    /// blocks of all processes together, `methods` the ways of attaching that
    /// may be used.
    ///
    /// # Errors
    /// As [`Capture::new`].
    pub fn new(live_blocks: u32, methods: &[Method]) -> Result<Self> {
        let quarantine = Quarantine::open(&Quarantine::place());
        Ok(Self {
            capture: Capture::new(Sizes { live_blocks }, methods, quarantine)?,
            accounts: HashMap::new(),
            governor: None,
            live_blocks,
            read_every: Duration::ZERO,
            read_at: Duration::ZERO,
            tables_rest: Duration::ZERO,
            strangers: waits::Debt::default(),
            sightings: HashMap::new(),
            deaths: Vec::new(),
        })
    }

    /// The kernel side.
    pub fn capture(&self) -> &Capture {
        &self.capture
    }

    /// A descriptor that is readable when there is something for
    /// [`Self::handle_records`].
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn ring_descriptor(&self) -> Result<OwnedFd> {
        self.capture.ring_descriptor()
    }

    /// The kernel programs, for their log.
    pub fn ebpf(&mut self) -> &mut aya::Ebpf {
        self.capture.ebpf()
    }

    /// Enters looks at processes that are followed next: what they used of
    /// processors before they were probed is known from then on.
    pub fn sighted(&mut self, sightings: HashMap<u32, Sighting>) {
        self.sightings = sightings;
    }

    fn own_cpu(&mut self, pid: u32) -> OwnCpu {
        OwnCpu::new(pid, self.sightings.remove(&pid))
    }

    /// Starts to follow a process. `upcoming` are files that it is about to
    /// map.
    ///
    /// # Errors
    /// Why it cannot be followed.
    pub fn follow(
        &mut self,
        process: Process,
        sampling: Sampling,
        upcoming: &[PathBuf],
    ) -> Result<(), Refusal> {
        let first = sampling.first_mean();
        let mut own_cpu = self.own_cpu(process.pid);
        own_cpu.turn(Phase::Probed);
        if upcoming.is_empty() {
            self.capture.attach(process.clone(), first)?;
        } else {
            self.capture
                .attach_command(process.clone(), first, upcoming)?;
        }
        self.begin(process, sampling, own_cpu);
        Ok(())
    }

    /// Opens the account of a process that is a target now.
    fn begin(&mut self, process: Process, sampling: Sampling, own_cpu: OwnCpu) {
        let pid = process.pid;
        let attached = self.attached_ns(pid);
        self.accounts
            .insert(pid, Account::new(process, attached, sampling, own_cpu));
    }

    /// Has page faults sampled, which tell where memory grows that no
    /// allocator hands out. Not before the first tick: a command that starts
    /// is raced for its mappings, and its page faults would come in between.
    fn sample_faults(&mut self) {
        let running = self.accounts.values().filter(|account| !account.ended);
        let ids: Vec<TargetId> = running.map(|account| account.id).collect();
        for id in ids {
            if let Err(error) = self.capture.sample_faults(id) {
                tracing::debug!(pid = id, error = %format_args!("{error:#}"), "page faults are not sampled");
            }
        }
    }

    fn attached_ns(&self, id: TargetId) -> u64 {
        self.capture
            .target(id)
            .map_or_else(kernel::monotonic_ns, |target| target.attached_ns)
    }

    /// A followed process.
    pub fn account(&self, id: TargetId) -> Option<&Account> {
        self.accounts.get(&id)
    }

    /// A followed process.
    pub fn account_mut(&mut self, id: TargetId) -> Option<&mut Account> {
        self.accounts.get_mut(&id)
    }

    /// The followed processes, those that have ended included.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// Number of followed processes.
    pub fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Whether no process is followed.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Whether nothing is left to observe.
    pub fn is_over(&self) -> bool {
        self.accounts
            .values()
            .all(|account| account.ended || account.closed)
    }

    /// Handles what the kernel programs have reported.
    pub fn handle_records(&mut self) -> Vec<Happening> {
        let mut happenings = Vec::new();
        for (id, incident) in self.capture.drain() {
            match incident {
                Incident::Ended(ending) => {
                    self.note_end(id, ending);
                    self.end(id);
                    // Not of one that was followed until lately.
                    if self.accounts.contains_key(&id) {
                        happenings.push(Happening::Ended(id));
                    }
                }
                Incident::Executed => {
                    if let Some(account) = self.accounts.get_mut(&id) {
                        account.restart();
                    }
                    happenings.push(Happening::Executed(id));
                }
                Incident::Forked(child) => {
                    if let Some(account) = self.accounts.get_mut(&id)
                        && let Some(survey) = &mut account.survey
                    {
                        survey.forked();
                    }
                    happenings.push(Happening::Forked { parent: id, child });
                }
            }
        }
        happenings
    }

    /// Counts a child that is not followed. After many, the parent is probed
    /// in a way that spares them; `spare` is false where the way is fixed.
    ///
    /// # Errors
    /// Why the parent cannot be followed any more.
    pub fn leave_child(&mut self, parent: TargetId, spare: bool) -> Result<(), Refusal> {
        let Some(account) = self.accounts.get_mut(&parent) else {
            return Ok(());
        };
        account.unfollowed += 1;
        // Windows end by themselves when children pay for them.
        if account.survey.is_some() {
            return Ok(());
        }
        let fixed = !spare || self.capture.method() == Method::Perf;
        if account.unfollowed != MANY_CHILDREN || fixed {
            return Ok(());
        }
        if let Err(refusal) = self.capture.spare_children(parent) {
            self.accounts.remove(&parent);
            return Err(refusal);
        }
        let attached = self.attached_ns(parent);
        if let Some(account) = self.accounts.get_mut(&parent) {
            account.begin_again(attached, TargetCounts::default());
        }
        Ok(())
    }

    /// Reads the tables once more for a target that has just ended.
    fn end(&mut self, id: TargetId) {
        if self.accounts.get(&id).is_none_or(|account| account.ended) {
            return;
        }
        if let Some(account) = self.accounts.get_mut(&id) {
            account.ended = true;
        }
        if let Err(error) = self.read() {
            tracing::warn!(error = %format_args!("{error:#}"), "the last observation of a process is missing");
        }
        self.capture.detach(id);
        if let Some(account) = self.accounts.get_mut(&id) {
            account.closed = true;
            if let Some(survey) = &mut account.survey {
                survey.ended();
            }
        }
    }

    /// See [`Capture::watch_start`].
    pub fn watch_start(&mut self, id: TargetId) -> bool {
        self.capture.watch_start(id)
    }

    /// Looks for what has made probes dangerous meanwhile, and for new
    /// mappings: about once a second, and before each [`Self::enter_observation`].
    pub fn look_for_dangers(&mut self) {
        self.capture.tick();
    }

    /// Both of what a second brings: [`Self::look_for_dangers`] and
    /// [`Self::enter_observation`].
    ///
    /// # Errors
    /// As [`Self::enter_observation`].
    pub fn tick(&mut self) -> Result<()> {
        self.look_for_dangers();
        self.enter_observation()
    }

    /// One observation of every process, and sampling means that fit their
    /// load.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub fn enter_observation(&mut self) -> Result<()> {
        self.account_for_ourselves();
        self.sample_faults();
        self.follow_waits();
        // Ticks are not quite even.
        let now = Duration::from_nanos(kernel::monotonic_ns());
        if now.saturating_sub(self.read_at) < self.read_every.mul_f64(0.9) {
            return Ok(());
        }
        self.read_at = now;
        let live = self.read()?;
        self.read_tasks();
        self.choose_means(live as f64 / f64::from(self.live_blocks));
        Ok(())
    }

    /// Chooses the first sampling means; the observation begins here.
    ///
    /// # Errors
    /// As [`Self::tick`].
    pub fn first_look(&mut self) -> Result<()> {
        for account in self.accounts.values_mut() {
            account.counts = self.capture.counts(account.id);
        }
        self.choose_means(0.0);
        self.read().map(drop)
    }

    /// Enters the tables into the accounts; live blocks in all.
    fn read(&mut self) -> Result<usize> {
        let now = kernel::monotonic_ns();
        let mut live = 0;
        let mut faults = self.capture.page_faults()?;
        self.read_waits(now)?;
        // Windows are read when they close.
        let followed = self.accounts.values().any(Account::is_followed);
        let mut readings = if followed {
            self.capture.read()?
        } else {
            HashMap::new()
        };
        let ids: Vec<TargetId> = self.accounts.keys().copied().collect();
        for id in ids {
            let reading = readings.remove(&id).unwrap_or_default();
            live += reading.live.len();
            if let Some(account) = self.accounts.get_mut(&id).filter(|account| !account.closed) {
                account.own_cpu().pass();
                let target = self.capture.target(id);
                // Followed no more. What it has done since the last look may
                // have gone unseen, so its last observation is that one.
                if target.is_some_and(|target| target.refused.is_some()) {
                    account.closed = true;
                    continue;
                }
                account.every_call = target.is_some_and(capture::target::Target::counts_every_call);
                let dropped = target.map_or(0, |target| target.space.dropped as u64);
                account.unmapped = account.unmapped.max(dropped);
                account
                    .growth
                    .faults(faults.remove(&id).unwrap_or_default());
                match &account.survey {
                    Some(survey) if !survey.is_traced() => {
                        let counts = survey.counts(&self.capture);
                        account.observe_from_outside(now, counts);
                    }
                    _ => account.observe(now, reading, self.capture.counts(id)),
                }
            }
        }
        Ok(live)
    }

    /// Sets the sampling means that are not the user's choice.
    fn choose_means(&mut self, table_use: f64) {
        let now = kernel::monotonic_ns();
        for account in self.accounts.values_mut() {
            let Some(current) = self.capture.target(account.id).map(|target| target.mean) else {
                continue;
            };
            let first = current == Target::COUNT_ONLY;
            if account.survey.is_some() {
                continue;
            }
            let early = now.saturating_sub(account.attached_ns) < FIRST_LOOK.as_nanos() as u64;
            if account.ended || matches!(account.sampling, Sampling::Fixed(_)) || (first && early) {
                continue;
            }
            let load = account.load(table_use);
            let mean = fineness::next_mean(if first { 1 } else { current }, load);
            if mean == current {
                continue;
            }
            if let Err(error) = self.capture.set_mean(account.id, mean) {
                tracing::warn!(error = %format_args!("{error:#}"), "cannot change the sampling mean");
                continue;
            }
            account.coarsest = if first {
                mean
            } else {
                account.coarsest.max(mean)
            };
            if first {
                account.begin_again(now, account.counts);
            }
        }
    }

    /// The last observation of all, and the probes off. Returns who was
    /// followed no more before that, and why.
    ///
    /// # Errors
    /// As [`Self::tick`].
    pub fn finish(&mut self) -> Result<Vec<(TargetId, Refusal)>> {
        // The last observation is believed like the others.
        self.look_for_dangers();
        self.read()?;
        let mut refused = Vec::new();
        for account in self.accounts.values_mut() {
            self.capture.detach(account.id);
            if let Some(target) = self.capture.target(account.id) {
                account.left_out = target.left_out as u64;
                // One that ended may have had no time to map its allocator.
                let unseen = target
                    .why_unseen()
                    .filter(|_| !account.ended || target.refused.is_some());
                refused.extend(unseen.map(|refusal| (account.id, refusal)));
            }
        }
        self.read_tasks_last();
        Ok(refused)
    }

    /// Who is followed no more though it runs, and why.
    pub fn refused(&self) -> Vec<(TargetId, Refusal)> {
        let ids = self.accounts.keys();
        let refused = ids.filter_map(|id| {
            let refusal = self.capture.target(*id)?.refused.clone()?;
            Some((*id, refusal))
        });
        refused.collect()
    }

    /// Judges one process; `None` when it is not followed.
    pub fn describe(
        &self,
        id: TargetId,
        settings: &Settings,
        symbols: &mut Symbols,
    ) -> Option<finding::Process> {
        let account = self.accounts.get(&id)?;
        Some(description::describe(
            &self.capture,
            account,
            self.cost(account),
            settings,
            symbols,
        ))
    }
}
