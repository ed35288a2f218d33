//! One process under capture: what is probed in it, and why something is not.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_ebpf::abi::heap::{
    Block, BlockKey, Cookie, FunctionKind, Site, Target as Slot, TaskIdRecipe,
};
use anyhow::{Context as _, Result};
use thiserror::Error;

use super::{
    address_space::AddressSpace,
    array, bpf,
    bpf::Point,
    files::{CodeFile, Files},
    links::{FilePoints, Links, Method},
    object::Object,
};
use crate::{
    host::{
        kernel,
        process::{self, Process},
        quarantine::Quarantine,
    },
    tokio_rt::current_task::{self, TaskIds},
};

/// Mappings are read again at most this often: the kernel makes a list of all
/// of them, under the target's lock.
const REFRESH_EVERY: Duration = Duration::from_millis(500);
/// A program that has just started maps its libraries one after the other.
const REFRESH_AT_START: Duration = Duration::from_micros(200);
/// How long that is expected to last.
const START: Duration = Duration::from_secs(1);
/// New files appear without a sign when nothing they do is sampled.
const REFRESH_ANYWAY: Duration = Duration::from_secs(10);
/// Perf events are taken off one by one, a grace period each.
const MAX_PERF_PROBES: usize = 16;

/// Why a process cannot be followed, with the mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such process, or it has ended.
    #[error("no process {0} is running: look for it with `pgrep`")]
    Gone(u32),
    /// A kernel thread.
    #[error("process {0} is a kernel thread, which has no heap: name a program's process")]
    KernelThread(u32),
    /// Ourselves.
    #[error("process {0} is lingerscope itself, which it never traces: name another process")]
    Itself(u32),
    /// A Go program.
    #[error(
        "process {0} is a Go program: Go moves its stacks, so return probes could crash it, and its heap is its garbage collector's; use Go's own heap profile (net/http/pprof)"
    )]
    Go(u32),
    /// A user shadow stack under a kernel that would kill the process.
    #[error(
        "process {0} runs with a shadow stack, and return probes of this kernel would kill it: use kernel 6.11 or later"
    )]
    ShadowStack(u32),
    /// A seccomp filter under a kernel that would kill the process.
    #[error(
        "process {0} runs under a seccomp filter, and this kernel kills such a process when a return is probed (tried on a process of our own): update the kernel"
    )]
    Seccomp(u32),
    /// A build that died while it was probed.
    #[error(
        "process {pid} is a build that died by signal {signal} while it was probed ({when}): look at it, and delete its entry in {list} to probe it again"
    )]
    Quarantined {
        /// The process.
        pid: u32,
        /// What it died of.
        signal: i32,
        /// When.
        when: String,
        /// File of the list.
        list: String,
    },
    /// Nothing to probe.
    #[error("no allocator to follow in process {pid}: {why}")]
    NoAllocator {
        /// The process.
        pid: u32,
        /// What was looked at.
        why: String,
    },
    /// Anything else, a whole sentence.
    #[error("{0}")]
    Other(String),
}

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
}

