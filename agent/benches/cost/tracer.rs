//! Our own probes by one way of attaching.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use agent_ebpf::abi::{heap::TaskIdRecipe, loss::Loss};
use anyhow::{Context as _, Result, ensure};
use lingerscope::{
    capture::{
        Capture,
        links::{FilePoints, Method},
        object::Sizes,
        target,
    },
    host::{process::Process, quarantine::Quarantine},
};

/// As `inspect` has them.
const LIVE_BLOCKS: u32 = 1 << 18;

/// How long attaching and detaching took.
pub(crate) struct Times {
    pub(crate) method: Method,
    pub(crate) attach: Vec<Duration>,
    pub(crate) detach: Vec<Duration>,
}

impl Times {
    pub(crate) fn clear(&mut self) {
        self.attach.clear();
        self.detach.clear();
    }
}

/// A loaded capture that follows one process at a time.
pub(crate) struct Tracer {
    capture: Capture,
    pub(crate) times: Times,
    /// Events that could not be recorded, of all targets so far, by cause.
    pub(crate) lost: BTreeMap<&'static str, u64>,
}

impl Tracer {
    pub(crate) fn load(method: Method) -> Result<Self> {
        let list = std::env::temp_dir().join(format!(
            "lingerscope-bench-quarantine-{}",
            std::process::id()
        ));
        let sizes = Sizes {
            live_blocks: LIVE_BLOCKS,
        };
        let capture = Capture::new(sizes, &[method], Quarantine::open(&list))?;
        let times = Times {
            method,
            attach: Vec::new(),
            detach: Vec::new(),
        };
        Ok(Self {
            capture,
            times,
            lost: BTreeMap::new(),
        })
    }

    pub(crate) fn attach(&mut self, pid: u32, mean: u64) -> Result<()> {
        let process = Process::of(pid)?;
        let began = Instant::now();
        self.capture.attach(process, mean)?;
        self.times.attach.push(began.elapsed());
        Ok(())
    }

    pub(crate) fn set_mean(&mut self, pid: u32, mean: u64) -> Result<()> {
        self.capture.set_mean(pid, mean)
    }

    /// Has a task id read with every allocation. The program has no Tokio; a
    /// word of its thread-local storage costs the same.
    pub(crate) fn read_task_ids(&mut self, pid: u32) -> Result<()> {
        let recipe = TaskIdRecipe {
            kind: TaskIdRecipe::KIND_STATIC,
            block: 8,
            ..TaskIdRecipe::default()
        };
        self.capture.read_task_ids(pid, recipe)
    }

    pub(crate) fn detach(&mut self, pid: u32) {
        // Before detaching, which by perf events goes probe by probe.
        let lost = self.capture.counts(pid).lost;
        for (cause, events) in Loss::ALL
            .iter()
            .zip(lost)
            .filter(|(_, events)| *events != 0)
        {
            *self.lost.entry(cause.name()).or_default() += events;
        }
        let began = Instant::now();
        self.capture.detach(pid);
        self.times.detach.push(began.elapsed());
        self.capture.drain();
        self.capture.forget(pid);
    }

    /// Frames of the stack that allocates most in a process under exact
    /// tracing.
    pub(crate) fn frames(&mut self, pid: u32) -> Result<usize> {
        thread::sleep(Duration::from_millis(20));
        self.capture.drain();
        let reading = self.capture.read()?.remove(&pid).unwrap_or_default();
        let (hash, site) = reading
            .sites
            .iter()
            .max_by_key(|(_, site)| site.allocated)
            .context("no allocation of the measured program was seen")?;
        ensure!(
            site.allocated > 1000,
            "the measured program hardly allocates"
        );
        let stack = self.capture.stack(*hash).context("a stack was lost")?;
        Ok(stack.frames.len())
    }

    /// How many stacks allocate in a process under exact tracing, and the mean
    /// of their frames over its allocations.
    pub(crate) fn spread(&mut self, pid: u32) -> Result<(usize, f64)> {
        self.capture.drain();
        let reading = self.capture.read()?.remove(&pid).unwrap_or_default();
        let (mut stacks, mut pairs, mut frames) = (0, 0, 0);
        for (hash, site) in reading.sites.iter().filter(|(_, site)| site.allocated > 10) {
            let stack = self.capture.stack(*hash).context("a stack was lost")?;
            stacks += 1;
            pairs += site.allocated;
            frames += site.allocated * stack.frames.len() as u64;
        }
        ensure!(pairs > 1000, "the measured program hardly allocates");
        Ok((stacks, frames as f64 / pairs as f64))
    }

    /// The probed instructions of a target, by file.
    pub(crate) fn points(&self, pid: u32) -> Result<Vec<(PathBuf, FilePoints)>> {
        let files = self.probed(pid)?;
        Ok(files
            .into_iter()
            .map(|(file, _, points)| (file, points))
            .collect())
    }

    /// The allocator's own file.
    pub(crate) fn library(&self, pid: u32) -> Result<PathBuf> {
        let first = self.probed(pid)?.into_iter().next();
        let (_, library, _) = first.context("the measured program has no allocator")?;
        Ok(library)
    }

    /// Files with probes: how we open them, how they are called, the probes.
    fn probed(&self, pid: u32) -> Result<Vec<(PathBuf, PathBuf, FilePoints)>> {
        let space = self.capture.address_space(pid).context("no such target")?;
        let mut seen = HashSet::new();
        let mut files = Vec::new();
        for code in &space.code {
            let Ok(file) = &code.file else { continue };
            let Some(module) = &file.module else { continue };
            let points = target::points(file, 0);
            if !points.calls.is_empty() && seen.insert(module.id) {
                files.push((module.descriptor_path(), module.path.clone(), points));
            }
        }
        Ok(files)
    }
}
