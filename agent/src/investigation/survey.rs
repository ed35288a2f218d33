//! One process under the governor: windows in which its allocations are
//! followed, and what of their blocks still lives long after.
//!
//! A window ends in a fixed order: nothing more is recorded, the survivors are
//! read for the first time while frees still take blocks out of the kernel's
//! table, those that were freed meanwhile are left out, and only then the
//! probes come off. So contents and block belong together.

mod reads;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use agent_ebpf::abi::heap::{Target, TargetCounts};

use self::reads::Reads;
use super::{OwnCpu, Phase, account::live_blocks};
use crate::{
    capture::{
        Capture, Reading, TargetId,
        governor::{self, Check, Close, Governor, Meter, Mode},
    },
    host::{kernel, process::Process},
    ledger::{
        StackId, Survivors,
        survivors::{StackCount, SurveyBlock, WindowOutcome},
    },
};

/// Decisions that are kept for the report.
const MAX_DECISIONS: usize = 8;

/// Our own processor time that a window takes, about.
const WINDOW_WORK: Duration = Duration::from_millis(30);
/// After so long, it is asked again whether there is time for one.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of a process that the governor decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing that concerns its account.
    Nothing,
    /// It is traced from now on, with this sampling mean.
    Traced(u64),
    /// Its sampling mean is another.
    Resampled(u64),
    /// It is traced no more.
    Untraced,
}

/// A process under the governor.
pub(super) struct Survey {
    id: TargetId,
    /// CLOCK_MONOTONIC, nanoseconds: the zero of the survivors' times.
    began_ns: u64,
    pub(super) survivors: Survivors,
    reads: Reads,
    meter: Meter,
    /// What the process uses of processors.
    pub(super) own_cpu: OwnCpu,
    open: Option<Open>,
    /// Counters of all earlier windows.
    counts: TargetCounts,
    /// When to look at it again, CLOCK_MONOTONIC.
    pub(super) next: Duration,
    /// Totals of each stack at the end of the last window.
    sites: HashMap<u64, (u64, u64)>,
    /// Windows that recorded something.
    pub(super) windows: u32,
    /// How long they were open.
    pub(super) open_time: Duration,
    /// Coarsest sampling mean of a window.
    pub(super) coarsest: u64,
    /// What was decided, and why; the latest last.
    pub(super) decisions: Vec<String>,
    decided: Option<std::mem::Discriminant<Mode>>,
    /// Why no probe may be set.
    pub(super) refused: Option<String>,
    addresses: Vec<u64>,
}

/// Probes are on.
struct Open {
    since: Duration,
    mean: u64,
    traced: bool,
    /// Children forked meanwhile: they inherited the breakpoints.
    children: u32,
}

/// Now, as time since the kernel's monotonic clock began.
pub(super) fn now() -> Duration {
    Duration::from_nanos(kernel::monotonic_ns())
}

impl Survey {
    /// Begins; the process is prepared, no probe is on.
    pub(super) fn new(process: &Process, own_cpu: OwnCpu) -> Self {
        let began = now();
        Self {
            id: process.pid,
            began_ns: began.as_nanos() as u64,
            survivors: Survivors::default(),
            reads: Reads::default(),
            meter: Meter::new(process.pid),
            open: None,
            counts: TargetCounts::default(),
            next: began.max(own_cpu.known_from()),
            own_cpu,
            sites: HashMap::new(),
            windows: 0,
            open_time: Duration::ZERO,
            coarsest: 1,
            decisions: Vec::new(),
            decided: None,
            refused: None,
            addresses: Vec::new(),
        }
    }

    /// Processor time of the process so far.
    pub(super) fn cpu(&self) -> Option<Duration> {
        self.meter.cpu()
    }

