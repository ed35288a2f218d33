//! One process under capture: what is probed in it, and why something is not.

mod integrity;
mod probing;

pub use probing::points;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_ebpf::abi::{
    fault::FaultSite,
    futex::{Place as WaitPlace, Wait, WaitTotals},
    heap::{Target as Slot, TaskIdRecipe},
};
use anyhow::{Context as _, Result};

use super::{
    address_space::AddressSpace,
    array, bpf,
    files::{CodeFile, Files},
    links::{FilePoints, Links, Method},
    object::Object,
    refusal::{self, Dangers, Refusal},
    text::Text,
};
use crate::{
    host::{
        kernel,
        process::{self, Process},
    },
    tokio_rt::{
        confirmation::{Belief, Confirmation, Verdict},
        current_task::{self, TaskIds},
    },
};

/// How long a command is looked at without a sign after its exec.
pub(super) const CLOSE_WATCH: Duration = Duration::from_millis(50);
/// The pause between two looks then, as a share of the time since the exec:
/// the libraries of a small program are all mapped within a millisecond, those
/// of a large one take longer, and each look holds up its next mapping.
const CLOSE_SHARE: u32 = 50;
/// Mappings are read again at most this often: the kernel makes a list of all
/// of them, under the target's lock.
const REFRESH_EVERY: Duration = Duration::from_millis(500);
/// A program that has just started maps its libraries one after the other.
const REFRESH_AT_START: Duration = Duration::from_micros(200);
/// How long that is expected to last.
const START: Duration = Duration::from_secs(1);
/// New files appear without a sign when nothing they do is sampled.
const REFRESH_ANYWAY: Duration = Duration::from_secs(10);
/// Where this process is killed, the kernel takes perf events off one by one,
/// a grace period of some 80 ms each: 5 s. glibc's probes are 52.
const MAX_PERF_PROBES: usize = 64;

/// An allocator family of a target, as reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// `glibc`, `jemalloc` …
    pub kind: &'static str,
    /// File it is in, raw.
    pub module: PathBuf,
    /// Why it is not probed; `None`: it is.
    pub why_not: Option<String>,
    /// Its functions that cannot be followed.
    pub uncovered: Vec<String>,
}

/// Where and how a target is followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Its place in the kernel's table.
    pub(super) slot: u32,
    /// Sampling mean in bytes.
    pub(super) mean: u64,
    /// How its probes are attached.
    pub(super) method: Method,
    /// Files that it is about to map.
    pub(super) upcoming: &'a [PathBuf],
    /// When its probes are on.
    pub(super) probing: Probing,
}

/// When a target's probes are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// From attach to detach.
    Always,
    /// In windows, [`super::Capture::open_window`] to
    /// [`super::Capture::close_window`].
    Windows,
}

/// A file with allocator functions, and where they are probed.
struct Probed {
    file: Arc<CodeFile>,
    points: FilePoints,
}

/// A process under capture.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Target {
    /// Its place in the kernel's table.
    pub slot: u32,
    /// Who it is.
    pub process: Process,
    /// CLOCK_MONOTONIC when its probes were complete.
    pub attached_ns: u64,
    /// CLOCK_MONOTONIC when it became a target.
    pub(super) began_ns: u64,
    /// Its end is watched.
    pub(super) watched: bool,
    /// It has ended.
    pub(super) ended: bool,
    /// Sampling mean in bytes.
    pub mean: u64,
    /// Its executable mappings.
    pub space: AddressSpace,
    /// Allocators found in it.
    pub allocators: Vec<Allocator>,
    /// How task ids are read.
    pub tasks: TaskIds,
    confirmation: Confirmation,
    /// It is a command before its exec: a child of ours that runs our program.
    is_ourselves: bool,
    method: Method,
    links: Vec<Links>,
    /// Probes are to be on now.
    open: bool,
    /// Detached for good.
    over: bool,
    /// CLOCK_MONOTONIC when probes last came off.
    pub(super) unprobed_ns: Option<u64>,
    probed: Vec<Probed>,
    /// What their pages must look like.
    text: Text,
    /// Inode and build id of the files that were looked at.
    known: HashSet<(u64, Option<String>)>,
    refreshed: Instant,
    /// How long that took.
    reading: Duration,
    /// Its executable memory at the last look.
    executable_kb: u64,
    /// When it began to run its present program, as far as we have seen.
    started: Instant,
    /// It has run another program since it became a target.
    executed: bool,
    /// The tables hold records of an earlier program.
    stale_records: bool,
    /// Allocator functions that found no probe: perf events are few.
    pub left_out: usize,
    /// Why it is followed no more, though it runs.
    pub refused: Option<Refusal>,
}

