//! Growth by the total of what is live.

use super::{Growth, Steady};
use crate::{
    analysis::{
        Settings,
        estimate::{Sum, Z},
        process::Process,
        shape::{Drop, Parts},
    },
    finding::Estimate,
    ledger::{Group, Sample},
};

/// The look at the live total.
pub(super) fn by_total(
    group: &Group,
    series: &[(f64, f64)],
    falls: &[Drop],
    peak: f64,
    process: &Process,
    settings: &Settings,
) -> Growth {
    if let Some(last) = falls.last() {
        let deep = falls
            .iter()
            .filter(|fall| fall.depth >= 0.25 * peak)
            .count();
        return if deep > 0 {
            Growth::Sawtooth {
                falls: falls.len(),
                depth: last.depth,
            }
        } else {
            Growth::None
        };
    }
    // What is in flight builds up first when a capture begins.
    let mean_life = group.mean_life().map_or(0.0, |life| life.as_secs_f64());
    let start = process.start + (3.0 * mean_life).min(process.span() / 4.0);
    let from = series
        .partition_point(|point| point.0 < start)
        .min(series.len().saturating_sub(1));
    let (Some(tail), Some(first), Some(last)) = (
        series.get(from..),
        group.series.get(from),
        group.series.last(),
    ) else {
        return Growth::None;
    };
    let Some(parts) = Parts::of(tail) else {
        return Growth::None;
    };
    let span = last.at.as_secs_f64() - first.at.as_secs_f64();
    let net = last.bytes - first.bytes;
    let grew_early = first.bytes + net.max(0.0) >= settings.least_rate * process.span();
    let quarter = parts.rates.len().div_ceil(4);
    let recent = parts.rates.iter().rev().take(quarter).sum::<f64>() / quarter as f64;
    if net < 0.15 * peak || recent < 0.2 * parts.mean {
        return if grew_early {
            Growth::Level
        } else {
            Growth::None
        };
    }
    let members = f64::from(last.sampled) - f64::from(first.sampled);
    let growing = (parts.growing(), parts.rates.len());
    let steadily = growing.0 >= settings.least_growths as usize && growing.0 * 8 >= growing.1 * 5;
    let significant = parts.mean > 2.5 * parts.error;
    if members < f64::from(settings.least_members)
        || !steadily
        || !significant
        || net / span < settings.least_rate
    {
        return Growth::None;
    }
    let steady = Steady {
        rate: total_rate(group, first, last, &parts, process),
        blocks: (last.blocks - first.blocks) / span,
        blocks_low: blocks_low(first, last),
        members: members as usize,
        growing,
        ratio: parts.slowing().0,
        age: None,
    };
    if parts.slows() {
        Growth::Slowing {
            ratio: steady.ratio,
            queue: Some(steady),
        }
    } else {
        Growth::Steady(steady)
    }
}

/// The rate of growth between two moments. Its interval holds what the parts
/// of the run differ by, the sampling, and at both ends two blocks or what
/// one interval between observations brings.
fn total_rate(
    group: &Group,
    first: &Sample,
    last: &Sample,
    parts: &Parts,
    process: &Process,
) -> Estimate {
    let span = last.at.as_secs_f64() - first.at.as_secs_f64();
    // Blocks that lived through both ends are the same sample in both.
    let mut kept = Sum::default();
    for survivor in group
        .survivors
        .iter()
        .filter(|survivor| survivor.born <= first.at)
    {
        kept.add(survivor.size as f64, survivor.weight);
    }
    let variance = (last.bytes_variance - kept.variance).max(0.0)
        + (first.bytes_variance - kept.variance).max(0.0);
    let largest = group
        .survivors
        .iter()
        .map(|survivor| survivor.size)
        .max()
        .unwrap_or(0) as f64;
    let margin =
        Z * variance.sqrt() / span + (2.0 * largest).max(parts.mean * process.interval) / span;
    let (low, high) = parts.bounds();
    Estimate {
        value: parts.mean,
        low: (low - margin).max(0.0),
        high: high + margin,
    }
}

fn blocks_low(first: &Sample, last: &Sample) -> f64 {
    let span = last.at.as_secs_f64() - first.at.as_secs_f64();
    let error = (last.blocks_variance - first.blocks_variance).abs().sqrt();
    ((last.blocks - first.blocks - Z * error) / span).max(0.0)
}