    /// Addresses at which windows have seen blocks since the last call.
    pub(super) fn take_addresses(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.addresses)
    }

    /// The zero of the survivors' times, CLOCK_MONOTONIC.
    pub(super) fn began(&self) -> Duration {
        Duration::from_nanos(self.began_ns)
    }

    /// Whether it is traced now.
    pub(super) fn is_traced(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.traced)
    }

    /// Time since the survey began.
    pub(super) fn elapsed(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_nanos(self.began_ns))
    }

    /// Notes the memory of the process.
    pub(super) fn memory(&mut self, anonymous_bytes: Option<u64>) {
        let at = self.elapsed(now());
        self.survivors.memory(at, anonymous_bytes);
    }

    /// A child was forked: it pays for breakpoints that it inherited.
    pub(super) fn forked(&mut self) {
        if let Some(open) = &mut self.open {
            open.children += 1;
            self.next = Duration::ZERO;
        }
    }

    /// The process runs another program.
    pub(super) fn restart(&mut self) {
        self.survivors.restart();
        self.reads = Reads::default();
        self.sites.clear();
        self.next = Duration::ZERO;
    }

    /// The process has ended.
    pub(super) fn ended(&mut self) {
        self.survivors.ended();
        self.open = None;
    }

    /// Does what is due. To be called again at [`Self::next`].
    pub(super) fn advance(
        &mut self,
        process: &Process,
        capture: &mut Capture,
        governor: &mut Governor,
    ) -> Step {
        let at = now();
        if at < self.next {
            return Step::Nothing;
        }
        if self.open.is_some() {
            return self.look(process, capture, governor);
        }
        // What was caught comes before catching more: reading again is what it
        // is for, and takes little.
        let work = governor.wait_for_work(at, WINDOW_WORK);
        if !work.is_zero() && self.windows > 0 {
            self.next = at + work.min(PATIENCE);
            self.read_again(at, process);
            return Step::Nothing;
        }
        let decision = governor.decide(self.id, at, self.meter.cpu());
        self.refused = None;
        self.decide(decision.mode, &decision.why);
        let (next, step) = match decision.mode {
            Mode::Survey(slot) if slot.at > at => (slot.at, Step::Nothing),
            Mode::Survey(slot) => (at, self.open(slot.mean, false, process, capture, governor)),
            Mode::Trace { mean } => (at, self.open(mean, true, process, capture, governor)),
            Mode::Hold { again } => (again, Step::Nothing),
            Mode::Refuse { again } => {
                self.refused = Some(decision.why);
                let later = at + Duration::from_mins(1);
                (again.unwrap_or(later), Step::Nothing)
            }
        };
        if self.open.is_none() {
            self.next = next.max(at + Duration::from_millis(5));
            self.read_again(at, process);
        }
        step
    }

    fn open(
        &mut self,
        mean: u64,
        traced: bool,
        process: &Process,
        capture: &mut Capture,
        governor: &mut Governor,
    ) -> Step {
        capture.look_before_window(self.id);
        if let Some(target) = capture.target(self.id) {
            governor.set_stepped(self.id, target.is_stepped());
        }
        self.own_cpu.turn(Phase::Probed);
        governor.opening(self.id, now());
        self.meter.restart();
        let opened = capture
            .set_mean(self.id, mean)
            .and_then(|()| capture.open_window(self.id));
        let at = now();
        if let Err(error) = opened {
            governor.closed(self.id, at, &governor::Reading::default());
            self.own_cpu.turn(Phase::Between);
            // Most often the process has just ended, which is reported apart.
            tracing::debug!(pid = self.id, error = %format_args!("{error:#}"), "no window can be opened");
            self.decided = None;
            self.note(&format!("no window can be opened: {error:#}"));
            self.next = at + Duration::from_secs(10);
            return Step::Nothing;
        }
        self.open = Some(Open {
            since: at,
            mean,
            traced,
            children: 0,
        });
        if !traced && mean != Target::COUNT_ONLY {
            let at = self.elapsed(at);
            self.survivors.window_opened(at);
        }
        let reading = self.reading(capture);
        let check = governor.opened(self.id, now(), &reading);
        match self.obey(check, process, capture, governor) {
            Step::Nothing if traced => Step::Traced(mean),
            step => step,
        }
    }

    /// Looks at a process whose probes are on.
    fn look(&mut self, process: &Process, capture: &mut Capture, governor: &mut Governor) -> Step {
        let reading = self.reading(capture);
        let check = governor.check(self.id, now(), &reading);
        self.obey(check, process, capture, governor)
    }

    fn obey(
        &mut self,
        check: Check,
        process: &Process,
        capture: &mut Capture,
        governor: &mut Governor,
    ) -> Step {
        match check {
            Check::Stay { again } => {
                self.next = now() + again;
                Step::Nothing
            }
            Check::Resample { mean, again } => {
                self.next = now() + again;
                if let Err(error) = capture.set_mean(self.id, mean) {
                    tracing::warn!(error = %format_args!("{error:#}"), "cannot change the sampling mean");
                    return Step::Nothing;
                }
                match &mut self.open {
                    Some(open) => {
                        open.mean = open.mean.max(mean);
                        if open.traced {
                            Step::Resampled(mean)
                        } else {
                            Step::Nothing
                        }
                    }
                    None => Step::Nothing,
                }
            }
            Check::Detach(close) => self.detach(&close, process, capture, governor),
        }
    }

    /// Takes the probes off because our own processor time does not suffice.
    pub(super) fn shed(
        &mut self,
        why: String,
        process: &Process,
        capture: &mut Capture,
        governor: &mut Governor,
    ) -> Step {
        self.detach(&Close::Held(why), process, capture, governor)
    }

    fn detach(
        &mut self,
        close: &Close,
        process: &Process,
        capture: &mut Capture,
        governor: &mut Governor,
    ) -> Step {
        let traced = self.is_traced();
        self.close(close, process, capture, governor);
        if !traced {
            return Step::Nothing;
        }
        self.decided = None;
        self.note(&close.to_string());
        Step::Untraced
    }

    /// Ends a window, or tracing, for good reasons or bad.
    fn close(
        &mut self,
        close: &Close,
        process: &Process,
        capture: &mut Capture,
        governor: &mut Governor,
    ) {
        let Some(open) = &self.open else { return };
        let (mean, since, records) = (
            open.mean,
            open.since,
            !open.traced && open.mean != Target::COUNT_ONLY,
        );
        let until = now();
        // What is in the table may be used when there is time for a look at
        // it; otherwise the probes come off at once.
        let orderly = matches!(close, Close::Done { .. } | Close::Spent { .. });
        let harvest = (records && orderly)
            .then(|| self.harvest(process, capture))
            .flatten();
        // Where breakpoints are gone, what was freed seems to live.
        let whole = orderly && capture.is_whole(self.id);
        let harvest = harvest.filter(|_| whole);
        let reading = self.reading(capture);
        capture.close_window(self.id);
        self.counts.add(&capture.counts(self.id));
        let at = now();
        governor.closed(self.id, at, &reading);
        self.own_cpu.turn(Phase::Between);
        self.open = None;
        self.next = at;
        if !records {
            return;
        }
        let elapsed = self.elapsed(at);
        let Some(harvest) = harvest else {
            self.survivors.window_abandoned(elapsed);
            return;
        };
        let open_time = until.saturating_sub(since);
        self.windows += 1;
        self.open_time += open_time;
        self.coarsest = self.coarsest.max(mean);
        self.addresses = harvest
            .blocks
            .iter()
            .map(|found| found.block.block.address)
            .collect();
        let survivors: Vec<SurveyBlock> = harvest
            .blocks
            .iter()
            .map(|found| found.block.clone())
            .collect();
        let names = self.survivors.window_closed(
            elapsed,
            WindowOutcome {
                open: open_time,
                mean,
                counts: harvest.counts,
                survivors,
                calls: None,
                lost: harvest.lost,
            },
        );
        self.reads.keep(names, harvest.blocks, &self.survivors);
    }

    /// What a window leaves: no new records from here on, and a first look at
    /// every survivor.
    fn harvest(&mut self, process: &Process, capture: &mut Capture) -> Option<Harvest> {
        capture.set_mean(self.id, Target::COUNT_ONLY).ok()?;
        let live = live_blocks(capture.read_one(self.id).ok()?.live, self.began_ns);
        let firsts = self.reads.first(process, capture, self.id, live);
        // Who was freed while we read.
        let reading = capture.read_one(self.id).ok()?;
        let still: std::collections::HashSet<u64> =
            reading.live.iter().map(|(address, _)| *address).collect();
        let counts = self.count(&reading);
        let lost = capture.counts(self.id).unrecorded();
        Some(Harvest {
            blocks: firsts
                .into_iter()
                .filter(|found| still.contains(&found.block.block.address))
                .collect(),
            counts,
            lost,
        })
    }

    /// What each stack did since the window before.
    fn count(&mut self, reading: &Reading) -> Vec<StackCount> {
        let mut counts = Vec::new();
        let mut totals = HashMap::with_capacity(reading.sites.len());
        for (stack, site) in &reading.sites {
            let (allocated, freed) = self.sites.get(stack).copied().unwrap_or_default();
            totals.insert(*stack, (site.allocated, site.freed));
            let sampled = site.allocated.saturating_sub(allocated);
            if sampled > 0 {
                counts.push(StackCount {
                    stack: StackId(*stack),
                    sampled,
                    freed: site.freed.saturating_sub(freed),
                    longest_life: Duration::from_nanos(site.longest_life_ns),
                });
            }
        }
        self.sites = totals;
        counts
    }

    /// Reads what is due again, a batch at a time.
    fn read_again(&mut self, at: Duration, process: &Process) {
        let elapsed = self.elapsed(at);
        self.reads.again(process, elapsed, &mut self.survivors);
        if let Some(due) = self.survivors.next_due() {
            let due = Duration::from_nanos(self.began_ns) + due;
            self.next = self.next.min(due.max(at + reads::PAUSE));
        }
    }

    fn reading(&mut self, capture: &Capture) -> governor::Reading {
        let children = self.open.as_ref().map_or(0, |open| open.children);
        self.meter.read(capture, children)
    }

    /// Counters of all windows.
    pub(super) fn counts(&self, capture: &Capture) -> TargetCounts {
        let mut counts = self.counts;
        if self.open.is_some() {
            counts.add(&capture.counts(self.id));
        }
        counts
    }

    /// Notes a decision; one of the same kind replaces the one before, since
    /// only its figures are new.
    fn decide(&mut self, mode: Mode, why: &str) {
        let kind = Some(std::mem::discriminant(&mode));
        if self.decided == kind {
            self.decisions.pop();
        }
        self.decided = kind;
        self.note(why);
    }

    fn note(&mut self, why: &str) {
        if self.decisions.last().is_some_and(|last| last == why) {
            return;
        }
        if self.decisions.len() >= MAX_DECISIONS {
            self.decisions.remove(0);
        }
        self.decisions.push(why.to_owned());
    }

    /// Blocks and windows that were lost, by cause.
    pub(super) fn losses(&self) -> BTreeMap<&'static str, u64> {
        let losses = self.survivors.losses();
        let mut all: BTreeMap<&'static str, u64> = [
            ("survivors_unrecorded", losses.unrecorded),
            ("survivors_without_site", losses.without_site),
            ("stacks_without_counts", losses.without_counts),
            ("survivors_thinned", losses.thinned),
            ("survivors_listed_twice", losses.duplicates),
            ("readings_unknown", losses.unknown),
            ("survivors_given_up", losses.given_up),
            ("windows_abandoned", losses.abandoned),
        ]
        .into();
        all.extend(self.reads.skipped());
        all.retain(|_, count| *count > 0);
        all
    }
}

/// What a window leaves.
struct Harvest {
    blocks: Vec<reads::Found>,
    counts: Vec<StackCount>,
    lost: u64,
}
