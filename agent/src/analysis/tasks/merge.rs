//! Tasks that stay and allocation sites that grow: one leak, one finding.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{
    kinds::{Staying, staying},
    states, words,
};
use crate::{
    analysis::{
        Context, Identity, Outcome, Settings, Stack,
        report::{key_of, name_of, site_keys},
    },
    finding::{
        Confidence, Estimate, Finding, Fingerprint, Frame, Site, Text, Verdict, fingerprint,
    },
    ledger::{
        StackId,
        tasks::{TaskId, TaskLedger},
    },
};

/// A site is explained by tasks that have allocated so much of it.
const MOST: f64 = 0.9;
/// A site is explained by cells if they are this share of its blocks: what a
/// task owns is often allocated where it is spawned.
const CELLS: f64 = 0.05;
/// Or this share of its bytes.
const CELL_BYTES: f64 = 0.5;

/// A live block, as far as tasks are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Its address.
    pub address: u64,
    /// Its allocation stack.
    pub stack: StackId,
    /// Who allocated it.
    pub task: Option<TaskId>,
    /// When it was allocated, in the time of its account.
    pub born: Duration,
    /// Requested bytes.
    pub size: u64,
    /// Blocks it stands for.
    pub weight: f64,
}

/// What a type's tasks have to do with one site.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    cells: f64,
    cell_bytes: f64,
    allocated: f64,
}

/// One site's live blocks.
#[derive(Clone, Debug, Default)]
struct Account {
    blocks: f64,
    bytes: f64,
    shares: BTreeMap<usize, Share>,
}

/// Tells findings about growth whose cause are tasks that stay as such, and
/// adds those that no allocation shows.
pub fn explain(
    outcome: &mut Outcome,
    ledger: &TaskLedger,
    blocks: &[Block],
    stacks: &BTreeMap<StackId, Stack>,
    identity: &Identity,
    context: &Context,
    settings: &Settings,
) {
    let found = staying(ledger, settings);
    if found.is_empty() {
        return;
    }
    let sites = sites(&found, blocks, stacks, identity);
    let least = f64::from(settings.least_members);
    for (index, staying) in found.iter().enumerate() {
        let shares: Vec<(usize, Share)> = outcome
            .findings
            .iter()
            .enumerate()
            .filter(|(_, finding)| finding.verdict == Verdict::UnboundedGrowth)
            .filter_map(|(at, finding)| {
                let account = sites.get(&finding.fingerprint)?;
                let share = account.shares.get(&index)?;
                let by_cells = share.cells >= least
                    && (share.cells >= CELLS * account.blocks
                        || share.cell_bytes >= CELL_BYTES * account.bytes);
                (by_cells || share.allocated >= MOST * account.bytes).then_some((at, *share))
            })
            .collect();
        let seen: f64 = sites
            .values()
            .filter_map(|account| account.shares.get(&index))
            .map(|share| share.cells)
            .sum();
        // The place where the tasks are spawned, else the largest.
        let main = shares
            .iter()
            .max_by(|a, b| a.1.cells.total_cmp(&b.1.cells).then(b.0.cmp(&a.0)));
        if let Some((main, share)) = main.copied() {
            let others: Vec<usize> = shares
                .iter()
                .map(|(at, _)| *at)
                .filter(|at| *at != main)
                .collect();
            merge(outcome, main, &others, share, staying, blocks);
        } else if seen < least {
            // Where allocations are seen, they have been judged already.
            let finding = alone(staying, blocks, identity, context);
            insert(&mut outcome.findings, finding);
        }
    }
}

/// Live blocks by site, and the part of each type's tasks.
fn sites(
    found: &[Staying],
    blocks: &[Block],
    stacks: &BTreeMap<StackId, Stack>,
    identity: &Identity,
) -> HashMap<Fingerprint, Account> {
    let mut by_cell: HashMap<u64, usize> = HashMap::new();
    let mut by_task: HashMap<TaskId, usize> = HashMap::new();
    for (index, staying) in found.iter().enumerate() {
        for (task, life) in &staying.members {
            by_cell.insert(life.cell, index);
            by_task.insert(*task, index);
        }
        // The youngest are like the others, only not for as long.
        for (task, cell) in &staying.young {
            by_cell.insert(*cell, index);
            by_task.insert(*task, index);
        }
    }
    let keys = site_keys(stacks);
    let mut names: HashMap<StackId, Fingerprint> = HashMap::new();
    let mut sites: HashMap<Fingerprint, Account> = HashMap::new();
    for block in blocks {
        let name = *names
            .entry(block.stack)
            .or_insert_with(|| name_of(&key_of(&keys, block.stack), identity));
        let bytes = block.weight * block.size as f64;
        let account = sites.entry(name).or_default();
        account.blocks += block.weight;
        account.bytes += bytes;
        if let Some(index) = by_cell.get(&block.address) {
            let share = account.shares.entry(*index).or_default();
            share.cells += block.weight;
            share.cell_bytes += bytes;
        }
        if let Some(index) = block.task.and_then(|task| by_task.get(&task)) {
            account.shares.entry(*index).or_default().allocated += bytes;
        }
    }
    sites
}

