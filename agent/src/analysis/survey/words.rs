//! Evidence and advice of a survey in words, for somebody who was woken up
//! by them.

use std::time::Duration;

use crate::{
    analysis::{
        Context, Settings,
        process::{Against, Process},
        words::memory,
    },
    finding::{
        Confidence, Evidence, Verdict,
        units::{bytes, count, rate, time},
    },
    ledger::survivors::{SurveyGroup, Survivors, age},
};

use super::{
    curve::Plateau,
    site::{Found, Signs},
    span,
};

pub(super) fn evidence(
    found: &Found,
    group: &SurveyGroup,
    survivors: &Survivors,
    process: &Process,
    context: &Context,
    settings: &Settings,
) -> Vec<Evidence> {
    let (Some(verdict), Some(plateau)) = (found.verdict, found.kept.curve.plateau) else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    lines.extend(against(found));
    lines.push(growth(found, verdict, survivors));
    lines.push(windows(group, survivors, context));
    lines.push(survival(found, &plateau));
    lines.push(signs(found, &plateau));
    lines.extend(memory(found.witness, process));
    if verdict == Verdict::UnboundedGrowth {
        lines.extend(limit(found, settings));
        if found.confidence < Confidence::Strong {
            lines.push(doubt(found, &plateau, group, survivors, process, settings));
        }
    }
    lines
}

fn growth(found: &Found, verdict: Verdict, survivors: &Survivors) -> Evidence {
    let span = time(Duration::from_secs_f64(span(survivors)));
    let growing = found.trend.as_ref().map_or((0, 0), |trend| trend.growing);
    let ratio = found.trend.as_ref().map_or(1.0, super::trend::Trend::ratio);
    let ceased = found.trend.as_ref().and_then(|trend| trend.ceased);
    let (kind, text, value) = match (verdict, ceased) {
        (Verdict::Warming, _) => (
            "slowing",
            format!(
                "Fewer and fewer blocks stay: at the end {:.0} % of what stayed at the beginning.",
                ratio * 100.0
            ),
            ratio,
        ),
        (_, Some(since)) => (
            "ceased",
            format!(
                "Blocks stayed, but none of those allocated in the last {}.",
                time(Duration::from_secs_f64(since))
            ),
            since,
        ),
        _ => (
            "growth",
            format!(
                "{} stay of every second's allocations (95 %: {} to {}), in {} of {} parts of {span}.",
                bytes(found.rate.value),
                bytes(found.rate.low),
                bytes(found.rate.high),
                growing.0,
                growing.1,
            ),
            found.rate.value,
        ),
    };
    Evidence {
        kind,
        text,
        value: Some(value),
    }
}

/// What the account rests on.
fn windows(group: &SurveyGroup, survivors: &Survivors, context: &Context) -> Evidence {
    let mean = context.sampling_mean.max(survivors.sampling_mean());
    let sampling = if mean > 1 {
        format!("about one sample per {} allocated", bytes(mean as f64))
    } else {
        "every allocation taken".to_owned()
    };
    let born: u32 = group
        .windows
        .iter()
        .fold(0, |sum, window| sum.saturating_add(window.born.sampled));
    let sampled = group.sampled.max(u64::from(born));
    Evidence {
        kind: "sample",
        text: format!(
            "Seen in {} windows, open for {} in all, {sampling}: {} blocks of this site, of which {} were freed within their window \
             and {} outlived it.",
            survivors.window_count(),
            time(Duration::from_secs_f64(survivors.open_time())),
            count(sampled as f64),
            count(group.freed as f64),
            count(f64::from(born)),
        ),
        value: Some(sampled as f64),
    }
}

fn survival(found: &Found, plateau: &Plateau) -> Evidence {
    let curve = &found.kept.curve;
    let end = curve.row(plateau.to);
    let text = format!(
        "{} were still there {} later. Of {} that were read again at the age of {}, {} were; the share that stays has not fallen since {}.",
        count(f64::from(plateau.members)),
        time(age(plateau.counted)),
        count(f64::from(end.known)),
        time(age(plateau.to)),
        count(f64::from(end.known.saturating_sub(end.gone))),
        if plateau.from == 0 {
            "the windows closed".to_owned()
        } else {
            format!("the age of {}", time(age(plateau.from)))
        },
    );
    Evidence {
        kind: "survivors",
        text,
        value: Some(f64::from(plateau.members)),
    }
}

