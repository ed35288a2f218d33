//! Numbers for Prometheus and what understands its formats.
//!
//! A [`Snapshot`] is formatted as OpenMetrics 1.0 for whoever asks
//! [`serve`], and in the older text format (version 0.0.4) for the file that
//! [`write()`] replaces: node_exporter's textfile collector reads no other and
//! refuses a file with OpenMetrics' type `info`.

mod format;
mod listener;
mod textfile;

use std::collections::BTreeMap;

use crate::finding::{Confidence, Fingerprint, Text, Verdict};

pub use format::{Format, format};
pub use listener::{CONTENT_TYPE, serve};
pub use textfile::write;

/// Findings with a series of their own; the others are in the counts.
pub const MAX_LEAKS: usize = 100;
/// Causes of losses that are told; further ones are summed up as `other`.
pub const MAX_CAUSES: usize = 64;

/// What there is to tell at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Findings that are open now, by verdict and confidence.
    pub findings: BTreeMap<(Verdict, Confidence), u64>,
    /// How fast open findings leak.
    pub leaks: Vec<LeakRate>,
    /// What was not recorded since the start, by cause.
    pub lost: BTreeMap<String, u64>,
    /// The largest slowdown of a followed process, as a share: 0.01 is 1 %.
    /// `None`: nothing is followed, or it is unknown.
    pub target_slowdown_ratio: Option<f64>,
    /// The largest share of its own processor time that a followed process has
    /// spent in probes since the first of them. `None` as above.
    pub target_probe_cpu_ratio: Option<f64>,
    /// Processor time of lingerscope since its start, in seconds.
    pub agent_cpu_seconds: f64,
    /// Processes whose memory grows suspiciously now.
    pub suspects: u64,
    /// Builds that are not probed because one died while it was.
    pub quarantined: u64,
}

/// One open finding.
#[derive(Clone, Debug, PartialEq)]
pub struct LeakRate {
    /// Names the site.
    pub fingerprint: Fingerprint,
    /// Unit of a process that has it.
    pub unit: Option<Text>,
    /// What it is.
    pub verdict: Verdict,
    /// Memory lost per second, in bytes.
    pub bytes_per_second: f64,
}