/// Makes one finding of a type's tasks and the sites that they explain.
fn merge(
    outcome: &mut Outcome,
    main: usize,
    others: &[usize],
    share: Share,
    staying: &Staying,
    blocks: &[Block],
) {
    let mut rest: Vec<Finding> = Vec::new();
    for at in others.iter().rev() {
        if *at < outcome.findings.len() {
            rest.push(outcome.findings.remove(*at));
        }
    }
    let main = main - others.iter().filter(|at| **at < main).count();
    let Some(finding) = outcome.findings.get_mut(main) else {
        return;
    };
    for other in rest.into_iter().rev() {
        let sum = |a: &mut Estimate, b: Estimate| {
            *a = Estimate {
                value: a.value + b.value,
                low: a.low + b.low,
                high: a.high + b.high,
            };
        };
        sum(&mut finding.leak_bytes_per_s, other.leak_bytes_per_s);
        sum(&mut finding.live_bytes, other.live_bytes);
        sum(&mut finding.live_blocks, other.live_blocks);
        finding.confidence = finding.confidence.max(other.confidence);
        finding.members.push(other.site);
    }
    if share.cells <= 0.0 {
        // Only what the tasks allocated is counted so far.
        let cells = staying.rate();
        let rate = &mut finding.leak_bytes_per_s;
        (rate.value, rate.high) = (rate.value + cells.value, rate.high + cells.high);
    }
    finding.verdict = staying.verdict;
    finding.leak = staying.verdict.leak();
    words::advice(staying.verdict).clone_into(&mut finding.advice);
    let further = finding.members.len();
    let mut evidence = words::evidence(staying, further);
    evidence.append(&mut finding.evidence);
    finding.evidence = evidence;
    finding.tasks.extend(states::holders(staying, blocks));
}

/// A finding that rests on the table of tasks alone.
fn alone(staying: &Staying, blocks: &[Block], identity: &Identity, context: &Context) -> Finding {
    let kind = &staying.kind;
    let name = words::name(kind);
    let fingerprint = fingerprint(&identity.exe_basename, &["task", &name]);
    let rate = staying.rate();
    let held = Estimate::exact(staying.members.len() as f64 * kind.cell_bytes as f64);
    let oldest = staying
        .members
        .values()
        .map(|life| staying.now.saturating_sub(life.spawned.until))
        .max();
    let mut evidence = words::evidence(staying, 0);
    evidence.push(words::alone());
    Finding {
        fingerprint,
        id: format!("{fingerprint}-{}-{}", identity.pid, identity.start_time),
        verdict: staying.verdict,
        confidence: Confidence::Suspected,
        leak: staying.verdict.leak(),
        leak_bytes_per_s: rate,
        live_bytes: held,
        live_blocks: Estimate::exact(staying.members.len() as f64),
        oldest_s: oldest.map(|age| age.as_secs_f64()),
        site: Site {
            frames: vec![Frame {
                function: Some(Text::symbol(&name)),
                file: kind
                    .name
                    .as_ref()
                    .and(kind.location.as_ref())
                    .map(Text::name),
                ..Frame::default()
            }],
            truncated: Some(Text::sentence(
                "the spawning of these tasks was not seen, only their table",
            )),
        },
        tasks: states::holders(staying, blocks),
        members: Vec::new(),
        evidence,
        advice: words::advice(staying.verdict).to_owned(),
        time_to_limit_s: context.limit.map(|limit| {
            let left = limit.limit_bytes.saturating_sub(limit.used_bytes) as f64;
            left / rate.value
        }),
        suppressed_by: None,
    }
}

/// Puts a finding before those that matter less.
fn insert(findings: &mut Vec<Finding>, finding: Finding) {
    let matters = |finding: &Finding| (finding.confidence, finding.leak_bytes_per_s.value);
    let at = findings
        .iter()
        .position(|other| matters(other) < matters(&finding))
        .unwrap_or(findings.len());
    findings.insert(at, finding);
}
