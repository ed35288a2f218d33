//! The one model that every output prints: the JSON document, schema 1.
//!
//! Fields may be added; one that changes its meaning or goes away takes a new
//! [`SCHEMA`]. Addresses and hashes are strings, estimates carry their 95 %
//! interval, and what is unknown is null, mostly with a `why_not` beside it.
//! Fields that only later versions can fill are present and null or empty, so
//! that a reader can rely on the shape.
//!
//! Everything a target controls enters as [`Text`] and nothing else does.

mod ended;
mod escape;
mod fingerprint;
mod frame;
pub mod units;
mod verdict;
mod waits;

use std::collections::BTreeMap;

use serde::Serialize;

pub use ended::{Death, Ended, UnderProbes};
pub use escape::Text;
pub use fingerprint::{Fingerprint, fingerprint};
pub use frame::{Frame, is_user_frame, site_frame, user_frames, user_functions};
pub use verdict::{Confidence, Leak, Verdict};
pub use waits::{Class, On, Waiting, Waits};

/// Version of the document's shape.
pub const SCHEMA: u32 = 1;

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of the program that wrote the document.
    pub lingerscope: &'static str,
    /// Host name.
    pub host: Option<Text>,
    /// Kernel release, as `uname -r` prints it.
    pub kernel: Option<Text>,
    /// When the run began, RFC 3339.
    pub started: String,
    /// Length of the run in seconds.
    pub duration_s: f64,
    /// The processes that were observed.
    pub processes: Vec<Process>,
    /// Those that should have been and were not.
    pub skipped: Vec<Skipped>,
}

/// One observed process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Process {
    /// Process id as the host sees it.
    pub pid: u32,
    /// Process id inside its innermost pid namespace, where it differs.
    pub ns_pid: Option<u32>,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
    /// Real user id.
    pub uid: Option<u32>,
    /// Name of the main thread.
    pub comm: Text,
    /// Path of the executable.
    pub exe: Option<Text>,
    /// Build id of the executable, hexadecimal.
    pub build_id: Option<String>,
    /// Control group path.
    pub cgroup: Option<Text>,
    /// systemd unit.
    pub unit: Option<Text>,
    /// Container id.
    pub container_id: Option<Text>,
    /// Set for a command that the run itself started.
    pub command: Option<Command>,
    /// How it ended; null: it runs on.
    pub ended: Option<Ended>,
    /// Allocators found in the process.
    pub allocators: Vec<Allocator>,
    /// What was measured and what was lost.
    pub capture: Capture,
    /// The smallest leak that would have been found with 95 % probability, in
    /// bytes per second, for blocks of at most 4 KiB.
    pub detection_limit_bytes_per_s: Option<f64>,
    /// Why there is no detection limit.
    pub why_not: Option<Text>,
    /// Anonymous resident memory and swap over the run.
    pub rss: Option<Rss>,
    /// Leak rate of all sites over growth of the resident memory.
    pub explained_share: Option<Estimate>,
    /// The Tokio runtime, where there is one.
    pub tokio: Option<Tokio>,
    /// Which threads wait for futexes, and where; null where that was not
    /// followed.
    pub waits: Option<Waits>,
    /// Verdicts that call for action, worst first.
    pub findings: Vec<Finding>,
    /// Growth that was looked at and is no leak.
    pub not_leaks: Vec<Finding>,
    /// The largest live sites, at most 100.
    pub sites: Vec<LiveSite>,
}

/// Outcome of a command that the run started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Command {
    /// Its exit status; null while it runs or when a signal ended it.
    pub exit_status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// An allocator that lives in the process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Allocator {
    /// Family: glibc, musl, jemalloc, mimalloc, tcmalloc, operator-new …
    pub kind: Text,
    /// File that contains it.
    pub module: Text,
    /// Whether its functions were probed.
    pub attached: bool,
    /// Why they were not.
    pub why_not: Option<Text>,
}

/// What was measured in one process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Capture {
    /// How allocations were followed: `trace`.
    pub mode: &'static str,
    /// Times that probes were opened.
    pub windows: u32,
    /// Seconds that probes were open.
    pub open_s: f64,
    /// Sampling mean in bytes; 1: every allocation.
    pub sampling_mean_bytes: u64,
    /// Calls of allocating functions.
    pub allocations: u64,
    /// Those of them that were recorded.
    pub sampled: u64,
    /// Losses that are not zero, by cause.
    pub lost: BTreeMap<String, u64>,
    /// Estimated slowdown of the target: the time of traps, of elapsed time.
    pub target_slowdown_percent: Option<f64>,
    /// The same in terms of what the target itself uses of processors.
    pub target_cpu: TargetCpu,
    /// What was decided about probing, and why; the latest last.
    pub decisions: Vec<Text>,
    /// Processor time of this program, in percent of one core.
    pub agent_cpu_percent: Option<f64>,
}

/// What the target used of processors. `None`: that was not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TargetCpu {
    /// Cores, before the first probe.
    pub cores_before: Option<f64>,
    /// Cores while probes were on: in windows, or all the time.
    pub cores_during: Option<f64>,
    /// Cores after the first window, outside of windows.
    pub cores_between: Option<f64>,
    /// Estimated time of traps, in percent of the processor time that the
    /// target used while probes were on.
    pub probe_percent_of_own: Option<f64>,
    /// The same, in percent of all that it used since the first probe.
    pub probe_percent_overall: Option<f64>,
}