impl Target {
    /// Prepares tables, then attaches.
    pub(super) fn attach(
        object: &mut Object,
        files: &mut Files,
        dangers: Dangers<'_>,
        process: Process,
        place: Place<'_>,
    ) -> Result<Self, Refusal> {
        let pid = process.pid;
        refusal::check(&process)?;
        let who = process.clone();
        let gone = |error: anyhow::Error| {
            if who.is_running() {
                Refusal::Other(format!("cannot follow process {pid}: {error:#}"))
            } else {
                Refusal::Gone(pid)
            }
        };
        let failed = |error| Refusal::of(pid, error).unwrap_or_else(&gone);
        let began = Instant::now();
        let space = AddressSpace::load(object, files, pid, place.slot).map_err(failed)?;
        let reading = began.elapsed();
        let upcoming: Vec<Arc<CodeFile>> = place
            .upcoming
            .iter()
            .filter_map(|path| files.at_path(object, path).ok())
            .collect();
        // Now: it waits for a grace period, and the command will not.
        files.flush(object).map_err(gone)?;
        dangers.check(&process, &space, upcoming.iter().map(AsRef::as_ref))?;
        refusal::check_threads(&process)?;
        let exe = process::exe_path(&process);
        let tasks = current_task::find(pid, &exe, &space);
        let mut target = Self {
            slot: place.slot,
            process,
            attached_ns: 0,
            began_ns: kernel::monotonic_ns(),
            watched: false,
            ended: false,
            mean: place.mean,
            space,
            allocators: Vec::new(),
            tasks,
            confirmation: Confirmation::default(),
            is_ourselves: !place.upcoming.is_empty(),
            method: place.method,
            links: Vec::new(),
            open: place.probing == Probing::Always,
            over: false,
            unprobed_ns: None,
            probed: Vec::new(),
            text: Text::default(),
            known: HashSet::new(),
            refreshed: Instant::now(),
            reading,
            executable_kb: 0,
            started: Instant::now(),
            executed: false,
            stale_records: false,
            left_out: 0,
            refused: None,
        };
        target.list_allocators();
        target.publish(object).map_err(gone)?;
        let attached = target.attach_new_files(object, files, upcoming);
        target.attached_ns = kernel::monotonic_ns();
        match attached {
            Ok(()) if target.probed.is_empty() => Err(Refusal::NoAllocator {
                pid,
                why: target.why_none(),
            }),
            // The pid could have gone to another process meanwhile.
            Ok(()) if !target.process.is_running() => Err(Refusal::Gone(pid)),
            Ok(()) => {
                target.try_task_ids(object);
                Ok(())
            }
            Err(error) => Err(failed(error)),
        }
        .inspect_err(|_| {
            target.detach(object);
            target.release(object);
        })?;
        Ok(target)
    }

    /// Whether every call that hands out or takes back a block is counted, so
    /// that their difference tells how the number of blocks changed.
    pub fn counts_every_call(&self) -> bool {
        self.left_out == 0
            && self
                .allocators
                .iter()
                .all(|allocator| allocator.why_not.is_none() && allocator.uncovered.is_empty())
    }

