//! Evidence and advice in words, for somebody who was woken up by them.

use std::time::Duration;

use super::{
    Context, Settings,
    growth::Growth,
    process::{Against, Process, Witness},
    site::Found,
};
use crate::{
    finding::units::{bytes, count, rate, time},
    finding::{Confidence, Evidence, Verdict},
    ledger::Group,
};

pub(super) fn evidence(
    found: &Found,
    group: &Group,
    process: &Process,
    context: &Context,
    settings: &Settings,
) -> Vec<Evidence> {
    if found.verdict.is_none() {
        return Vec::new();
    }
    let mut lines = Vec::new();
    lines.push(growth(found, process));
    lines.extend(lives(found, group));
    if let Some(line) = against(found, process) {
        // What overrules the growth is read first.
        let at = if found.verdict == Some(Verdict::Bounded) {
            0
        } else {
            lines.len()
        };
        lines.insert(at, line);
    }
    lines.extend(memory(found.witness, process));
    if context.sampling_mean > 1 {
        let sampled = group.survivors.len() as f64;
        lines.push(Evidence {
            kind: "sample",
            text: format!(
                "Estimated from {} sampled live blocks, about one per {} allocated.",
                count(sampled),
                bytes(context.sampling_mean as f64)
            ),
            value: Some(sampled),
        });
    }
    if group.vanished > 0 {
        lines.push(Evidence {
            kind: "frees-missed",
            text: format!(
                "The release of {} blocks of this site was not seen; they are not counted as live.",
                count(group.vanished as f64)
            ),
            value: Some(group.vanished as f64),
        });
    }
    lines.extend(confidence(found, group, process, settings));
    lines
}

/// What the site did.
fn growth(found: &Found, process: &Process) -> Evidence {
    let span = time(Duration::from_secs_f64(process.span()));
    let (kind, text, value) = match &found.growth {
        Growth::Steady(steady) => (
            "growth",
            format!(
                "{} more every second for {span}, in {} of {} parts of that time; {} blocks a second.",
                bytes(steady.rate.value),
                steady.growing.0,
                steady.growing.1,
                blocks_per_second(steady.blocks),
            ),
            Some(steady.rate.value),
        ),
        Growth::Slowing { ratio, .. } => (
            "slowing",
            format!(
                "It still grows, but at the end only {:.0} % as fast as at the beginning.",
                ratio * 100.0
            ),
            Some(*ratio),
        ),
        Growth::Ceased { since } => (
            "ceased",
            format!(
                "It grew, and has not for the last {}.",
                time(Duration::from_secs_f64(*since))
            ),
            Some(*since),
        ),
        Growth::Level => (
            "level",
            format!("It grew, but no longer at the end of the {span} that were observed."),
            None,
        ),
        Growth::Sawtooth { falls, depth } => (
            "falls",
            format!(
                "It fell back {} in {span}, the last time by {}.",
                times(*falls),
                bytes(*depth)
            ),
            Some(*falls as f64),
        ),
        Growth::None => ("growth", "No growth to speak of.".to_owned(), None),
    };
    Evidence { kind, text, value }
}

fn times(n: usize) -> String {
    match n {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        n => format!("{n} times"),
    }
}

fn blocks_per_second(value: f64) -> String {
    if value >= 10.0 {
        count(value)
    } else {
        format!("{value:.1}")
    }
}

/// How long its blocks live.
fn lives(found: &Found, group: &Group) -> Option<Evidence> {
    let Growth::Steady(steady) = &found.growth else {
        return None;
    };
    let allocated = count(group.allocated as f64);
    let text = match (group.mean_life(), steady.age) {
        (None, _) => format!("None of the {allocated} blocks seen here was released."),
        (Some(mean), Some(_)) => format!(
            "Released: {} of the {allocated} blocks seen here, after {} on average and {} at most; {} older ones stay.",
            count(group.freed as f64),
            time(mean),
            time(group.longest_life),
            count(steady.members as f64),
        ),
        (Some(mean), None) => format!(
            "Released: {} of the {allocated} blocks seen here, after {} on average; they come faster than they go, as in a queue that is read too slowly.",
            count(group.freed as f64),
            time(mean),
        ),
    };
    Some(Evidence {
        kind: "lives",
        text,
        value: Some(group.freed as f64),
    })
}