/// A process under capture.
pub struct Target {
    /// Its place in the kernel's table.
    pub slot: u32,
    /// Who it is.
    pub process: Process,
    /// CLOCK_MONOTONIC when its probes were complete.
    pub attached_ns: u64,
    /// CLOCK_MONOTONIC when its probes came off; `None`: they are on.
    pub detached_ns: Option<u64>,
    /// Sampling mean in bytes.
    pub mean: u64,
    /// Its executable mappings.
    pub space: AddressSpace,
    /// Allocators found in it.
    pub allocators: Vec<Allocator>,
    /// How task ids are read.
    pub tasks: TaskIds,
    method: Method,
    links: Vec<Links>,
    /// Inode and build id.
    probed: HashSet<(u64, Option<String>)>,
    refreshed: Instant,
    /// When it began to run its present program, as far as we have seen.
    started: Instant,
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
        quarantine: &Quarantine,
        process: Process,
        place: Place<'_>,
    ) -> Result<Self, Refusal> {
        let pid = process.pid;
        check(&process)?;
        let who = process.clone();
        let gone = |error: anyhow::Error| {
            if who.is_running() {
                Refusal::Other(format!("cannot follow process {pid}: {error:#}"))
            } else {
                Refusal::Gone(pid)
            }
        };
        let space = AddressSpace::load(object, files, pid).map_err(gone)?;
        let upcoming: Vec<Arc<CodeFile>> = place
            .upcoming
            .iter()
            .filter_map(|path| files.at_path(object, path).ok())
            .collect();
        if space.is_go() || upcoming.iter().any(|file| file.is_go) {
            return Err(Refusal::Go(pid));
        }
        let exe = process::exe_path(&process);
        if let Some(entry) = space
            .build_id(&exe)
            .and_then(|build_id| quarantine.find(build_id))
        {
            return Err(Refusal::Quarantined {
                pid,
                signal: entry.signal,
                when: entry.when.clone(),
                list: quarantine.file().display().to_string(),
            });
        }
        let tasks = current_task::find(pid, &exe, &space);
        let mut target = Self {
            slot: place.slot,
            process,
            attached_ns: 0,
            detached_ns: None,
            mean: place.mean,
            space,
            allocators: Vec::new(),
            tasks,
            method: place.method,
            links: Vec::new(),
            probed: HashSet::new(),
            refreshed: Instant::now(),
            started: Instant::now(),
            stale_records: false,
            left_out: 0,
            refused: None,
        };
        target.publish(object).map_err(gone)?;
        let attached = target.attach_new_files(object, upcoming);
        target.attached_ns = kernel::monotonic_ns();
        match attached {
            Ok(()) if target.links.is_empty() => Err(Refusal::NoAllocator {
                pid,
                why: target.why_none(),
            }),
            // The pid could have gone to another process meanwhile.
            Ok(()) if !target.process.is_running() => Err(Refusal::Gone(pid)),
            Ok(()) => Ok(()),
            Err(error) => Err(gone(error)),
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
        for links in &mut self.links {
            links.detach(object);
        }
        if self.links.drain(..).next().is_some() {
            self.detached_ns = Some(kernel::monotonic_ns());
        }
    }

    /// Removes every trace of the target from the kernel's tables.
    pub(super) fn release(&self, object: &Object) {
        let removed = || -> Result<()> {
            // SAFETY: the maps' own types.
            unsafe {
                bpf::update(object.map("TARGETS")?, &self.slot, &Slot::default())?;
                bpf::update(object.map("EPOCHS")?, &self.slot, &0u32)?;
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
        // SAFETY: the maps' own types.
        unsafe {
            bpf::delete_where(object.map("LIVE")?, |key: &BlockKey, _: &Block| {
                key.tgid == pid && key.epoch != epoch
            })?;
            bpf::delete_where(object.map("SITES")?, |_: &u64, site: &Site| {
                site.tgid == pid && site.epoch != epoch
            })?;
        }
        Ok(())
    }

    pub(super) fn set_mean(&mut self, object: &Object, mean: u64) -> Result<()> {
        self.mean = mean;
        let mut slot = self.slot_value(object)?;
        slot.mean = mean;
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
        self.stale_records = true;
        self.started = Instant::now();
        self.space = AddressSpace::default();
        self.tasks = TaskIds::default();
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
    pub(super) fn refresh(&mut self, object: &mut Object, files: &mut Files) {
        if self.detached_ns.is_some() {
            return;
        }
        // The first look after an exec must not wait.
        let empty = self.space.code.is_empty();
        let starting = self.started.elapsed() < START;
        let pause = if starting {
            REFRESH_AT_START
        } else {
            REFRESH_EVERY
        };
        if !empty && self.refreshed.elapsed() < pause {
            return;
        }
        self.look_again(object, files);
    }

    pub(super) fn refresh_if_due(&mut self, object: &mut Object, files: &mut Files) {
        // Not at once after an exec: looking through the tables takes longer
        // than the program takes to start.
        if std::mem::take(&mut self.stale_records)
            && let Err(error) = self.purge(object)
        {
            tracing::debug!(error = %format_args!("{error:#}"), "records of an earlier program stay behind");
        }
        if self.detached_ns.is_none() && self.refreshed.elapsed() >= REFRESH_ANYWAY {
            self.look_again(object, files);
        }
    }

    fn look_again(&mut self, object: &mut Object, files: &mut Files) {
        self.refreshed = Instant::now();
        let again = AddressSpace::load(object, files, self.process.pid).and_then(|space| {
            self.space = space;
            // A program or library that came later is refused like one that
            // was there at the start.
            if self.space.is_go() {
                self.refused = Some(Refusal::Go(self.process.pid));
                self.detach(object);
                return Ok(());
            }
            if self.tasks.recipe.kind == TaskIdRecipe::KIND_NONE {
                self.tasks = current_task::find(
                    self.process.pid,
                    &process::exe_path(&self.process),
                    &self.space,
                );
                let mut slot = self.slot_value(object)?;
                slot.task_id = self.tasks.recipe;
                // SAFETY: the map's own types.
                unsafe { bpf::update(object.map("TARGETS")?, &self.slot, &slot) }?;
            }
            self.attach_new_files(object, Vec::new())
        });
        if let Err(error) = again {
            // Most often the process has just ended, which is reported apart.
            tracing::debug!(pid = self.process.pid, error = %format_args!("{error:#}"), "cannot look at the mappings again");
        }
    }

    /// Writes the target to the kernel's table, before any probe runs.
    fn publish(&self, object: &Object) -> Result<()> {
        let slot = Slot {
            tgid: self.process.pid,
            reserved: 0,
            mean: self.mean,
            task_id: self.tasks.recipe,
        };
        // SAFETY: the maps' own types.
        unsafe {
            bpf::update(object.map("EPOCHS")?, &self.slot, &1u32)?;
            bpf::update(object.map("TARGETS")?, &self.slot, &slot)?;
            bpf::update(object.map("SLOTS")?, &self.process.pid, &self.slot)?;
        }
        Ok(())
    }

    /// Probes the files that appeared since the last time.
    fn attach_new_files(
        &mut self,
        object: &mut Object,
        upcoming: Vec<Arc<CodeFile>>,
    ) -> Result<()> {
        let mapped = self
            .space
            .code
            .iter()
            .filter_map(|code| code.file.as_ref().ok().cloned());
        let mut fresh: Vec<Arc<CodeFile>> = mapped.chain(upcoming).collect();
        // By build id rather than device, which file systems report in two
        // ways: a file probed twice would be counted twice.
        fresh.retain(|file| {
            let Some(module) = &file.module else {
                return false;
            };
            self.probed
                .insert((module.id.inode, module.build_id.clone()))
        });
        let mut places: Vec<(PathBuf, FilePoints)> = Vec::new();
        for file in &fresh {
            let Some(module) = &file.module else { continue };
            let mut points = FilePoints::default();
            for family in &file.families {
                for function in family.functions.iter().filter(|_| family.why_not.is_none()) {
                    let cookie = Cookie::new(self.slot, function.kind, function.may_nest).0;
                    let point = Point {
                        offset: function.offset,
                        cookie,
                    };
                    match function.kind {
                        FunctionKind::Free => points.freeing.push(point),
                        _ => points.allocating.push(point),
                    }
                }
                self.allocators.push(Allocator {
                    kind: family.kind,
                    module: module.path.clone(),
                    why_not: family.why_not.clone(),
                    uncovered: family.uncovered.clone(),
                });
            }
            if !points.allocating.is_empty() {
                places.push((module.descriptor_path(), points));
            }
        }
        if places.is_empty() {
            return Ok(());
        }
        if self.method == Method::Perf {
            self.left_out += limit_perf(&mut places);
        }
        let mut links = Links::default();
        let attached = links.attach(object, self.method, self.process.pid, &places);
        self.links.push(links);
        attached
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

/// Keeps the calls that matter most where each probe costs a grace period;
/// the number of functions left out.
fn limit_perf(places: &mut [(PathBuf, FilePoints)]) -> usize {
    let mut room = MAX_PERF_PROBES;
    let mut left_out = 0;
    let kind = |point: &Point| Cookie(point.cookie).kind();
    for (_, points) in places {
        // The kinds are numbered by how common their calls are.
        points.freeing.sort_by_key(kind);
        points.allocating.sort_by_key(kind);
        let frees = points.freeing.len().min(room);
        room -= frees;
        // Entry and return are a probe each.
        let allocating = points.allocating.len().min(room / 2);
        room -= allocating * 2;
        left_out += points.freeing.len() - frees + points.allocating.len() - allocating;
        points.freeing.truncate(frees);
        points.allocating.truncate(allocating);
    }
    left_out
}

/// A kernel that kills processes under seccomp at a probed return spares only
/// those without a filter.
pub(super) fn check_seccomp(process: &Process, survives: bool) -> Result<(), Refusal> {
    if process.seccomp != 0 && !survives {
        return Err(Refusal::Seccomp(process.pid));
    }
    Ok(())
}

/// Who must not be probed at all.
fn check(process: &Process) -> Result<(), Refusal> {
    let pid = process.pid;
    if pid == std::process::id() {
        return Err(Refusal::Itself(pid));
    }
    if process.kernel_thread {
        return Err(Refusal::KernelThread(pid));
    }
    if process.zombie {
        return Err(Refusal::Gone(pid));
    }
    if process.shadow_stack && shadow_stack_is_deadly(&kernel::release()) {
        return Err(Refusal::ShadowStack(pid));
    }
    Ok(())
}

/// Return probes learnt to keep a shadow stack in step in 6.11; before, the
/// hijacked return address raises a control protection fault.
fn shadow_stack_is_deadly(release: &str) -> bool {
    kernel::version(release).is_none_or(|version| version < (6, 11))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process::of(std::process::id()).unwrap()
    }

    #[test]
    fn refuses_what_must_not_be_probed() {
        let me = process();
        assert_eq!(check(&me), Err(Refusal::Itself(me.pid)));
        let other = Process { pid: 1, ..me };
        assert_eq!(
            check(&Process {
                kernel_thread: true,
                ..other.clone()
            }),
            Err(Refusal::KernelThread(1))
        );
        assert_eq!(
            check(&Process {
                zombie: true,
                ..other.clone()
            }),
            Err(Refusal::Gone(1))
        );
        assert_eq!(check(&other), Ok(()));
    }

    #[test]
    fn seccomp_counts_where_the_trial_died() {
        let filtered = Process {
            seccomp: 2,
            ..process()
        };
        assert_eq!(check_seccomp(&filtered, true), Ok(()));
        assert_eq!(
            check_seccomp(&filtered, false),
            Err(Refusal::Seccomp(filtered.pid))
        );
        assert_eq!(
            check_seccomp(
                &Process {
                    seccomp: 0,
                    ..filtered
                },
                false
            ),
            Ok(())
        );
    }

    #[test]
    fn shadow_stacks_need_6_11() {
        assert!(shadow_stack_is_deadly("6.10.9"));
        assert!(!shadow_stack_is_deadly("6.11.0-rc1"));
        assert!(shadow_stack_is_deadly("odd"));
    }
}
