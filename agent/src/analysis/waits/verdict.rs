//! Which waits keep memory from being released: the verdict `blocked-thread`.

use std::{collections::HashSet, time::Duration};

use super::{Class, On, Place};
use crate::{
    analysis::Identity,
    finding::{
        Confidence, Estimate, Evidence, Finding, Verdict, fingerprint,
        units::{rate, time},
    },
};

/// Verdicts that say that memory grows at a site.
const GROWING: [Verdict; 3] = [
    Verdict::UnboundedGrowth,
    Verdict::UnreapedTask,
    Verdict::StuckTask,
];
/// A wait must have gone on for this share of the observation …
const SHARE: f64 = 0.5;
/// … but not less than this …
const LEAST: Duration = Duration::from_secs(3);
/// … and need not for longer than this: no lock is held so long on purpose.
const ENOUGH: Duration = Duration::from_mins(5);

/// Findings for threads that wait while memory grows, and a line of evidence
/// at what grows. `observed` is the length of the observation.
pub fn blame(
    findings: &mut Vec<Finding>,
    places: &[Place],
    observed: Duration,
    identity: &Identity,
) {
    let growing: Vec<usize> = findings
        .iter()
        .enumerate()
        .filter(|(_, finding)| GROWING.contains(&finding.verdict))
        .map(|(index, _)| index)
        .collect();
    if growing.is_empty() {
        return;
    }
    let long = observed.mul_f64(SHARE).clamp(LEAST, ENOUGH);
    let stuck: Vec<&Place> = places
        .iter()
        .filter(|place| {
            place.open.is_some_and(|age| age >= long)
                && place.waiting.class.is_odd(place.waiting.on)
                && !waits_in_line(place, places)
        })
        .collect();
    let mut sum = Estimate::default();
    for index in &growing {
        if let Some(finding) = findings.get(*index) {
            sum.value += finding.leak_bytes_per_s.value;
            sum.low += finding.leak_bytes_per_s.low;
            sum.high += finding.leak_bytes_per_s.high;
        }
    }
    let mut seen = HashSet::new();
    for place in stuck {
        let Some(finding) = finding(place, sum, growing.len(), identity) else {
            continue;
        };
        if !seen.insert(finding.fingerprint) {
            continue;
        }
        for index in &growing {
            if let Some(growing) = findings.get_mut(*index) {
                growing.evidence.push(beside(place));
            }
        }
        findings.push(finding);
    }
}

/// Workers that take turns at one lock to wait for work: the one that has it
/// waits in the same function for something else.
fn waits_in_line(place: &Place, places: &[Place]) -> bool {
    let Some(function) = place.functions.first() else {
        return false;
    };
    place.waiting.on == On::Lock
        && places.iter().any(|other| {
            !matches!(other.waiting.on, On::Lock | On::Unknown)
                && other.open.is_some()
                && other.functions.contains(function)
        })
}

fn finding(place: &Place, growth: Estimate, sites: usize, identity: &Identity) -> Option<Finding> {
    let waiting = &place.waiting;
    let open = place.open?;
    if place.functions.is_empty() {
        return None;
    }
    let fingerprint = fingerprint(&identity.exe_basename, &place.functions);
    let verdict = Verdict::BlockedThread;
    let mut evidence = vec![
        Evidence {
            kind: "open-wait",
            text: format!(
                "{} {} {} there {}, and {} now.",
                threads(waiting.open),
                if waiting.open == 1 {
                    "has been waiting"
                } else {
                    "have been waiting"
                },
                waiting.on.words(),
                since(place, open),
                if waiting.open == 1 { "waits" } else { "wait" },
            ),
            value: Some(open.as_secs_f64()),
        },
        Evidence {
            kind: "growth",
            text: format!(
                "Meanwhile the process's memory grows by {} at {}.",
                rate(growth.value),
                if sites == 1 {
                    "one place".to_owned()
                } else {
                    format!("{sites} places")
                },
            ),
            value: Some(growth.value),
        },
    ];
    if waiting.class == Class::Task {
        evidence.push(Evidence {
            kind: "inside-poll",
            text: format!(
                "It waits inside the poll of {}: neither the task nor the worker thread does anything else until then.",
                waiting
                    .tasks
                    .first()
                    .map_or_else(|| "a Tokio task".to_owned(), |id| format!("Tokio task {id}"))
            ),
            value: None,
        });
    }
    Some(Finding {
        fingerprint,
        id: format!("{fingerprint}-{}-{}", identity.pid, identity.start_time),
        verdict,
        confidence: Confidence::Suspected,
        leak: verdict.leak(),
        leak_bytes_per_s: growth,
        live_bytes: Estimate::default(),
        live_blocks: Estimate::default(),
        oldest_s: None,
        site: waiting.site.clone(),
        // They wait, and have not allocated what grows.
        tasks: Vec::new(),
        members: Vec::new(),
        evidence,
        advice: advice(waiting.class, waiting.on).to_owned(),
        time_to_limit_s: None,
        suppressed_by: None,
    })
}

/// What a growing finding is told.
fn beside(place: &Place) -> Evidence {
    let open = place.open.unwrap_or_default();
    let function = place.functions.first().map_or("", String::as_str);
    Evidence {
        kind: "blocked-thread",
        text: format!(
            "{} {} {} in {function} {}: if it is who should take this memory away, that is the reason.",
            threads(place.waiting.open),
            if place.waiting.open == 1 {
                "waits"
            } else {
                "wait"
            },
            place.waiting.on.words(),
            since(place, open),
        ),
        value: Some(open.as_secs_f64()),
    }
}

fn threads(number: u64) -> String {
    if number == 1 {
        "One thread".to_owned()
    } else {
        format!("{number} threads")
    }
}

fn since(place: &Place, open: Duration) -> String {
    if place.waiting.began_before {
        format!(
            "since before the observation began, {} at least",
            time(open)
        )
    } else {
        format!("for {}", time(open))
    }
}

fn advice(class: Class, on: On) -> &'static str {
    match (class, on) {
        (Class::Task, On::Lock) => {
            "Look for who holds this lock and why it is not released: a guard that lives across an await or a long call, two locks taken in opposite order, a thread that died with it. Inside a task, take locks for moments only, or use tokio's own."
        }
        (Class::Task, _) => {
            "A task must not block its worker thread: use tokio's own channels and waits and await them, or move this to spawn_blocking. Then look for why what it waits for does not come."
        }
        _ => {
            "Look for who holds this lock and why it is not released: a guard kept over a long call, two locks taken in opposite order, a thread that died with it."
        }
    }
}
