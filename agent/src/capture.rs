//! Follows allocations of target processes in the kernel.
//!
//! [`Capture`] owns the kernel object, the probes and what is known of the
//! targets' address spaces. It neither judges nor prints.

pub mod address_space;
pub mod allocators;
pub mod bpf;
pub mod deaths;
mod earlier_waits;
mod events;
pub mod evidence;
pub mod faults;
pub mod files;
pub mod futex;
pub mod governor;
pub mod libraries;
pub mod links;
mod mapped_words;
pub mod object;
pub mod origin;
pub mod probe_point;
pub mod probes;
mod records;
pub mod refusal;
pub mod ring;
pub mod tables;
pub mod target;
pub mod text;
pub mod trial;

use std::{
    collections::HashMap,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use agent_ebpf::abi::heap::{Block, MAX_TARGETS, Site, TargetCounts, TaskIdRecipe};
use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues, RingBuf};

use self::{
    address_space::AddressSpace,
    deaths::{Deaths, Ending},
    events::{Events, Reason},
    files::Files,
    links::Method,
    object::{Object, Sizes},
    refusal::{Dangers, Refusal},
    ring::{Event, Stack},
    target::{Place, Probing, Target},
};
use crate::host::{
    process::{self, Process},
    quarantine::Quarantine,
};

/// Distinct stacks kept in user space; the kernel's table of sites has as many.
const MAX_STACKS: usize = 65_536;
/// Records handled in one go, so that a flood cannot hold the event loop.
const MAX_RECORDS: usize = 8192;

/// Names a target by its process id.
pub type TargetId = u32;

/// What one target's tables held at one moment.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Totals by stack hash.
    pub sites: Vec<(u64, Site)>,
    /// Live blocks by address.
    pub live: Vec<(u64, Block)>,
}

/// Something that happened to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    /// It forked; the child's process id.
    Forked(u32),
    /// It runs another program; everything recorded before is void.
    Executed,
    /// It ended.
    Ended(Ending),
}

/// The kernel side of a run.
pub struct Capture {
    object: Object,
    files: Files,
    ring: RingBuf<MapData>,
    counts: PerCpuArray<MapData, TargetCounts>,
    targets: HashMap<TargetId, Target>,
    events: Events,
    faults: faults::Sampling,
    waits: futex::Following,
    stacks: HashMap<u64, Stack>,
    deaths: Deaths,
    quarantine: Quarantine,
    method: Method,
    /// Records that could not be understood or kept, by cause.
    lost: HashMap<&'static str, u64>,
}

impl Capture {
    /// Loads the kernel programs.
    ///
    /// # Errors
    /// As [`Object::load`], or when none of `methods` works on this kernel.
    pub fn new(sizes: Sizes, methods: &[Method], quarantine: Quarantine) -> Result<Self> {
        let mut capture = Self::untried(sizes, quarantine)?;
        capture.choose(methods)?;
        Ok(capture)
    }

    /// With the way of attaching that works everywhere.
    fn untried(sizes: Sizes, quarantine: Quarantine) -> Result<Self> {
        let mut object = Object::load(sizes)?;
        let ring =
            RingBuf::try_from(object.take_map("RING")?).context("map RING has another type")?;
        let counts = PerCpuArray::try_from(object.take_map("COUNTS")?)
            .context("map COUNTS has another type")?;
        Ok(Self {
            object,
            files: Files::default(),
            ring,
            counts,
            targets: HashMap::new(),
            events: Events::default(),
            faults: faults::Sampling::default(),
            waits: futex::Following::default(),
            stacks: HashMap::new(),
            deaths: Deaths::default(),
            quarantine,
            method: Method::Perf,
            lost: HashMap::new(),
        })
    }

    /// Takes the first way of attaching that works here.
    fn choose(&mut self, methods: &[Method]) -> Result<()> {
        let mut reasons = Vec::new();
        for method in methods {
            match trial::run(self, *method) {
                Ok(()) => {
                    self.method = *method;
                    // The trial's own records are of no interest.
                    self.drain();
                    self.stacks.clear();
                    return Ok(());
                }
                Err(error) => {
                    tracing::debug!(method = method.name(), error = %format_args!("{error:#}"), "this way of attaching does not work here");
                    reasons.push(format!("{}: {error:#}", method.name()));
                }
            }
        }
        bail!(
            "this kernel lets no probes be attached ({})",
            reasons.join("; ")
        )
    }

