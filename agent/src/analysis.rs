//! Verdicts: pure functions from the account of a process to what each of its
//! allocation sites is.
//!
//! [`judge`] is the whole of it; [`findings`] turns its judgements into the
//! document's model.

mod estimate;
mod growth;
mod limit;
mod process;
mod report;
mod residence;
mod shape;
mod site;
mod stacks;
pub mod survey;
mod survival;
pub mod tasks;
pub mod waits;
mod words;

use std::time::Duration;

use crate::{
    finding::{Confidence, Estimate, Evidence, Rss, Verdict},
    ledger::{Group, Ledger, StackId, TaskShare},
};

use growth::Growth;

pub use report::{Identity, Outcome, Stack, findings};
pub use residence::{FaultStack, Region, Residence};

/// Observations that a verdict needs at least.
const LEAST_OBSERVATIONS: usize = 4;

/// What decides over verdicts. The defaults are those of the product; each
/// number says what it protects from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Growth below this rate, bytes per second, is no finding: 256 B/s is
    /// 22 MB a day.
    pub least_rate: f64,
    /// Sampled blocks that must have stayed: fewer are start-up state.
    pub least_members: u32,
    /// Observations at which their number must have grown.
    pub least_growths: u32,
    /// Shortest run that supports a verdict.
    pub least_observed: Duration,
    /// How long growth must go on unslowed before it is called `strong`:
    /// longer than caches usually take to fill.
    pub growth_confirm: Duration,
    /// Growth that reaches the memory limit within this time is `strong`
    /// earlier: there is no time to wait.
    pub page_within: Duration,
    /// How far growth is extrapolated, in multiples of the observed time.
    pub believe: f64,
    /// `strong` needs a run this many times longer than the longest life of a
    /// freed block of the site.
    pub lifetimes: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            least_rate: 256.0,
            least_members: 6,
            least_growths: 3,
            least_observed: Duration::from_secs(3),
            growth_confirm: Duration::from_hours(1),
            page_within: Duration::from_hours(6),
            believe: 10.0,
            lifetimes: 3.0,
        }
    }
}

/// What is known of the process besides its ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Context {
    /// Sampling mean in bytes, the largest one used; 0 or 1: every
    /// allocation was taken.
    pub sampling_mean: u64,
    /// The memory limit that applies to the process, if any.
    pub limit: Option<MemoryLimit>,
}

/// A memory limit, of a control group for instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The limit in bytes.
    pub limit_bytes: u64,
    /// What is used of it now.
    pub used_bytes: u64,
}

/// What all sites of a process were found to be.
#[derive(Clone, Debug)]
pub struct Judgements<K> {
    /// One per group, the largest leak first, then by live bytes.
    pub sites: Vec<Judgement<K>>,
    /// The smallest leak that would have been found with 95 % probability,
    /// bytes per second, for blocks of at most 4 KiB; or why there is none.
    pub detection_limit: Result<f64, String>,
    /// Anonymous memory over the run.
    pub rss: Option<Rss>,
    /// Its growth in bytes per second, where it surely grew.
    pub rss_growth: Option<Estimate>,
    process: process::Process,
}

/// What one site was found to be.
#[derive(Clone, Debug)]
pub struct Judgement<K> {
    /// The group's name.
    pub key: K,
    /// Its stacks, those with most live bytes first.
    pub stacks: Vec<StackId>,
    /// The verdict; none where nothing happened that needs one.
    pub verdict: Option<Verdict>,
    /// How sure it is.
    pub confidence: Confidence,
    /// Memory lost per second; of a quiet verdict, its growth.
    pub leak_rate: Estimate,
    /// Bytes live at the end, of those allocated during the capture.
    pub live_bytes: Estimate,
    /// Blocks, likewise.
    pub live_blocks: Estimate,
    /// Age of the oldest of them.
    pub oldest: Option<Duration>,
    /// Who allocated them.
    pub tasks: Vec<TaskShare>,
    /// What further tasks hold.
    pub other_tasks: Option<TaskShare>,
    /// What the verdict rests on.
    pub evidence: Vec<Evidence>,
    /// What to do.
    pub advice: String,
    /// Until the memory limit is reached.
    pub time_to_limit: Option<Duration>,
}

/// Judges every group of stacks of a process. `group_of` names the group that
/// a stack belongs to.
pub fn judge<K: Ord + Clone>(
    ledger: &Ledger,
    group_of: impl Fn(StackId) -> K,
    context: &Context,
    settings: &Settings,
) -> Judgements<K> {
    let process = process::Process::of(ledger);
    let mut groups: Vec<(K, Group, Growth)> = ledger
        .groups(group_of)
        .into_iter()
        .map(|(key, group)| {
            let growth = growth::growth(&group, &process, settings);
            (key, group, growth)
        })
        .collect();
    stacks::sharpen(ledger, &mut groups, &process, settings);
    let mut sites: Vec<Judgement<K>> = groups
        .into_iter()
        .map(|(key, group, growth)| site::judge(key, group, growth, &process, context, settings))
        .collect();
    sort(&mut sites);
    Judgements {
        sites,
        detection_limit: limit::detection_limit(&process, context, settings),
        rss: process.rss,
        rss_growth: process.memory_growth(),
        process,
    }
}

/// The largest leak first, then by live bytes.
fn sort<K>(sites: &mut [Judgement<K>]) {
    sites.sort_by(|a, b| {
        let rank = |site: &Judgement<K>| {
            (site.verdict == Some(Verdict::UnboundedGrowth))
                .then_some((site.confidence, site.leak_rate.value))
        };
        rank(b)
            .partial_cmp(&rank(a))
            .unwrap_or(std::cmp::Ordering::Equal)
            .then(b.live_bytes.value.total_cmp(&a.live_bytes.value))
    });
}

#[cfg(test)]
mod tests;