/// What the process's number of blocks says against it.
fn against(found: &Found, process: &Process) -> Option<Evidence> {
    let witness = found.witness?;
    let net = process.blocks.as_ref().map(|blocks| blocks.mean);
    match witness.against {
        Some(Against::Blocks) => Some(Evidence {
            kind: "process-blocks",
            text: "This site grew in what was seen, but the process did not: it released as many older blocks, from before the \
                   observation, as it added. So behaves a cache that is full."
                .to_owned(),
            value: net,
        }),
        Some(Against::Memory) => Some(Evidence {
            kind: "process-memory",
            text: "This site grew in what was seen, but the memory of the process did not. So behaves a cache that is full: old entries, \
                   from before the observation, make room for new ones."
                .to_owned(),
            value: process.memory.as_ref().map(|memory| memory.mean),
        }),
        None if witness.share < 1.0 => Some(Evidence {
            kind: "process-blocks",
            text: format!(
                "The number of blocks of the whole process grew by only {:.0} % of what this site added; the rate is reduced to that. The \
                 rest replaces blocks from before the observation.",
                witness.share * 100.0
            ),
            value: Some(witness.share),
        }),
        None => None,
    }
}

/// What the memory of the process did meanwhile.
pub(super) fn memory(witness: Option<Witness>, process: &Process) -> Option<Evidence> {
    let rss = process.rss?;
    let growth = rss.end_bytes as f64 - rss.start_bytes as f64;
    let flat = witness.is_some_and(|witness| witness.against.is_none() && witness.memory_flat);
    let text = if flat {
        format!(
            "The memory of the process (RSS and swap) changed by only {}: so far, what is kept here fits into memory that was free before.",
            bytes(growth)
        )
    } else {
        format!(
            "The memory of the process (RSS and swap) {} by {} in the same time.",
            if growth < 0.0 { "shrank" } else { "grew" },
            bytes(growth.abs())
        )
    };
    Some(Evidence {
        kind: "process-rss",
        text,
        value: Some(growth),
    })
}

/// Why it is not surer, or why it is so sure.
fn confidence(
    found: &Found,
    group: &Group,
    process: &Process,
    settings: &Settings,
) -> Vec<Evidence> {
    if found.verdict != Some(Verdict::UnboundedGrowth) {
        return Vec::new();
    }
    let mut lines = Vec::new();
    if let Some(left) = found.time_to_limit {
        let sure = found.confidence >= Confidence::Strong && left <= settings.page_within;
        let text = format!(
            "At {} the memory limit is reached in {}.",
            rate(found.rate.value),
            time(left)
        );
        lines.push(Evidence {
            kind: if sure { "limit-near" } else { "limit" },
            text,
            value: Some(left.as_secs_f64()),
        });
    }
    if found.confidence >= Confidence::Strong {
        return lines;
    }
    let lifetime = group.longest_life.mul_f64(settings.lifetimes);
    let text = if process.span() < lifetime.as_secs_f64() {
        format!(
            "Suspected only: blocks of this site were seen to live up to {}; observe for {} or longer to tell.",
            time(group.longest_life),
            time(lifetime)
        )
    } else if process.span() < settings.growth_confirm.as_secs_f64() {
        format!(
            "Suspected only: a cache that still fills looks the same. Growth that does not slow for {} is no cache.",
            time(settings.growth_confirm)
        )
    } else {
        "Suspected only: the growth has begun to slow, or the process does not grow by as much."
            .to_owned()
    };
    lines.push(Evidence {
        kind: "confidence",
        text,
        value: Some(process.span()),
    });
    lines
}

pub(super) fn advice(found: &Found) -> &'static str {
    match (found.verdict, &found.growth) {
        (Some(Verdict::UnboundedGrowth), Growth::Steady(steady)) if steady.age.is_none() => {
            "Find what holds this memory: most likely a queue or buffer whose reader is slower than its writer. Give it a bound, or make \
             the reader faster."
        }
        (Some(Verdict::UnboundedGrowth), _) => {
            "Find what keeps the memory allocated here, and when it is meant to be removed: a map or list without a limit, a reference \
             cycle, a task that never ends, a forgotten free. If it is a cache, give it a limit. Until that is mended, restart the \
             process before the memory runs out."
        }
        (Some(Verdict::Warming), _) => {
            "Nothing to do now: this looks like start-up or a cache that fills. Look again later if the process keeps growing."
        }
        (Some(Verdict::Bounded), _) => {
            "Nothing to do: what is added here is released again, or was added once."
        }
        (Some(Verdict::Sawtooth), _) => {
            "Nothing to do: what is added here is released at intervals. Only the peaks count for the memory limit."
        }
        // Of other kinds of growth, `residence` speaks.
        _ => "",
    }
}