    /// A descriptor that is readable when records wait in the ring buffer.
    pub fn ring_descriptor(&self) -> Result<OwnedFd> {
        // SAFETY: the ring is open while `self` lives.
        let ring = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        ring.try_clone_to_owned().context("no more descriptors")
    }

    /// The kernel programs' log.
    pub fn ebpf(&mut self) -> &mut aya::Ebpf {
        self.object.ebpf()
    }

    /// Starts to follow a process. `mean` is the sampling mean in bytes, 1 for
    /// every allocation.
    ///
    /// # Errors
    /// Why the process cannot be followed.
    pub fn attach(&mut self, process: Process, mean: u64) -> Result<(), Refusal> {
        self.attach_command(process, mean, &[])
    }

    /// As [`Self::attach`], for a child of ours that is about to execute a
    /// command: also in the files that the command will map.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_command(
        &mut self,
        process: Process,
        mean: u64,
        upcoming: &[PathBuf],
    ) -> Result<(), Refusal> {
        let pid = process.pid;
        let other = |error| Refusal::Other(format!("{error:#}"));
        self.watch_for_end(pid).map_err(other)?;
        self.attach_by(process, mean, self.method, upcoming, Probing::Always)
            .inspect_err(|_| self.unwatch(pid))?;
        if let Some(target) = self.targets.get_mut(&pid) {
            target.watched = true;
        }
        Ok(())
    }

    /// Prepares to follow a process in windows; no probe is set yet.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn prepare(&mut self, process: Process) -> Result<(), Refusal> {
        self.attach_by(process, 1, self.method, &[], Probing::Windows)
    }

    /// Looks whether the probes of a prepared target may go on; to be called
    /// shortly before [`Self::open_window`], which a target that is refused
    /// here does not get.
    pub fn look_before_window(&mut self, id: TargetId) {
        let dangers = Dangers {
            quarantine: &self.quarantine,
        };
        if let Some(target) = self.targets.get_mut(&id) {
            target.look_before_window(&mut self.object, &mut self.files, dangers);
        }
    }

    /// Puts the probes of a prepared target on. Its counters begin at zero.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn open_window(&mut self, id: TargetId) -> Result<()> {
        let slot = self.targets.get(&id).context("no such target")?.slot;
        self.clear_counts(slot)?;
        let target = self.targets.get_mut(&id).context("no such target")?;
        target.open_window(&mut self.object)
    }

    /// Whether the probes of a target are all on, and its code is what they
    /// were set in; otherwise they come off for good, and what was recorded
    /// since the last look is not to be believed.
    pub fn is_whole(&mut self, id: TargetId) -> bool {
        let now = process::condition(id);
        let target = self.targets.get_mut(&id);
        target.is_some_and(|target| target.look_at_text(&mut self.object, &mut self.files, now))
    }

    /// Takes them off again; its blocks are forgotten, its sites stay.
    pub fn close_window(&mut self, id: TargetId) {
        if let Some(target) = self.targets.get_mut(&id) {
            target.close_window(&mut self.object);
        }
    }

    /// As [`Self::attach`], in a given way.
    fn attach_by(
        &mut self,
        process: Process,
        mean: u64,
        method: Method,
        upcoming: &[PathBuf],
        probing: Probing,
    ) -> Result<(), Refusal> {
        let pid = process.pid;
        self.quarantine.refresh();
        let used: Vec<u32> = self.targets.values().map(|target| target.slot).collect();
        let Some(slot) = (0..MAX_TARGETS).find(|slot| !used.contains(slot)) else {
            let sentence = format!("{MAX_TARGETS} processes are being followed already");
            return Err(Refusal::Other(sentence));
        };
        self.clear_counts(slot)
            .map_err(|error| Refusal::Other(format!("{error:#}")))?;
        let place = Place {
            slot,
            mean,
            method,
            upcoming,
            probing,
        };
        let dangers = Dangers {
            quarantine: &self.quarantine,
        };
        // Before the kernel knows it as a target: nothing of it goes unseen.
        let reason = Reason::Target(pid);
        self.events
            .need(&mut self.object, reason)
            .map_err(|error| Refusal::Other(format!("{error:#}")))?;
        let target = Target::attach(&mut self.object, &mut self.files, dangers, process, place)
            .inspect_err(|_| self.events.release(&mut self.object, reason))?;
        self.targets.insert(pid, target);
        Ok(())
    }

    /// Attaches to a target anew by perf events. Its children inherit their
    /// breakpoints too, but take them off at the first hit, where those of
    /// links stay and cost every call until the links are gone. What was
    /// recorded so far is dropped, because frees go unseen in between.
    ///
    /// # Errors
    /// As [`Self::attach`]; the target is then followed no more.
    pub fn spare_children(&mut self, id: TargetId) -> Result<(), Refusal> {
        let Some(target) = self.targets.get(&id) else {
            return Ok(());
        };
        let (process, mean) = (target.process.clone(), target.mean);
        self.forget(id);
        self.attach_by(process, mean, Method::Perf, &[], Probing::Always)?;
        self.watch_for_end(id)
            .map_err(|error| Refusal::Other(format!("{error:#}")))
    }

    /// Takes a target's probes off. What it recorded can be read until
    /// [`Self::forget`].
    pub fn detach(&mut self, id: TargetId) {
        self.end_faults(id);
        self.pause_waits(id);
        if let Some(target) = self.targets.get_mut(&id) {
            target.detach(&mut self.object);
        }
    }

    /// Frees a target's place.
    pub fn forget(&mut self, id: TargetId) {
        self.detach(id);
        self.waits.targets.remove(&id);
        self.stacks.retain(|_, stack| stack.tgid != id);
        if let Some(target) = self.targets.remove(&id) {
            self.part_from(&target);
            target.release(&self.object);
        }
        self.events.release(&mut self.object, Reason::Target(id));
    }

    /// A target.
    pub fn target(&self, id: TargetId) -> Option<&Target> {
        self.targets.get(&id)
    }

    /// Builds that are not probed because one died while it was.
    pub fn quarantined(&self) -> usize {
        self.quarantine.entries().count()
    }

    /// How long builds stay in quarantine that come into it from now on.
    pub fn set_quarantine(&mut self, period: Duration) {
        self.quarantine.set_period(period);
    }

    /// How probes are attached.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Changes a target's sampling mean.
    pub fn set_mean(&mut self, id: TargetId, mean: u64) -> Result<()> {
        let target = self.targets.get_mut(&id).context("no such target")?;
        target.set_mean(&self.object, mean)
    }

    /// Has task ids read by this recipe, as if a trial had confirmed it: to
    /// measure what that costs.
    ///
    /// # Errors
    /// When it is no target or the kernel refuses.
    pub fn read_task_ids(&mut self, id: TargetId, recipe: TaskIdRecipe) -> Result<()> {
        let target = self.targets.get_mut(&id).context("no such target")?;
        target.read_task_ids(&self.object, recipe)
    }

    /// A stack that was announced.
    pub fn stack(&self, hash: u64) -> Option<&Stack> {
        self.stacks.get(&hash)
    }

    /// Losses of user space, by cause.
    pub fn lost(&self) -> &HashMap<&'static str, u64> {
        &self.lost
    }

    /// Handles waiting records.
    pub fn drain(&mut self) -> Vec<(TargetId, Incident)> {
        let mut incidents = Vec::new();
        let mut stale: Vec<TargetId> = Vec::new();
        for _ in 0..MAX_RECORDS {
            let Some(record) = self.ring.next() else {
                break;
            };
            let Some((tgid, event)) = ring::decode(&record) else {
                *self.lost.entry("record_unreadable").or_default() += 1;
                continue;
            };
            match event {
                // Some come when their target is forgotten already.
                Event::Stack(_) if !self.targets.contains_key(&tgid) => {}
                Event::Stack(stack) => {
                    if self.stacks.len() < MAX_STACKS {
                        self.stacks.insert(stack.hash, stack);
                    } else {
                        *self.lost.entry("stacks_full").or_default() += 1;
                    }
                }
                Event::Fork(child) => incidents.push((tgid, Incident::Forked(child))),
                Event::Exec(epoch) => {
                    self.stacks
                        .retain(|_, stack| stack.tgid != tgid || stack.epoch >= epoch);
                    if let Some(target) = self.targets.get_mut(&tgid) {
                        target.restart();
                    }
                    incidents.push((tgid, Incident::Executed));
                    stale.push(tgid);
                }
                Event::Exit(ending) => incidents.push((tgid, Incident::Ended(ending))),
                Event::UnknownMapping(_) => stale.push(tgid),
            }
        }
        for (id, incident) in &mut incidents {
            if let Incident::Ended(ending) = incident {
                self.ended(*id, ending);
            }
        }
        stale.sort_unstable();
        stale.dedup();
        let dangers = Dangers {
            quarantine: &self.quarantine,
        };
        for id in stale {
            if let Some(target) = self.targets.get_mut(&id) {
                target.refresh(&mut self.object, &mut self.files, dangers);
            }
        }
        incidents
    }

    /// Looks at the mappings of targets whose address space may have changed,
    /// and for what has made probes dangerous meanwhile; to be called about
    /// once a second.
    pub fn tick(&mut self) {
        self.quarantine.refresh();
        self.tend_deaths();
        let dangers = Dangers {
            quarantine: &self.quarantine,
        };
        for target in self.targets.values_mut() {
            target.refresh_if_due(&mut self.object, &mut self.files, dangers);
        }
        self.look_at_earlier_waits();
        // One that runs another program unwinds by its old mappings until the
        // new ones are known.
        let settled = |target: &Target| !target.space.code.is_empty();
        if self.targets.values().all(settled) {
            self.files.tidy(&self.object);
        }
    }

    /// Reads the tables of one target.
    ///
    /// # Errors
    /// When it is no target or the kernel refuses.
    pub fn read_one(&self, id: TargetId) -> Result<Reading> {
        self.read_of([id])?
            .remove(&id)
            .filter(|_| self.targets.contains_key(&id))
            .context("no such target")
    }

    /// Looks for what a command maps at its start; to be called without a
    /// pause, and [`Self::drain`] in between, until it returns false. What the
    /// command allocates before its libraries are known has a cut stack.
    pub fn watch_start(&mut self, id: TargetId) -> bool {
        let dangers = Dangers {
            quarantine: &self.quarantine,
        };
        self.targets
            .get_mut(&id)
            .is_some_and(|target| target.watch_start(&mut self.object, &mut self.files, dangers))
    }

    /// Reads the tables of all targets in one pass.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&self) -> Result<HashMap<TargetId, Reading>> {
        self.read_of(self.targets.keys().copied())
    }

    fn read_of(
        &self,
        targets: impl IntoIterator<Item = TargetId>,
    ) -> Result<HashMap<TargetId, Reading>> {
        let epochs: HashMap<TargetId, u32> =
            targets.into_iter().map(|id| (id, self.epoch(id))).collect();
        let mut readings: HashMap<TargetId, Reading> =
            epochs.keys().map(|id| (*id, Reading::default())).collect();
        let current = |tgid: u32, epoch: u32| epochs.get(&tgid) == Some(&epoch);
        let records = self.object.records();
        // Sites first: a block that is live now was counted there before.
        records.sites(self.object.map("SITES")?, |hash, site| {
            if current(site.tgid, site.epoch)
                && let Some(reading) = readings.get_mut(&site.tgid)
            {
                reading.sites.push((hash, site));
            }
        })?;
        records.blocks(self.object.map("LIVE")?, |key, block| {
            if current(key.tgid, key.epoch)
                && let Some(reading) = readings.get_mut(&key.tgid)
            {
                reading.live.push((key.address, block));
            }
        })?;
        Ok(readings)
    }

    /// A target's counters by processor; empty when it is no target.
    pub fn counts_by_processor(&self, id: TargetId) -> Vec<TargetCounts> {
        self.targets
            .get(&id)
            .and_then(|target| self.counts.get(&target.slot, 0).ok())
            .map(|values| values.to_vec())
            .unwrap_or_default()
    }

    /// A target's counters, added up over the processors.
    pub fn counts(&self, id: TargetId) -> TargetCounts {
        let mut sum = TargetCounts::default();
        for counts in self.counts_by_processor(id) {
            sum.add(&counts);
        }
        sum
    }

    /// A slot keeps the counters of its last owner.
    fn clear_counts(&mut self, slot: u32) -> Result<()> {
        let cpus = self.counts.get(&slot, 0)?.len();
        let zeros = PerCpuValues::try_from(vec![TargetCounts::default(); cpus])?;
        self.counts
            .set(slot, zeros, 0)
            .context("cannot clear a target's counters")
    }

    /// The mappings of a target.
    pub fn address_space(&self, id: TargetId) -> Option<&AddressSpace> {
        self.targets.get(&id).map(|target| &target.space)
    }

    fn epoch(&self, id: TargetId) -> u32 {
        let target = self.targets.get(&id);
        target
            .and_then(|target| target.epoch(&self.object).ok())
            .unwrap_or(0)
    }
}

/// An array map of the object as aya's typed view.
fn array<T: aya::Pod>(map: &Map) -> Result<aya::maps::Array<&MapData, T>> {
    aya::maps::Array::try_from(map).context("a map has another type")
}

/// Counters of the object that are kept per CPU, as aya's typed view.
fn array_of_counts<T: aya::Pod>(map: &Map) -> Result<PerCpuArray<&MapData, T>> {
    PerCpuArray::try_from(map).context("a map has another type")
}

#[cfg(test)]
mod tests;
