//! The verdict on one site: its own account, heard against the process's.

use std::time::Duration;

use super::{
    Context, Judgement, LEAST_OBSERVATIONS, Settings,
    estimate::Sum,
    growth::{Growth, Steady},
    process::{Process, Witness},
    words,
};
use crate::{
    finding::{Confidence, Estimate, Verdict},
    ledger::Group,
};

/// What was found, before it is put into words.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) growth: Growth,
    pub(super) witness: Option<Witness>,
    pub(super) verdict: Option<Verdict>,
    pub(super) confidence: Confidence,
    pub(super) rate: Estimate,
    pub(super) time_to_limit: Option<Duration>,
}

pub(super) fn judge<K>(
    key: K,
    group: Group,
    growth: Growth,
    process: &Process,
    context: &Context,
    settings: &Settings,
) -> Judgement<K> {
    let found = find(&group, growth, process, context, settings);
    let (mut bytes, mut blocks) = (Sum::default(), Sum::default());
    for survivor in &group.survivors {
        bytes.add(survivor.size as f64, survivor.weight);
        blocks.add(1.0, survivor.weight);
    }
    Judgement {
        key,
        verdict: found.verdict,
        confidence: found.confidence,
        leak_rate: found.rate,
        live_bytes: bytes.interval(),
        live_blocks: blocks.interval(),
        oldest: group.oldest(Duration::from_secs_f64(process.end)),
        evidence: words::evidence(&found, &group, process, context, settings),
        advice: words::advice(&found).to_owned(),
        time_to_limit: found.time_to_limit,
        stacks: group.stacks,
        tasks: group.tasks,
        other_tasks: group.other_tasks,
    }
}

fn find(
    group: &Group,
    growth: Growth,
    process: &Process,
    context: &Context,
    settings: &Settings,
) -> Found {
    let mut found = Found {
        growth: Growth::None,
        witness: None,
        verdict: None,
        confidence: Confidence::Suspected,
        rate: Estimate::default(),
        time_to_limit: None,
    };
    if process.span() < settings.least_observed.as_secs_f64()
        || process.observations < LEAST_OBSERVATIONS
    {
        return found;
    }
    found.growth = match growth {
        Growth::Slowing {
            queue: Some(steady),
            ratio,
        } if process.grows_steadily(steady.blocks * ratio) => Growth::Steady(steady),
        growth => growth,
    };
    let Growth::Steady(steady) = found.growth.clone() else {
        found.verdict = quiet(&found.growth);
        found.rate = net_growth(group, process);
        return found;
    };
    let witness = process.witness(steady.rate.value, steady.blocks, steady.blocks_low);
    found.witness = Some(witness);
    if witness.against.is_some() {
        found.verdict = Some(Verdict::Bounded);
        found.rate = steady.rate;
        return found;
    }
    // The rest replaced blocks from before the capture.
    found.rate = Estimate {
        value: steady.rate.value * witness.share,
        low: steady.rate.low * witness.least,
        high: steady.rate.high,
    };
    if found.rate.value < settings.least_rate {
        return found;
    }
    found.verdict = Some(Verdict::UnboundedGrowth);
    found.time_to_limit = context.limit.and_then(|limit| {
        let left = limit.limit_bytes.saturating_sub(limit.used_bytes) as f64;
        Duration::try_from_secs_f64(left / found.rate.value).ok()
    });
    if is_strong(&steady, witness, &found, group, process, context, settings) {
        found.confidence = Confidence::Strong;
    }
    found
}

/// The verdict on a site that does not grow steadily.
fn quiet(growth: &Growth) -> Option<Verdict> {
    match growth {
        Growth::Slowing { .. } => Some(Verdict::Warming),
        Growth::Ceased { .. } | Growth::Level => Some(Verdict::Bounded),
        Growth::Sawtooth { .. } => Some(Verdict::Sawtooth),
        Growth::None | Growth::Steady(_) => None,
    }
}

fn is_strong(
    steady: &Steady,
    witness: Witness,
    found: &Found,
    group: &Group,
    process: &Process,
    context: &Context,
    settings: &Settings,
) -> bool {
    let span = process.span();
    let outlived = span >= settings.lifetimes * group.longest_life.as_secs_f64();
    let unslowed = steady.ratio >= UNSLOWED;
    // A process whose memory does not grow is in no danger yet.
    let silent = !witness.memory_flat && witness.share >= 0.95;
    let long = span >= settings.growth_confirm.as_secs_f64();
    // The lower bound of the rate: only what is certain may wake somebody.
    let near = context.limit.is_some_and(|limit| {
        let left = limit.limit_bytes.saturating_sub(limit.used_bytes) as f64;
        let horizon = settings
            .page_within
            .as_secs_f64()
            .min(settings.believe * span);
        found.rate.low > 0.0 && left / found.rate.low <= horizon
    });
    outlived && unslowed && silent && (long || near)
}

/// Growth at the end over growth at the beginning that still counts as
/// unslowed: a cache that fills evenly and is two thirds full is below.
const UNSLOWED: f64 = 0.75;

/// Growth of what is live, for verdicts that are no leak.
fn net_growth(group: &Group, process: &Process) -> Estimate {
    match (group.series.first(), group.series.last()) {
        (Some(first), Some(last)) if process.span() > 0.0 => {
            Estimate::exact((last.bytes - first.bytes) / process.span())
        }
        _ => Estimate::default(),
    }
}