    /// Whether probes are on.
    pub fn is_attached(&self) -> bool {
        self.links.iter().any(Links::is_attached)
    }

    pub(super) fn detach(&mut self, object: &mut Object) {
        self.open = false;
        self.over = true;
        let mut was_on = false;
        for mut links in self.links.drain(..) {
            links.detach(object);
            was_on = true;
        }
        if was_on {
            self.unprobed_ns = Some(kernel::monotonic_ns());
        }
    }

    /// Removes every trace of the target from the kernel's tables.
    pub(super) fn release(&self, object: &Object) {
        let removed = || -> Result<()> {
            // SAFETY: the maps' own types.
            unsafe {
                bpf::update(object.map("TARGETS")?, &self.slot, &Slot::default())?;
                bpf::update(object.map("EPOCHS")?, &self.slot, &0u32)?;
                bpf::update(object.map("GENERATIONS")?, &self.slot, &0u32)?;
                bpf::delete(object.map("SLOTS")?, &self.process.pid)?;
                bpf::delete(object.map("MAPPINGS")?, &self.process.pid)?;
            }
            self.purge(object)
        };
        if let Err(error) = removed() {
            tracing::debug!(pid = self.process.pid, error = %format_args!("{error:#}"), "a released target leaves records behind");
        }
    }

    /// Removes what was recorded in another epoch than the present one.
    fn purge(&self, object: &Object) -> Result<()> {
        let (pid, epoch) = (self.process.pid, self.epoch(object)?);
        let records = object.records();
        records.forget_blocks(object.map("LIVE")?, |key| {
            key.tgid == pid && key.epoch != epoch
        })?;
        records.forget_sites(object.map("SITES")?, |site| {
            site.tgid == pid && site.epoch != epoch
        })?;
        // SAFETY: the map's own types.
        unsafe {
            bpf::delete_where(object.map("FAULTS")?, |_: &u64, site: &FaultSite| {
                site.tgid == pid && site.epoch != epoch
            })?;
            bpf::delete_where(object.map("WAITS")?, |_: &u64, wait: &Wait| {
                wait.place.tgid == pid && wait.place.epoch != epoch
            })?;
            bpf::delete_where(
                object.map("WAIT_TOTALS")?,
                |place: &WaitPlace, _: &WaitTotals| place.tgid == pid && place.epoch != epoch,
            )?;
            bpf::delete_where(object.map("WAIT_STACKS")?, |_: &u64, owner: &u64| {
                owner >> 32 == u64::from(pid) && *owner as u32 != epoch
            })?;
        }
        Ok(())
    }

    pub(super) fn set_mean(&mut self, object: &Object, mean: u64) -> Result<()> {
        self.mean = mean;
        let mut slot = self.slot_value(object)?;
        slot.set_mean(mean);
        // SAFETY: the map's own types.
        unsafe { bpf::update(object.map("TARGETS")?, &self.slot, &slot) }
            .context("cannot set the sampling mean")
    }

    /// The kernel's view of the target.
    pub(super) fn slot_value(&self, object: &Object) -> Result<Slot> {
        Ok(array::<Slot>(object.aya_map("TARGETS")?)?.get(&self.slot, 0)?)
    }

    /// The process runs another program: nothing known of its memory holds.
    pub(super) fn restart(&mut self) {
        self.executed = true;
        self.is_ourselves = false;
        self.stale_records = true;
        self.started = Instant::now();
        self.space = AddressSpace::default();
        self.tasks = TaskIds::default();
        self.confirmation = Confirmation::default();
        self.allocators.clear();
        if let Ok(process) = Process::of(self.process.pid) {
            self.process = process;
        }
    }

    /// The programs it has run since it became a target, this one included.
    pub(super) fn epoch(&self, object: &Object) -> Result<u32> {
        Ok(array::<u32>(object.aya_map("EPOCHS")?)?.get(&self.slot, 0)?)
    }