fn signs(found: &Found, plateau: &Plateau) -> Evidence {
    let (text, value) = match found.signs {
        Signs::Positive => (
            "The allocator's own marks show that these blocks live: free would have changed them."
                .to_owned(),
            1.0 - plateau.unchanged - plateau.mutated,
        ),
        Signs::Mutated => (
            "By the allocator's marks this memory is in use, but its contents have changed: somebody writes to these blocks, or they were \
             freed and given out again."
                .to_owned(),
            plateau.mutated,
        ),
        Signs::Unchanged(reuse) => (
            format!(
                "The contents of these blocks are unchanged. This allocator's free would not change them, but freed blocks of this size \
                 are given out again within {}.",
                time(reuse)
            ),
            plateau.unchanged,
        ),
        Signs::Unproven => (
            "The contents of these blocks are unchanged, which proves little: this allocator's free would not change them, and how soon it \
             gives out blocks of this size again was not seen."
                .to_owned(),
            plateau.unchanged,
        ),
    };
    Evidence {
        kind: "signs",
        text,
        value: Some(value),
    }
}

fn against(found: &Found) -> Option<Evidence> {
    let witness = found.witness?;
    let (kind, text) = match witness.against? {
        Against::Blocks => (
            "process-blocks",
            "Blocks of this site stay, but the process frees as many blocks as it allocates. So behaves a cache that is full.",
        ),
        Against::Memory => (
            "process-memory",
            "Blocks of this site stay, but the memory of the process does not grow. So behaves a cache that is full: old entries, from \
             before the observation, make room for new ones.",
        ),
    };
    Some(Evidence {
        kind,
        text: text.to_owned(),
        value: None,
    })
}

fn limit(found: &Found, settings: &Settings) -> Option<Evidence> {
    let left = found.time_to_limit?;
    let sure = found.confidence >= Confidence::Strong && left <= settings.page_within;
    Some(Evidence {
        kind: if sure { "limit-near" } else { "limit" },
        text: format!(
            "At {} the memory limit is reached in {}.",
            rate(found.rate.value),
            time(left)
        ),
        value: Some(left.as_secs_f64()),
    })
}

/// Why it is not surer.
fn doubt(
    found: &Found,
    plateau: &Plateau,
    group: &SurveyGroup,
    survivors: &Survivors,
    process: &Process,
    settings: &Settings,
) -> Evidence {
    let lifetime = group.longest_ended.mul_f64(settings.lifetimes);
    let agrees = process.memory_growth().is_some()
        && found.witness.is_none_or(|witness| !witness.memory_flat);
    let text = if age(plateau.to) < lifetime {
        format!(
            "Suspected only: blocks of this site were seen to live up to {}; observe for more than {} to tell.",
            time(group.longest_ended),
            time(lifetime)
        )
    } else if !plateau.decade {
        "Suspected only: the share that stays has not been level for long, compared with the ages before.".to_owned()
    } else if matches!(found.signs, Signs::Unproven | Signs::Mutated) {
        "Suspected only: no sign of this allocator proves that these blocks are the same as before."
            .to_owned()
    } else if !agrees {
        "Suspected only: the memory of the process does not surely grow.".to_owned()
    } else if span(survivors) < settings.growth_confirm.as_secs_f64() {
        format!(
            "Suspected only: a cache that still fills looks the same. Growth that does not slow for {} is no cache.",
            time(settings.growth_confirm)
        )
    } else {
        "Suspected only: the growth has begun to slow, or the process does not grow by as much."
            .to_owned()
    };
    Evidence {
        kind: "confidence",
        text,
        value: Some(span(survivors)),
    }
}

pub(super) fn advice(found: &Found) -> &'static str {
    match found.verdict {
        Some(Verdict::UnboundedGrowth) => {
            "Find what keeps the memory allocated here, and when it is meant to be removed: a map or list without a limit, a reference \
             cycle, a task that never ends, a forgotten free. If it is a cache, give it a limit. Until that is mended, restart the \
             process before the memory runs out."
        }
        Some(Verdict::Warming) => {
            "Nothing to do now: this looks like start-up or a cache that fills. Look again later if the process keeps growing."
        }
        Some(Verdict::Bounded | Verdict::Sawtooth) => {
            "Nothing to do: what is added here is released again, or was added once."
        }
        // Of other kinds of growth, `residence` speaks.
        _ => "",
    }
}