/// Anonymous resident memory and swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rss {
    /// At the first observation.
    pub start_bytes: u64,
    /// At the last one.
    pub end_bytes: u64,
    /// Slope between them.
    pub growth_bytes_per_s: f64,
}

/// A Tokio runtime as seen from outside.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tokio {
    /// Runtimes in the process.
    pub runtimes: Option<u32>,
    /// Tasks by state.
    pub tasks: Option<TaskCounts>,
    /// Where the task of an allocation comes from: `tls`, `stack` or `none`.
    pub task_id: &'static str,
    /// Why it is not `tls`, and why tasks are not listed.
    pub why_not: Option<Text>,
}

/// Tasks by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TaskCounts {
    /// Not finished. Tokio's own are not among them.
    pub live: u64,
    /// Those of them without a sign of activity over half of the observation.
    pub idle: u64,
    /// Finished, but still held.
    pub completed: u64,
}

/// A verdict on one allocation site.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Names the site: the same across builds, hosts and restarts.
    pub fingerprint: Fingerprint,
    /// Names this occurrence: fingerprint, process id and start time.
    pub id: String,
    /// What it is.
    pub verdict: Verdict,
    /// How sure that is.
    pub confidence: Confidence,
    /// Whether it is a leak.
    pub leak: Leak,
    /// Memory lost per second.
    pub leak_bytes_per_s: Estimate,
    /// Bytes allocated here since the start of the run and live at its end.
    pub live_bytes: Estimate,
    /// Blocks, likewise.
    pub live_blocks: Estimate,
    /// Age of the oldest live block in seconds.
    pub oldest_s: Option<f64>,
    /// Where the memory is allocated.
    pub site: Site,
    /// Tokio tasks that allocated it, largest first, and some of those that
    /// hold it, where they are known.
    pub tasks: Vec<Task>,
    /// Sites of the members of a cycle, or further sites of the same leak.
    pub members: Vec<Site>,
    /// What the verdict rests on.
    pub evidence: Vec<Evidence>,
    /// What to do.
    pub advice: String,
    /// Seconds until the memory limit is reached at this rate.
    pub time_to_limit_s: Option<f64>,
    /// The rule that silences this finding.
    pub suppressed_by: Option<Text>,
}

/// An allocation stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Site {
    /// Innermost first; an inlined function precedes the one it was inlined
    /// into.
    pub frames: Vec<Frame>,
    /// Why the stack does not reach the start of its thread.
    pub truncated: Option<Text>,
}

/// Live memory of one site, without a verdict.
#[derive(Clone, Debug, Serialize)]
pub struct LiveSite {
    /// As in [`Finding`].
    pub fingerprint: Fingerprint,
    /// As in [`Finding`].
    pub live_bytes: Estimate,
    /// As in [`Finding`].
    pub live_blocks: Estimate,
    /// As in [`Finding`].
    pub site: Site,
    /// The tasks that allocated most of it: ids, blocks and bytes only.
    pub tasks: Vec<Task>,
}

/// What one Tokio task allocated at a site, or holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Task {
    /// Task id; null: allocated outside any task, or by many that are not
    /// listed.
    pub id: Option<u64>,
    /// Name of the future.
    pub name: Option<Text>,
    /// Where it is in the source.
    pub location: Option<Text>,
    /// `allocated` or `holds`.
    pub role: Role,
    /// State of the task: `running`, `scheduled`, `idle`; `complete`: it has
    /// ended, and its cell is still held; `finished`: it has ended.
    pub state: Option<Text>,
    /// Seconds since its last sign of activity, at least; of a task that is
    /// idle.
    pub idle_s: Option<f64>,
    /// The same, at most; null where nobody knows.
    pub idle_most_s: Option<f64>,
    /// Seconds since its end, at least.
    pub ended_s: Option<f64>,
    /// The same, at most; null where nobody knows.
    pub ended_most_s: Option<f64>,
    /// Live blocks it allocated, estimated.
    pub blocks: u64,
    /// Their bytes, estimated.
    pub bytes: u64,
}

/// What a task has to do with the memory of a finding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It allocated it.
    #[default]
    Allocated,
    /// It does not let go of it.
    Holds,
}

/// One reason for a verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// Stable name of the reason.
    pub kind: &'static str,
    /// A sentence.
    pub text: String,
    /// The number in it, in base units.
    pub value: Option<f64>,
}

/// A process that could not be observed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Skipped {
    /// Its process id, where there is one.
    pub pid: Option<u32>,
    /// The reason, and the mend.
    pub why: Text,
}

/// A number with its 95 % interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// Best single number.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Estimate {
    /// A number that is known.
    pub const fn exact(value: f64) -> Self {
        Self {
            value,
            low: value,
            high: value,
        }
    }

    /// Whether the interval contains `truth`.
    pub fn covers(&self, truth: f64) -> bool {
        self.low <= truth && truth <= self.high
    }

    /// The number in another unit.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            value: self.value * factor,
            low: self.low * factor,
            high: self.high * factor,
        }
    }
}
