//! Evidence and advice about tasks in words.

use std::time::Duration;

use super::{EVIDENCE, kinds::Staying};
use crate::{
    finding::{
        Evidence, Text, Verdict,
        units::{bytes, count, rate, time},
    },
    ledger::tasks::Kind,
};

/// What a type is called.
pub(super) fn name(kind: &Kind) -> String {
    let name = kind.name.as_ref().or(kind.location.as_ref());
    name.map_or_else(
        || "an unnamed future".to_owned(),
        |name| Text::symbol(name).to_string(),
    )
}

pub(super) fn evidence(staying: &Staying, further_sites: usize) -> Vec<Evidence> {
    let kind = &staying.kind;
    let (name, number) = (name(kind), staying.members.len() as f64);
    let growth = format!(
        "{} more every second for {}, in {} of {} parts of that time, by {} readings of the task table; a cell takes {}, so that their cells alone grow by {}",
        per_second(staying.tasks_per_s.value),
        time(staying.span),
        staying.growing.0,
        staying.growing.1,
        staying.readings,
        bytes(kind.cell_bytes as f64),
        rate(staying.rate().value),
    );
    let mut lines = vec![Evidence {
        kind: EVIDENCE,
        text: match staying.verdict {
            Verdict::UnreapedTask => format!(
                "{} tasks of {name} have ended and are still held: {growth}.",
                count(number)
            ),
            _ => format!(
                "{} tasks of {name} are alive without any sign of activity since shortly after their start: {growth}.",
                count(number)
            ),
        },
        value: Some(number),
    }];
    lines.push(match staying.verdict {
        Verdict::UnreapedTask => handles(staying),
        _ => idle(staying),
    });
    if further_sites > 0 {
        lines.push(Evidence {
            kind: "tasks-sites",
            text: format!(
                "{} other allocation {} of the same tasks' memory is counted here.",
                count(further_sites as f64),
                if further_sites == 1 { "site" } else { "sites" }
            ),
            value: Some(further_sites as f64),
        });
    }
    lines
}

fn per_second(value: f64) -> String {
    if value >= 10.0 {
        count(value)
    } else {
        format!("{value:.1}")
    }
}

/// Who holds finished tasks.
fn handles(staying: &Staying) -> Evidence {
    let all = staying.members.len();
    let held = staying
        .members
        .values()
        .filter(|life| life.join_handle)
        .count();
    let text = if held * 2 > all {
        format!(
            "The join handle of {} of them is kept, and nobody has taken the result.",
            count(held as f64)
        )
    } else {
        format!(
            "The join handle of only {} of them is kept; the others are held by a waker or an abort handle.",
            count(held as f64)
        )
    };
    Evidence {
        kind: "tasks-held",
        text,
        value: Some(held as f64),
    }
}

/// For how long they are idle, beside what is usual.
fn idle(staying: &Staying) -> Evidence {
    let times: Vec<Duration> = staying
        .members
        .values()
        .filter_map(|life| Some(life.idle(staying.now)?.0))
        .collect();
    let longest = times.iter().max().copied().unwrap_or_default();
    let shortest = times.iter().min().copied().unwrap_or_default();
    let usual = match staying.ended {
        (0, _) => "No task of this type ended meanwhile".to_owned(),
        (number, life) => format!(
            "{} tasks of this type ended meanwhile, after at most {}",
            count(number as f64),
            time(life)
        ),
    };
    Evidence {
        kind: "tasks-idle",
        text: format!(
            "They are idle for at least {} to {}. {usual}; {} others are alive.",
            time(shortest),
            time(longest),
            count(staying.others as f64)
        ),
        value: Some(longest.as_secs_f64()),
    }
}

/// What a finding without allocations rests on.
pub(super) fn alone() -> Evidence {
    Evidence {
        kind: "confidence",
        text:
            "Suspected only: this rests on the table of tasks; where they are spawned was not seen."
                .to_owned(),
        value: None,
    }
}

pub(super) fn advice(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::UnreapedTask => {
            "Take the results of finished tasks while you spawn new ones: call JoinSet::join_next or try_join_next, await the JoinHandle, \
             or drop it where nobody wants the result. A waker or an AbortHandle that is kept holds its task as well. Until that is mended, \
             restart the process before the memory runs out."
        }
        _ => {
            "Find what these tasks wait for and who was to wake them: a notification that is never sent, a channel whose other end is kept \
             but not used, a lock, a peer that has gone away. Give the wait a time limit, or end the task with what it serves. If they are \
             connections that are meant to stay, limit their number. Until that is mended, restart the process before the memory runs out."
        }
    }
}