    /// Looks at the mappings again, after the kernel met unknown code or the
    /// process ran another program.
    pub(super) fn refresh(&mut self, object: &mut Object, files: &mut Files, dangers: Dangers<'_>) {
        if self.over {
            return;
        }
        // The first look after an exec must not wait.
        let empty = self.space.code.is_empty();
        let starting = self.started.elapsed() < START;
        let pause = if starting {
            REFRESH_AT_START
        } else {
            self.pause(REFRESH_EVERY)
        };
        if !empty && self.refreshed.elapsed() < pause {
            return;
        }
        self.look_again(object, files, dangers);
    }

    /// To be called about once a second.
    pub(super) fn refresh_if_due(
        &mut self,
        object: &mut Object,
        files: &mut Files,
        dangers: Dangers<'_>,
    ) {
        // Not at once after an exec: looking through the tables takes longer
        // than the program takes to start.
        if std::mem::take(&mut self.stale_records)
            && let Err(error) = self.purge(object)
        {
            tracing::debug!(error = %format_args!("{error:#}"), "records of an earlier program stay behind");
        }
        if self.over {
            return;
        }
        self.try_task_ids(object);
        self.look_for_dangers(object, files, dangers);
    }

    /// Looks at the mappings of a command that has just started, before it
    /// meets code that is not known; to be called without a pause. False when
    /// there is nothing more to wait for.
    pub(super) fn watch_start(
        &mut self,
        object: &mut Object,
        files: &mut Files,
        dangers: Dangers<'_>,
    ) -> bool {
        let age = self.started.elapsed();
        // Before the exec it is our own child, that was just let go.
        let limit = if self.executed { CLOSE_WATCH } else { START };
        if self.over || age >= limit {
            return false;
        }
        if self.executed && self.refreshed.elapsed() >= age / CLOSE_SHARE {
            self.look_again(object, files, dangers);
        }
        true
    }

    fn look_again(&mut self, object: &mut Object, files: &mut Files, dangers: Dangers<'_>) {
        let began = Instant::now();
        let again = self
            .space
            .load_anew(object, files, self.process.pid, self.slot);
        self.refreshed = Instant::now();
        self.reading = began.elapsed();
        let again = again.and_then(|space| {
            match space {
                Some(space) => {
                    self.space = space;
                    self.list_allocators();
                }
                // A task id may be where its library was not yet set up.
                None if !self.tasks.tokio => return Ok(()),
                None => {}
            }
            // A program or library that came later is refused like one that
            // was there at the start.
            if let Err(refusal) = dangers.check(&self.process, &self.space, std::iter::empty()) {
                self.refuse(object, refusal);
                return Ok(());
            }
            let refuted = matches!(self.tasks.belief, Belief::Refuted(_));
            if self.tasks.recipe.kind == TaskIdRecipe::KIND_NONE && !refuted {
                let belief = std::mem::take(&mut self.tasks.belief);
                self.tasks = current_task::find(
                    self.process.pid,
                    &process::exe_path(&self.process),
                    &self.space,
                );
                self.tasks.belief = belief;
                self.publish_task_ids(object)?;
            }
            self.attach_new_files(object, files, Vec::new())
        });
        match again.map_err(|error| Refusal::of(self.process.pid, error)) {
            Ok(()) => {}
            Err(Ok(refusal)) => self.refuse(object, refusal),
            // Most often the process has just ended, which is reported apart.
            Err(Err(error)) => {
                tracing::debug!(pid = self.process.pid, error = %format_args!("{error:#}"), "cannot look at the mappings again");
            }
        }
    }

