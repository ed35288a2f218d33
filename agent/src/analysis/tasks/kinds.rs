//! Which types of futures keep tasks for ever.

use std::{collections::HashMap, time::Duration};

use crate::{
    analysis::{
        LEAST_OBSERVATIONS, Settings,
        shape::{Parts, drops},
    },
    finding::{Estimate, Verdict},
    ledger::tasks::{Count, Kind, KindHistory, Life, Phase, TaskId, TaskLedger, Work},
};

/// Tasks that are idle for less than this are nothing to speak of.
const LEAST_IDLE: Duration = Duration::from_secs(2);
/// Part of a run that a task must have been idle for.
const PART_OF_RUN: u32 = 4;
/// The number of all tasks of the type must grow by this share of what stays.
const NET: f64 = 0.5;

/// Tasks of one type that stay.
#[derive(Clone, Debug)]
pub(super) struct Staying {
    /// Their type.
    pub(super) kind: Kind,
    /// What they are.
    pub(super) verdict: Verdict,
    /// More of them every second.
    pub(super) tasks_per_s: Estimate,
    /// Parts of the run in which they grew, of how many.
    pub(super) growing: (usize, usize),
    /// Those that show it.
    pub(super) members: HashMap<TaskId, Life>,
    /// Others of the type that are too young to tell: their cells.
    pub(super) young: HashMap<TaskId, u64>,
    /// Other tasks of the type that are alive.
    pub(super) others: usize,
    /// Tasks of the type that ended, and the longest life of one.
    pub(super) ended: (u64, Duration),
    /// Length of the observation.
    pub(super) span: Duration,
    /// Readings of the table.
    pub(super) readings: usize,
    /// End of the last one.
    pub(super) now: Duration,
}

impl Staying {
    /// Growth of their cells in bytes per second.
    pub(super) fn rate(&self) -> Estimate {
        self.tasks_per_s.scaled(self.kind.cell_bytes as f64)
    }
}

/// Growth in number.
struct Growth {
    per_s: Estimate,
    growing: (usize, usize),
}

/// Every type with tasks that stay.
pub(super) fn staying(ledger: &TaskLedger, settings: &Settings) -> Vec<Staying> {
    let readings = ledger.readings();
    let (Some((begin, _)), Some((_, now))) = (readings.first(), readings.last()) else {
        return Vec::new();
    };
    let (begin, now) = (*begin, *now);
    let span = now.saturating_sub(begin);
    if readings.len() < LEAST_OBSERVATIONS || span < settings.least_observed {
        return Vec::new();
    }
    let mut members: HashMap<(usize, bool), HashMap<TaskId, Life>> = HashMap::new();
    let mut young: HashMap<usize, HashMap<TaskId, u64>> = HashMap::new();
    for (task, life) in ledger.tasks() {
        let Some(index) = life.kind else { continue };
        let Some(history) = ledger.kinds().get(index) else {
            continue;
        };
        if history.kind.work != Work::Future {
            continue;
        }
        let complete = life.phase == Phase::Complete;
        let long = patience(history, span, settings);
        if !complete
            && life
                .spawned
                .ago(now)
                .1
                .is_some_and(|most| most < long + long / 2)
        {
            young.entry(index).or_default().insert(task, life.cell);
        } else if complete || is_stuck(&life, long, now, span) {
            members
                .entry((index, complete))
                .or_default()
                .insert(task, life);
        }
    }
    let mut found = Vec::new();
    for ((index, complete), members) in members {
        let Some(history) = ledger.kinds().get(index) else {
            continue;
        };
        let growth = if complete {
            unreaped(history, readings, settings)
        } else {
            stuck(
                history,
                &members,
                readings,
                patience(history, span, settings),
                settings,
            )
        };
        let Some(growth) = growth else { continue };
        let young = if complete {
            HashMap::new()
        } else {
            young.remove(&index).unwrap_or_default()
        };
        let alive = history
            .counts
            .last()
            .map_or(0, |count| count.alive as usize);
        let staying = Staying {
            kind: history.kind.clone(),
            verdict: if complete {
                Verdict::UnreapedTask
            } else {
                Verdict::StuckTask
            },
            tasks_per_s: growth.per_s,
            growing: growth.growing,
            others: if complete {
                alive
            } else {
                alive.saturating_sub(members.len() + young.len())
            },
            members,
            young,
            ended: (history.ended.tasks, history.ended.longest),
            span,
            readings: readings.len(),
            now,
        };
        if staying.rate().value >= settings.least_rate {
            found.push(staying);
        }
    }
    found.sort_by(|a, b| {
        let rate = |staying: &Staying| staying.rate().value;
        rate(b)
            .total_cmp(&rate(a))
            .then_with(|| a.kind.key.cmp(&b.kind.key))
            .then(a.verdict.cmp(&b.verdict))
    });
    found
}

