//! One target's part of a run: its ledger and how its capture went.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use agent_ebpf::{
    abi::{
        heap::{Block, TargetCounts},
        loss::Loss,
    },
    logic::sampling::weight,
};

use super::{
    OwnCpu, Sampling, fineness::Load, residence::Growth, survey::Survey, task_life::TaskLife,
    waits::Following,
};
use crate::{
    analysis::tasks,
    capture::{Reading, TargetId},
    finding::{Command, Ended, TargetCpu},
    host::process::{self, Process},
    ledger::{Calls, Ledger, LiveBlock, Observation, SiteTotals, StackId, tasks::TaskId},
};

/// Task ids count up from 1; what is larger is no id.
const MAX_TASK_ID: u64 = 1 << 44;

/// The kernel's blocks as ledgers know them; times count from `zero_ns`.
pub(super) fn live_blocks(live: Vec<(u64, Block)>, zero_ns: u64) -> Vec<LiveBlock> {
    live.into_iter()
        .map(|(address, block)| LiveBlock {
            address,
            size: block.size,
            stack: StackId(block.stack),
            task: (1..MAX_TASK_ID).contains(&block.task).then_some(block.task),
            born: Duration::from_nanos(block.born_ns.saturating_sub(zero_ns)),
            mean: block.mean.max(1),
        })
        .collect()
}

/// A process from its attach to its report.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Account {
    /// Names the target.
    pub id: TargetId,
    /// Who it is.
    pub process: Process,
    /// What it holds.
    pub(super) ledger: Ledger,
    /// CLOCK_MONOTONIC when its probes were complete.
    pub attached_ns: u64,
    /// Time of the last observation, since then.
    pub observed: Duration,
    /// Counters at the last observation.
    pub(super) counts: TargetCounts,
    /// How finely it is recorded.
    pub(super) sampling: Sampling,
    /// Coarsest sampling mean used.
    pub(super) coarsest: u64,
    /// CLOCK_MONOTONIC when it was first followed.
    pub(super) began_ns: u64,
    /// It has ended.
    pub ended: bool,
    /// How.
    pub(super) ended_as: Option<Ended>,
    /// Children that were forked and not followed.
    pub(super) unfollowed: u64,
    /// Every call of an allocator is counted.
    pub(super) every_call: bool,
    /// Allocator functions that found no probe.
    pub(super) left_out: u64,
    /// Pieces of mappings that the unwinder was not told of.
    pub(super) unmapped: u64,
    /// Blocks whose task id makes no sense; it is not reported.
    pub(super) implausible: u64,
    /// Set for the command that the run started.
    pub command: Option<Command>,
    /// A child of the command.
    pub descendant: bool,
    /// Its last observation is made.
    pub(super) closed: bool,
    /// Where its memory grew.
    pub(super) growth: Growth,
    /// Who waits in it.
    pub(super) waits: Following,
    /// The lives of its tasks.
    pub(super) tasks: TaskLife,
    /// What it uses of processors; that of its survey, if it has one.
    own_cpu: OwnCpu,
    /// Set when the governor decides about its probes.
    pub(super) survey: Option<Box<Survey>>,
    looked: (Instant, TargetCounts),
    load: Load,
}

impl Account {
    /// Begins an account.
    pub(super) fn new(
        process: Process,
        attached_ns: u64,
        sampling: Sampling,
        own_cpu: OwnCpu,
    ) -> Self {
        Self {
            id: process.pid,
            process,
            ledger: Ledger::default(),
            attached_ns,
            observed: Duration::ZERO,
            counts: TargetCounts::default(),
            sampling,
            coarsest: sampling.first_mean(),
            began_ns: attached_ns,
            ended: false,
            ended_as: None,
            unfollowed: 0,
            every_call: false,
            left_out: 0,
            unmapped: 0,
            implausible: 0,
            command: None,
            descendant: false,
            closed: false,
            growth: Growth::default(),
            waits: Following::default(),
            tasks: TaskLife::default(),
            own_cpu,
            survey: None,
            looked: (Instant::now(), TargetCounts::default()),
            load: Load::default(),
        }
    }

    /// The process runs another program: what it held is gone.
    pub(super) fn restart(&mut self) {
        self.ledger.restart();
        self.growth = Growth::default();
        self.waits.restart();
        self.tasks = TaskLife::default();
        self.own_cpu().restart();
        if let Some(survey) = &mut self.survey {
            survey.restart();
        }
        if let Ok(process) = Process::of(self.id) {
            self.process = process;
        }
    }

    /// The observation begins now; what was seen before does not count.
    /// `counts` are the counters as they stand.
    pub(super) fn begin_again(&mut self, attached_ns: u64, counts: TargetCounts) {
        self.ledger = Ledger::default();
        self.growth.begin_again();
        self.tasks.forget_cells();
        self.attached_ns = attached_ns;
        self.observed = Duration::ZERO;
        self.counts = counts;
        self.looked = (Instant::now(), counts);
    }

    /// Enters what is seen of a process while no probe tells more.
    pub(super) fn observe_from_outside(&mut self, now_ns: u64, counts: TargetCounts) {
        self.observed = Duration::from_nanos(now_ns.saturating_sub(self.attached_ns));
        self.counts = counts;
        let bytes = self.anonymous_bytes();
        if let Some(survey) = &mut self.survey {
            survey.memory(bytes);
        }
    }

    fn anonymous_bytes(&self) -> Option<u64> {
        if self.ended {
            return None;
        }
        process::anonymous_bytes(self.id).ok()
    }

