//! From judgements to the document's findings.

use std::{collections::BTreeMap, time::Duration};

use super::{Context, Judgement, Judgements, Settings, judge, residence, residence::Residence};
use crate::{
    finding::{
        Estimate, Finding, Fingerprint, Frame, Leak, LiveSite, Rss, Site, Task, Text, Verdict,
        fingerprint, user_functions,
    },
    ledger::{Ledger, StackId, TaskShare},
};

/// Sites that a document lists.
const MAX_SITES: usize = 100;
/// Tasks that a document lists of a site.
const MAX_TASKS: usize = 5;
/// Quiet verdicts that a document lists.
const MAX_NOT_LEAKS: usize = 20;
/// Findings that a document lists.
const MAX_FINDINGS: usize = 100;

/// An allocation stack after its functions were looked up.
#[derive(Clone, Debug, Default)]
pub struct Stack {
    /// Innermost first, inlined functions before the one that contains them.
    pub frames: Vec<Frame>,
    /// Why the stack does not reach the start of its thread.
    pub truncated: Option<Text>,
}

/// What findings need to know of their process.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// File name of the executable, without its folder.
    pub exe_basename: String,
}

/// The part of the document that analysis fills.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Worst first.
    pub findings: Vec<Finding>,
    /// Growth that is no leak.
    pub not_leaks: Vec<Finding>,
    /// The largest live sites.
    pub sites: Vec<LiveSite>,
    /// Bytes per second, or why not.
    pub detection_limit: Result<f64, String>,
    /// Anonymous memory over the run.
    pub rss: Option<Rss>,
    /// Leak rate of all findings over growth of the anonymous memory.
    pub explained_share: Option<Estimate>,
}

/// Judges a process and describes the outcome. `stacks` holds what is known
/// of each stack; one that is missing there is a site of its own, without
/// frames.
pub fn findings(
    ledger: &Ledger,
    residence: &Residence,
    stacks: &BTreeMap<StackId, Stack>,
    identity: &Identity,
    context: &Context,
    settings: &Settings,
) -> Outcome {
    let keys = site_keys(stacks);
    let judgements = judge(ledger, |id| key_of(&keys, id), context, settings);
    outcome(judgements, residence, stacks, identity, settings)
}

/// What groups stacks into sites: their user functions, or the stack itself
/// where there are no frames.
pub(super) type Key = Result<Vec<String>, StackId>;

/// The functions of every stack that has frames.
pub(super) fn site_keys(stacks: &BTreeMap<StackId, Stack>) -> BTreeMap<StackId, Vec<String>> {
    stacks
        .iter()
        .filter(|(_, stack)| !stack.frames.is_empty())
        .map(|(id, stack)| (*id, user_functions(&stack.frames)))
        .collect()
}

/// The site of a stack.
pub(super) fn key_of(keys: &BTreeMap<StackId, Vec<String>>, id: StackId) -> Key {
    keys.get(&id).cloned().ok_or(id)
}

/// The fingerprint of a site.
pub(super) fn name_of(key: &Key, identity: &Identity) -> Fingerprint {
    match key {
        Ok(functions) => fingerprint(&identity.exe_basename, functions),
        Err(StackId(id)) => fingerprint(&identity.exe_basename, &[format!("stack {id:016x}")]),
    }
}

/// Describes judgements.
pub(super) fn outcome(
    judgements: Judgements<Key>,
    residence: &Residence,
    stacks: &BTreeMap<StackId, Stack>,
    identity: &Identity,
    settings: &Settings,
) -> Outcome {
    let mut outcome = Outcome {
        findings: Vec::new(),
        not_leaks: Vec::new(),
        sites: Vec::new(),
        detection_limit: judgements.detection_limit,
        rss: judgements.rss,
        explained_share: None,
    };
    for judgement in judgements.sites {
        let site = judgement
            .stacks
            .iter()
            .find_map(|id| stacks.get(id))
            .cloned()
            .unwrap_or_default();
        let site = Site {
            frames: site.frames,
            truncated: site.truncated,
        };
        let fingerprint = name_of(&judgement.key, identity);
        if judgement.live_blocks.value > 0.0 {
            outcome.sites.push(LiveSite {
                fingerprint,
                live_bytes: judgement.live_bytes,
                live_blocks: judgement.live_blocks,
                site: site.clone(),
                tasks: judgement.tasks.iter().take(MAX_TASKS).map(task).collect(),
            });
        }
        if let Some(verdict) = judgement.verdict {
            let finding = describe(judgement, verdict, site, fingerprint, identity);
            let list = match verdict.leak() {
                Leak::No => &mut outcome.not_leaks,
                Leak::Yes | Leak::Suspected => &mut outcome.findings,
            };
            list.push(finding);
        }
    }
    outcome
        .sites
        .sort_by(|a, b| b.live_bytes.value.total_cmp(&a.live_bytes.value));
    outcome.sites.truncate(MAX_SITES);
    outcome.not_leaks.truncate(MAX_NOT_LEAKS);
    outcome.explained_share = judgements
        .rss_growth
        .and_then(|growth| explained_share(&outcome.findings, growth));
    if let Some(finding) = residence::judge(
        &judgements.process,
        &outcome.findings,
        residence,
        stacks,
        identity,
        settings,
    ) {
        match finding.leak {
            Leak::No => outcome.not_leaks.insert(0, finding),
            Leak::Yes | Leak::Suspected => outcome.findings.push(finding),
        }
    }
    outcome.findings.truncate(MAX_FINDINGS);
    outcome
}

/// Leak rate of all findings over growth of the memory; above 1 where leaks
/// fill memory that was free before.
fn explained_share(findings: &[Finding], growth: Estimate) -> Option<Estimate> {
    let sum = |bound: fn(&Estimate) -> f64| {
        findings
            .iter()
            .map(|finding| bound(&finding.leak_bytes_per_s))
            .sum::<f64>()
    };
    (!findings.is_empty()).then(|| Estimate {
        value: sum(|rate| rate.value) / growth.value,
        low: sum(|rate| rate.low) / growth.high,
        high: sum(|rate| rate.high) / growth.low,
    })
}

fn describe<K>(
    judgement: Judgement<K>,
    verdict: Verdict,
    site: Site,
    fingerprint: Fingerprint,
    identity: &Identity,
) -> Finding {
    Finding {
        fingerprint,
        id: format!("{fingerprint}-{}-{}", identity.pid, identity.start_time),
        verdict,
        confidence: judgement.confidence,
        leak: verdict.leak(),
        leak_bytes_per_s: judgement.leak_rate,
        live_bytes: judgement.live_bytes,
        live_blocks: judgement.live_blocks,
        oldest_s: judgement.oldest.map(|age| age.as_secs_f64()),
        site,
        tasks: judgement.tasks.iter().map(task).collect(),
        members: Vec::new(),
        evidence: judgement.evidence,
        advice: judgement.advice,
        time_to_limit_s: judgement.time_to_limit.as_ref().map(Duration::as_secs_f64),
        suppressed_by: None,
    }
}

fn task(share: &TaskShare) -> Task {
    Task {
        id: share.task,
        blocks: share.blocks.round() as u64,
        bytes: share.bytes.round() as u64,
        ..Task::default()
    }
}