/// For how long a task must be idle before it is a suspect: far longer than
/// the others of its type lived.
fn patience(history: &KindHistory, span: Duration, settings: &Settings) -> Duration {
    let longest =
        Duration::try_from_secs_f64(history.ended.longest.as_secs_f64() * settings.lifetimes);
    longest
        .unwrap_or(Duration::MAX)
        .max(span / PART_OF_RUN)
        .max(LEAST_IDLE)
}

/// Whether a task is alive, and idle for nearly all that is known of its life.
fn is_stuck(life: &Life, patience: Duration, now: Duration, span: Duration) -> bool {
    let Some((idle, _)) = life.idle(now) else {
        return false;
    };
    let age = life
        .spawned
        .after
        .map_or(span, |after| now.saturating_sub(after));
    idle >= patience && idle >= age / 2
}

fn seconds(reading: &(Duration, Duration)) -> f64 {
    reading.1.as_secs_f64()
}

fn series(
    history: &KindHistory,
    readings: &[(Duration, Duration)],
    number: fn(&Count) -> u32,
) -> Vec<(f64, f64)> {
    readings
        .iter()
        .zip(&history.counts)
        .map(|(reading, count)| (seconds(reading), f64::from(number(count))))
        .collect()
}

/// Growth of a number of tasks: in enough parts of the run, to the end, not
/// slowing, and never falling back by much.
fn steady(series: &[(f64, f64)], settings: &Settings) -> Option<Growth> {
    // What comes and goes varies like a Poisson number.
    let with_errors: Vec<(f64, f64, f64)> = series
        .iter()
        .map(|(at, number)| (*at, *number, number.sqrt()))
        .collect();
    let grown = series.last()?.1 - series.first()?.1;
    let parts = Parts::of(series)?;
    let last = parts.rates.last()?;
    if grown < f64::from(settings.least_members)
        || !drops(&with_errors).is_empty()
        || parts.growing() < settings.least_growths as usize
        || parts.growing() * 2 < parts.rates.len()
        || *last <= 0.0
        || parts.slows()
    {
        return None;
    }
    let (low, high) = parts.bounds();
    Some(Growth {
        per_s: Estimate {
            value: parts.mean,
            low: low.clamp(0.0, parts.mean),
            high: high.max(parts.mean),
        },
        growing: (parts.growing(), parts.rates.len()),
    })
}

/// Finished tasks that are still held, ever more of them.
fn unreaped(
    history: &KindHistory,
    readings: &[(Duration, Duration)],
    settings: &Settings,
) -> Option<Growth> {
    steady(&series(history, readings, |count| count.complete), settings)
}

/// Tasks that were spawned during the run and idle ever since.
fn stuck(
    history: &KindHistory,
    members: &HashMap<TaskId, Life>,
    readings: &[(Duration, Duration)],
    patience: Duration,
    settings: &Settings,
) -> Option<Growth> {
    // Only tasks that are old enough can show that they stay.
    let now = readings.last()?.1;
    let old = readings
        .iter()
        .take_while(|(begin, _)| now.saturating_sub(*begin) >= patience + patience / 2);
    let mut born: Vec<Duration> = members.values().map(|life| life.spawned.until).collect();
    born.sort_unstable();
    let staying: Vec<(f64, f64)> = old
        .map(|reading| {
            // To the millisecond, as spawn times are kept.
            let end = reading.1 + Duration::from_millis(1);
            let number = born.partition_point(|at| *at <= end);
            (seconds(reading), number as f64)
        })
        .collect();
    let growth = steady(&staying, settings)?;
    // Where others of the type leave instead, it is no growth.
    let all = series(history, readings, |count| count.alive);
    let net = Parts::of(&all)?;
    (net.mean >= NET * growth.per_s.value && !net.slows()).then_some(growth)
}
