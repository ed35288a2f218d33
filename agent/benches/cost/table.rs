//! The printed table.

use std::{collections::BTreeMap, fmt, time::Duration};

use lingerscope::host::kernel;

use crate::{PASSES, processors::Processors, tracer::Times};

/// Sampled over three empty traps, at most.
const SAMPLED_BAR: f64 = 1.1;
/// Exact over three empty traps, at most.
const EXACT_BAR: f64 = 1.6;
/// Nanoseconds of one unwound frame, at most.
const FRAME_BAR: f64 = 80.0;
/// The bpftrace script over ours, at least.
const SCRIPT_BAR: f64 = 8.0;

/// The least of what was measured; nothing yet: not a number.
#[derive(Clone, Copy)]
pub(crate) struct Least(f64);

impl Default for Least {
    fn default() -> Self {
        Self(f64::NAN)
    }
}

impl Least {
    pub(crate) fn lower(&mut self, value: f64) {
        self.0 = self.0.min(value);
    }
}

/// Exact tracing of one stack depth.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rung {
    pub(crate) pair: Least,
    pub(crate) frames: usize,
}

/// Everything that was measured. Costs are nanoseconds of one malloc/free pair.
#[derive(Default)]
pub(crate) struct Table {
    kernel: String,
    processors: String,
    pub(crate) frames: usize,
    pub(crate) untraced: Least,
    pub(crate) three_traps: Least,
    pub(crate) sampled: Least,
    pub(crate) exact: Least,
    /// The same with the current task's id.
    pub(crate) with_task_id: Least,
    /// The same as `exact` by perf events.
    pub(crate) perf_exact: Least,
    pub(crate) bpftrace: Least,
    /// On the program with a call tree: its stacks, their mean frames, its
    /// floor of three traps, every allocation.
    pub(crate) varied_stacks: usize,
    pub(crate) varied_frames: f64,
    pub(crate) varied_floor: Least,
    pub(crate) varied: Least,
    /// The shortest stack, then the longer ones.
    pub(crate) ladder: [Rung; 5],
    pub(crate) times: Vec<Times>,
    pub(crate) rss_loaded: u64,
    pub(crate) rss_target: u64,
    /// Events by cause.
    pub(crate) lost: BTreeMap<&'static str, u64>,
}

impl Table {
    pub(crate) fn new(processors: &Processors) -> Self {
        Self {
            kernel: kernel::release(),
            processors: format!(
                "target on processor {}, bench on {}",
                processors.theirs, processors.ours
            ),
            ..Self::default()
        }
    }
}

/// One line: a cost, and where it stands to its floor.
fn cost(f: &mut fmt::Formatter<'_>, name: &str, cost: Least) -> fmt::Result {
    writeln!(f, "{name:<44}{:>10.1}", cost.0)
}

fn against(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    cost: Least,
    floor: Least,
    bar: f64,
) -> fmt::Result {
    let ratio = cost.0 / floor.0;
    writeln!(
        f,
        "{name:<44}{:>10.1}{ratio:>10.2} × floor, bar ≤ {bar:<4} {}",
        cost.0,
        verdict(ratio <= bar)
    )
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

fn median_ms(times: &[Duration]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted
        .get(sorted.len() / 2)
        .map_or(f64::NAN, |median| median.as_secs_f64() * 1e3)
}

impl fmt::Display for Table {
    #[expect(clippy::too_many_lines, reason = "a table, row by row")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nLinux {}, {}; least of {PASSES} interleaved passes",
            self.kernel, self.processors
        )?;
        writeln!(
            f,
            "\none malloc/free pair, stacks of {} frames       ns",
            self.frames
        )?;
        cost(f, "untraced", self.untraced)?;
        cost(
            f,
            "floor: three empty traps (call, result, free)",
            self.three_traps,
        )?;
        let floor = self.three_traps;
        against(f, "sampled at 512 KiB", self.sampled, floor, SAMPLED_BAR)?;
        against(f, "every allocation", self.exact, floor, EXACT_BAR)?;
        writeln!(
            f,
            "{:<44}{:>10.1}{:>10.3} × every allocation",
            "every allocation with its task id",
            self.with_task_id.0,
            self.with_task_id.0 / self.exact.0
        )?;
        against(
            f,
            "every allocation, perf",
            self.perf_exact,
            floor,
            EXACT_BAR,
        )?;
        if self.bpftrace.0.is_nan() {
            writeln!(
                f,
                "bpftrace script: not measured, bpftrace is not installed (apt-get install bpftrace)"
            )?;
        } else {
            let ratio = self.bpftrace.0 / self.sampled.0;
            writeln!(
                f,
                "{:<44}{:>10.1}{ratio:>10.2} × sampled, bar ≥ {SCRIPT_BAR} {}; {:.2} × every allocation",
                "bpftrace script like memleak",
                self.bpftrace.0,
                verdict(ratio >= SCRIPT_BAR),
                self.bpftrace.0 / self.exact.0,
            )?;
        }
        writeln!(
            f,
            "\none pair in a call tree, {} stacks of {:.0} frames on average",
            self.varied_stacks, self.varied_frames
        )?;
        cost(f, "floor: three empty traps", self.varied_floor)?;
        against(
            f,
            "every allocation",
            self.varied,
            self.varied_floor,
            EXACT_BAR,
        )?;

        writeln!(
            f,
            "\nunwinding, every allocation                 ns/pair   ns/frame"
        )?;
        let [shortest, longer @ ..] = &self.ladder;
        writeln!(
            f,
            "{:<44}{:>7.1}",
            format!("stacks of {} frames", shortest.frames),
            shortest.pair.0
        )?;
        for rung in longer {
            let further = rung.frames.saturating_sub(shortest.frames);
            let each = (rung.pair.0 - shortest.pair.0) / further as f64;
            let name = format!("{further} frames more");
            writeln!(
                f,
                "{name:<44}{:>7.1}{each:>11.1}   bar ≤ {FRAME_BAR} {}",
                rung.pair.0,
                verdict(each <= FRAME_BAR)
            )?;
        }

        writeln!(
            f,
            "\none process, all its allocator functions    attach     detach   (median, ms)"
        )?;
        for times in &self.times {
            writeln!(
                f,
                "{:<44}{:>6.0}{:>11.0}",
                times.method.name(),
                median_ms(&times.attach),
                median_ms(&times.detach)
            )?;
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "\nresident memory: {:.1} MiB after loading, {:.1} MiB with the first target",
            mib(self.rss_loaded),
            mib(self.rss_target)
        )?;
        write!(f, "events lost:")?;
        for (cause, events) in &self.lost {
            write!(f, " {cause} {events}")?;
        }
        writeln!(f, "{}", if self.lost.is_empty() { " none" } else { "" })
    }
}