    /// Has the process show whether what is read are task ids; a stripped
    /// file's recipe is found this way.
    fn try_task_ids(&mut self, object: &Object) {
        // A command runs our own program until its exec.
        if self.over || self.is_ourselves || !self.tasks.are_open() {
            return;
        }
        let Some(verdict) = self.confirmation.tend(&self.process) else {
            return;
        };
        tracing::debug!(pid = self.process.pid, ?verdict, "trial of task ids");
        let before = self.tasks.recipe;
        self.tasks.settle(verdict);
        if self.tasks.recipe == before {
            return;
        }
        if let Err(error) = self.publish_task_ids(object) {
            tracing::debug!(error = %format_args!("{error:#}"), "the kernel is not told of task ids");
        }
    }

    /// Takes a recipe as confirmed.
    pub(super) fn read_task_ids(&mut self, object: &Object, recipe: TaskIdRecipe) -> Result<()> {
        self.tasks.settle(Verdict::Confirmed(recipe));
        self.publish_task_ids(object)
    }

    fn publish_task_ids(&self, object: &Object) -> Result<()> {
        let mut slot = self.slot_value(object)?;
        slot.task_id = self.tasks.recipe;
        // SAFETY: the map's own types.
        unsafe { bpf::update(object.map("TARGETS")?, &self.slot, &slot) }?;
        Ok(())
    }

    /// Writes the target to the kernel's table, before any probe runs.
    fn publish(&self, object: &Object) -> Result<()> {
        let mut slot = Slot {
            tgid: self.process.pid,
            task_id: self.tasks.recipe,
            ..Slot::default()
        };
        slot.set_mean(self.mean);
        // SAFETY: the maps' own types.
        unsafe {
            bpf::update(object.map("EPOCHS")?, &self.slot, &1u32)?;
            bpf::update(object.map("TARGETS")?, &self.slot, &slot)?;
            bpf::update(object.map("SLOTS")?, &self.process.pid, &self.slot)?;
        }
        Ok(())
    }

    /// The allocators in what is mapped now, whenever that was probed.
    fn list_allocators(&mut self) {
        let mut seen = HashSet::new();
        let files = self.space.code.iter().filter_map(|code| {
            let file = code.file.as_ref().ok()?;
            let module = file.module.as_ref()?;
            seen.insert(module.id).then_some((file, module))
        });
        let allocators = files.flat_map(|(file, module)| {
            file.families.iter().map(|family| Allocator {
                kind: family.kind,
                module: module.path.clone(),
                why_not: family.why_not.clone(),
                uncovered: family.uncovered.clone(),
            })
        });
        self.allocators = allocators.collect();
    }

    /// Why nothing is seen of the process though it was attached to: a later
    /// program may be refused, or have no allocator that can be followed.
    pub fn why_unseen(&self) -> Option<Refusal> {
        let followed = |allocator: &Allocator| allocator.why_not.is_none();
        if self.refused.is_none() && !self.allocators.iter().any(followed) {
            return Some(Refusal::NoAllocator {
                pid: self.process.pid,
                why: self.why_none(),
            });
        }
        self.refused.clone()
    }

    /// Why nothing was found, from all that was looked at.
    fn why_none(&self) -> String {
        let reasons: Vec<String> = self
            .allocators
            .iter()
            .filter_map(|allocator| {
                Some(format!(
                    "{} in {}: {}",
                    allocator.kind,
                    allocator.module.display(),
                    allocator.why_not.as_ref()?
                ))
            })
            .collect();
        if !reasons.is_empty() {
            return reasons.join("; ");
        }
        let unread: Vec<String> = self
            .space
            .code
            .iter()
            .filter(|code| code.mapping.is_file())
            .filter_map(|code| match &code.file {
                Ok(file) => Some(format!(
                    "{}: {}",
                    file.module.as_ref()?.path.display(),
                    file.not_read?
                )),
                Err(why) => Some(why.clone()),
            })
            .collect();
        if unread.is_empty() {
            "none of its files has the symbols of a known one (a stripped static program hides them)".to_owned()
        } else {
            unread.join("; ")
        }
    }
}
