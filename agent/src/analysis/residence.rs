//! Growth that no allocation site explains: by which stacks memory became
//! resident, and what kind of memory it is.
//!
//! Sampled page faults tell the stacks and the addresses. Faults are no
//! growth, since memory that is given back and touched again faults again, so
//! only their shares are used, of the growth that the process shows.

use std::collections::BTreeMap;

use super::{Settings, process::Process, report::Identity, report::Stack};
use crate::{
    finding::{
        Confidence, Estimate, Evidence, Finding, Frame, Site, Verdict, fingerprint,
        units::{bytes, count, rate},
        user_functions,
    },
    ledger::StackId,
};

/// Less growth than this over a run is nobody's business: allocators, thread
/// stacks and runtimes take memory in pieces of this size.
const LEAST_GROWTH: f64 = 16.0 * 1024.0 * 1024.0;
/// Shorter runs see the allocator fill what it has just taken.
const LEAST_SECONDS: f64 = 10.0;
/// Allocation sites that explain more of the growth than this leave nothing to
/// look for.
const EXPLAINED: f64 = 0.5;
/// Recorded faults below which shares mean little.
const LEAST_FAULTS: u64 = 20;

/// What kind of memory an address lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// A followed allocator hands blocks out there.
    Allocator,
    /// Anonymous memory that no followed allocator uses.
    Anonymous,
    /// The heap of a language runtime.
    Runtime,
    /// A thread's stack, a file's private pages.
    Other,
    /// It is mapped no more.
    Unknown,
}

/// Page faults of one stack.
#[derive(Clone, Copy, Debug)]
pub struct FaultStack {
    /// The stack.
    pub stack: StackId,
    /// Faults recorded.
    pub recorded: u64,
    /// Where the last one was.
    pub region: Region,
}

/// Where memory became resident during a run.
#[derive(Clone, Debug, Default)]
pub struct Residence {
    /// One per stack.
    pub stacks: Vec<FaultStack>,
    /// The language runtime that manages memory in the process.
    pub runtime: Option<&'static str>,
    /// The limit it was given for its heap, in bytes.
    pub runtime_limit: Option<u64>,
}

impl Residence {
    fn recorded(&self, region: impl Fn(Region) -> bool) -> u64 {
        self.stacks
            .iter()
            .filter(|stack| region(stack.region))
            .map(|stack| stack.recorded)
            .sum()
    }
}

/// What the unexplained part of a process's growth is; none when there is
/// none, or too little is known.
pub(super) fn judge(
    process: &Process,
    found: &[Finding],
    residence: &Residence,
    stacks: &BTreeMap<StackId, Stack>,
    identity: &Identity,
    settings: &Settings,
) -> Option<Finding> {
    let growth = process.memory_growth()?;
    let steady = !process.memory.as_ref()?.slows();
    let explained: f64 = found
        .iter()
        .fold(0.0, |sum, finding| sum + finding.leak_bytes_per_s.high);
    let recorded = residence.recorded(|region| region != Region::Other);
    let too_little = growth.low * process.span() < LEAST_GROWTH
        || growth.low < settings.least_rate
        || process.span() < LEAST_SECONDS
        || explained > EXPLAINED * growth.low
        || recorded < LEAST_FAULTS;
    if too_little {
        return None;
    }
    let foreign =
        residence.recorded(|region| matches!(region, Region::Anonymous | Region::Runtime));
    let owned = residence.recorded(|region| region == Region::Allocator);
    let (verdict, wanted) = match residence.runtime {
        Some(_) if foreign > owned => (
            Verdict::ManagedHeap,
            [Region::Anonymous, Region::Runtime].as_slice(),
        ),
        _ if foreign * 2 > recorded && steady => {
            (Verdict::OutsideAllocators, [Region::Anonymous].as_slice())
        }
        _ if owned * 2 > recorded => (Verdict::Retention, [Region::Allocator].as_slice()),
        _ => return None,
    };
    let (functions, frames, of_site) = largest_site(residence, stacks, wanted)?;
    let of_kind = residence.recorded(|region| wanted.contains(&region));
    let fingerprint = fingerprint(&identity.exe_basename, &functions);
    let share = of_site as f64 / recorded as f64;
    // Binomial, for the share of the site among the recorded faults.
    let error = 1.96 * (share * (1.0 - share) / recorded as f64).sqrt();
    let rate_of = |growth: f64, share: f64| growth * share.clamp(0.0, 1.0);
    Some(Finding {
        fingerprint,
        id: format!("{fingerprint}-{}-{}", identity.pid, identity.start_time),
        verdict,
        confidence: Confidence::Suspected,
        leak: verdict.leak(),
        leak_bytes_per_s: Estimate {
            value: rate_of(growth.value, share),
            low: rate_of(growth.low, share - error),
            high: rate_of(growth.high, share + error),
        },
        live_bytes: Estimate::default(),
        live_blocks: Estimate::default(),
        oldest_s: None,
        site: Site {
            frames,
            truncated: None,
        },
        tasks: Vec::new(),
        members: Vec::new(),
        evidence: evidence(
            process,
            growth,
            explained,
            residence,
            verdict,
            (of_site, of_kind, recorded),
        ),
        advice: advice(verdict, residence),
        time_to_limit_s: None,
        suppressed_by: None,
    })
}