    /// Enters what the kernel's tables held at `now_ns`.
    pub(super) fn observe(&mut self, now_ns: u64, reading: Reading, counts: TargetCounts) {
        let before = self.observed;
        self.observed = Duration::from_nanos(now_ns.saturating_sub(self.attached_ns));
        self.counts = counts;
        for (address, _) in &reading.live {
            self.growth.block(*address);
        }
        let sites = reading.sites.into_iter().map(|(hash, site)| SiteTotals {
            stack: StackId(hash),
            allocated: site.allocated,
            freed: site.freed,
            longest_life: Duration::from_nanos(site.longest_life_ns),
            lives: Duration::from_micros(site.lives_us),
        });
        self.implausible = reading
            .live
            .iter()
            .filter(|(_, block)| block.task >= MAX_TASK_ID)
            .count() as u64;
        let observation = Observation {
            at: self.observed,
            sites: sites.collect(),
            live: live_blocks(reading.live, self.attached_ns),
            anonymous_bytes: self.anonymous_bytes(),
            calls: self.every_call.then_some(Calls {
                allocations: counts.allocations,
                frees: counts.frees,
            }),
        };
        self.ledger.observe(observation);
        self.tasks
            .observe(&self.ledger, self.attached_ns, (before, self.observed));
    }

    /// The live blocks that are known, for the tasks that hold them. Task ids
    /// are those of the Tokio in `module`.
    pub(super) fn blocks(&self, module: Option<u64>) -> Vec<tasks::Block> {
        let of = |block: &LiveBlock, weight: f64| tasks::Block {
            address: block.address,
            stack: block.stack,
            task: module
                .zip(block.task)
                .map(|(module, id)| TaskId { module, id }),
            born: block.born,
            size: block.size,
            weight,
        };
        match self.surveyed() {
            Some(survey) => survey
                .survivors
                .blocks()
                .map(|(block, weight)| of(block, weight))
                .collect(),
            None => self
                .ledger
                .live()
                .iter()
                .map(|block| of(block, weight(block.size, block.mean)))
                .collect(),
        }
    }

    /// Rates since the last call.
    pub(super) fn load(&mut self, table_use: f64) -> Load {
        let (then, before) = self.looked;
        let seconds = then.elapsed().as_secs_f64().max(1e-3);
        self.looked = (Instant::now(), self.counts);
        self.load = Load {
            calls_per_s: self.counts.allocations.saturating_sub(before.allocations) as f64
                / seconds,
            bytes_per_s: self
                .counts
                .allocated_bytes
                .saturating_sub(before.allocated_bytes) as f64
                / seconds,
            table_use,
        };
        self.load
    }

    /// Calls of allocating functions per second, at the last look.
    pub fn calls_per_s(&self) -> f64 {
        self.load.calls_per_s
    }

    /// The survey, unless it is traced now.
    pub(super) fn surveyed(&self) -> Option<&Survey> {
        self.survey.as_deref().filter(|survey| !survey.is_traced())
    }

    /// Whether every allocation is followed now.
    pub(super) fn is_followed(&self) -> bool {
        self.surveyed().is_none()
    }

    /// Whether enough blocks were seen to tell memory of its allocators from
    /// other memory.
    pub(super) fn knows_its_allocators(&self) -> bool {
        const WINDOWS: u32 = 3;
        self.surveyed()
            .is_none_or(|survey| survey.windows >= WINDOWS)
    }

    /// Losses that are not zero, by cause.
    pub(super) fn lost(&self) -> BTreeMap<String, u64> {
        let ours = self.ledger.losses();
        Loss::ALL
            .iter()
            .zip(self.counts.lost)
            .map(|(cause, count)| (cause.name(), count))
            .chain([
                ("children_not_followed", self.unfollowed),
                ("functions_not_probed", self.left_out),
                ("mappings_not_kept", self.unmapped),
                ("task_ids_implausible", self.implausible),
                ("observations_out_of_order", ours.out_of_order),
                ("blocks_listed_twice", ours.duplicates),
                ("blocks_without_history", ours.without_history),
                ("sites_without_totals", ours.without_totals),
            ])
            .chain(self.waits.lost())
            .chain(self.tasks.losses())
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .chain(self.survey.iter().flat_map(|survey| {
                let losses = survey.losses().into_iter();
                losses.map(|(cause, count)| (cause.to_owned(), count))
            }))
            .collect()
    }

    /// Why no detection limit holds: too much of what was to be recorded was
    /// not.
    pub(super) fn blind(&self) -> Option<String> {
        let lost = self.counts.unrecorded();
        let all = self.counts.sampled + lost;
        (lost * 100 > all).then(|| {
            format!("{lost} of {all} allocations found no place in the tables: sample more coarsely by --sample")
        })
    }

    /// What it uses of processors.
    pub(super) fn own_cpu(&mut self) -> &mut OwnCpu {
        match &mut self.survey {
            Some(survey) => &mut survey.own_cpu,
            None => &mut self.own_cpu,
        }
    }

    /// As it is told, `trapped` being the seconds that it has spent in traps.
    pub(super) fn target_cpu(&self, trapped: Option<f64>) -> TargetCpu {
        let survey = self.survey.as_ref();
        let own_cpu = survey.map_or(&self.own_cpu, |survey| &survey.own_cpu);
        own_cpu.told(trapped)
    }

    /// Seconds that the target spent in probes: an estimate from measured costs
    /// of a trap (0.7 µs), one that is single-stepped (ten times that), and a
    /// record (5 µs, 50 frames).
    pub(super) fn trapped_s(&self) -> f64 {
        const TRAP: f64 = 0.7e-6;
        const STEPPED: f64 = 7e-6;
        const RECORD: f64 = 5e-6;
        let counts = &self.counts;
        let traps = counts.allocations + counts.frees + counts.sampled;
        traps as f64 * TRAP
            + counts.stepped as f64 * (STEPPED - TRAP)
            + counts.sampled as f64 * RECORD
    }
}