/// The functions whose faults are most, of the wanted regions.
fn largest_site(
    residence: &Residence,
    stacks: &BTreeMap<StackId, Stack>,
    wanted: &[Region],
) -> Option<(Vec<String>, Vec<Frame>, u64)> {
    let mut sites: BTreeMap<Vec<String>, (u64, u64, StackId)> = BTreeMap::new();
    for fault in &residence.stacks {
        if !wanted.contains(&fault.region) {
            continue;
        }
        let functions = stacks
            .get(&fault.stack)
            .filter(|stack| !stack.frames.is_empty())
            .map_or_else(
                || vec![format!("stack {:016x}", fault.stack.0)],
                |stack| user_functions(&stack.frames),
            );
        let site = sites.entry(functions).or_insert((0, 0, fault.stack));
        site.0 += fault.recorded;
        if fault.recorded > site.1 {
            (site.1, site.2) = (fault.recorded, fault.stack);
        }
    }
    let (functions, (recorded, _, stack)) = sites
        .into_iter()
        .max_by_key(|(_, (recorded, _, _))| *recorded)?;
    let frames = stacks
        .get(&stack)
        .map(|stack| stack.frames.clone())
        .unwrap_or_default();
    Some((functions, frames, recorded))
}

fn evidence(
    process: &Process,
    growth: Estimate,
    explained: f64,
    residence: &Residence,
    verdict: Verdict,
    (of_site, of_kind, recorded): (u64, u64, u64),
) -> Vec<Evidence> {
    let percent = |part: u64| part as f64 * 100.0 / recorded as f64;
    let kind = match (verdict, residence.runtime) {
        (Verdict::ManagedHeap, Some(runtime)) => {
            format!("in memory that {runtime} manages, or beside it")
        }
        (Verdict::Retention, _) => "in memory of an allocator".to_owned(),
        _ => "in anonymous memory in which no known allocator hands out blocks".to_owned(),
    };
    let mut lines = vec![
        Evidence {
            kind: "memory",
            text: format!(
                "The process's memory grew by {} in {:.0} s; the allocation sites explain at most {} of its {}.",
                bytes(growth.value * process.span()),
                process.span(),
                rate(explained),
                rate(growth.value),
            ),
            value: Some(growth.value),
        },
        Evidence {
            kind: "page-faults",
            text: format!(
                "{:.0} % of {} recorded page faults were {kind}; {:.0} % at this place.",
                percent(of_kind),
                count(recorded as f64),
                percent(of_site),
            ),
            value: Some(percent(of_kind) / 100.0),
        },
    ];
    if let (Verdict::ManagedHeap, Some(limit)) = (verdict, residence.runtime_limit) {
        lines.push(Evidence {
            kind: "runtime-limit",
            text: format!("Its heap may grow to {}.", bytes(limit as f64)),
            value: Some(limit as f64),
        });
    }
    lines
}

fn advice(verdict: Verdict, residence: &Residence) -> String {
    match (verdict, residence.runtime) {
        (Verdict::ManagedHeap, Some(runtime)) => format!(
            "Nothing now: {runtime} takes memory up to its own limit and collects garbage when it likes. If its heap is full and does not shrink, look with its own heap tools."
        ),
        (Verdict::Retention, _) => "The blocks in use do not grow, so nothing is leaked: the allocator keeps or fragments memory. Look at peaks of use, at the number of arenas, and at the allocator's settings for giving memory back.".to_owned(),
        _ => "Look in the code above for memory that is mapped directly (mmap, an arena, a buffer pool) and for when it is unmapped. Watch for longer to see whether it has a limit.".to_owned(),
    }
}

#[cfg(test)]
mod tests;
