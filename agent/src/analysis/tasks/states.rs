//! What became of the tasks that a finding names.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{kinds::Staying, merge::Block};
use crate::{
    finding::{Finding, Role, Task, TaskCounts, Text, Verdict},
    ledger::tasks::{Kind, Life, TaskId, TaskLedger, Work},
};

/// Holders that a finding names.
const MAX_HOLDERS: usize = 5;

/// Fills in what is known of the tasks of findings, whose ids are those of
/// the Tokio in `module`, and counts all tasks; none before the first reading.
pub fn describe<'a>(
    findings: impl IntoIterator<Item = &'a mut Finding>,
    ledger: &TaskLedger,
    module: Option<u64>,
) -> Option<TaskCounts> {
    let now = ledger.now()?;
    for finding in findings {
        let allocated = finding
            .tasks
            .iter_mut()
            .filter(|task| task.role == Role::Allocated);
        for task in allocated {
            if let (Some(module), Some(id)) = (module, task.id)
                && let Some(life) = ledger.life(TaskId { module, id })
            {
                let kind = life.kind.and_then(|kind| ledger.kinds().get(kind));
                fill(task, kind.map(|history| &history.kind), &life, now);
            }
        }
    }
    Some(counts(ledger, now))
}

fn counts(ledger: &TaskLedger, now: Duration) -> TaskCounts {
    let begin = ledger.readings().first().map_or(now, |reading| reading.0);
    let long = now.saturating_sub(begin) / 2;
    let mut counts = TaskCounts::default();
    for (_, life) in ledger.tasks() {
        let work = life
            .kind
            .and_then(|kind| Some(ledger.kinds().get(kind)?.kind.work));
        if work == Some(Work::Runtime) {
            continue;
        }
        if life.phase.is_over() {
            counts.completed += 1;
            continue;
        }
        counts.live += 1;
        let idle = life.idle(now);
        counts.idle += u64::from(idle.is_some_and(|(least, _)| !long.is_zero() && least >= long));
    }
    counts
}

fn fill(task: &mut Task, kind: Option<&Kind>, life: &Life, now: Duration) {
    if let Some(kind) = kind {
        task.name = kind.name.as_ref().map(Text::symbol);
        task.location = kind.location.as_ref().map(Text::name);
    }
    task.state = Some(Text::name(life.phase.name()));
    if let Some((least, most)) = life.idle(now) {
        task.idle_s = Some(least.as_secs_f64());
        task.idle_most_s = most.as_ref().map(Duration::as_secs_f64);
    }
    if let Some(ended) = life.ended {
        let (least, most) = ended.ago(now);
        task.ended_s = Some(least.as_secs_f64());
        task.ended_most_s = most.as_ref().map(Duration::as_secs_f64);
    }
}

/// The oldest of the tasks that stay, with what they hold: their cell, and
/// what they allocated themselves.
pub(super) fn holders(staying: &Staying, blocks: &[Block]) -> Vec<Task> {
    let mut oldest: Vec<(&TaskId, &Life)> = staying.members.iter().collect();
    oldest.sort_by_key(|(task, life)| {
        let since = match staying.verdict {
            Verdict::UnreapedTask => life.ended.map_or(life.spawned.until, |end| end.until),
            _ => life.active.until,
        };
        (since, **task)
    });
    oldest.truncate(MAX_HOLDERS);
    let mut held: BTreeMap<TaskId, (f64, f64)> = oldest
        .iter()
        .map(|(task, _)| (**task, (1.0, staying.kind.cell_bytes as f64)))
        .collect();
    let cells: HashMap<u64, TaskId> = oldest
        .iter()
        .map(|(task, life)| (life.cell, **task))
        .collect();
    for block in blocks {
        if cells.contains_key(&block.address) {
            continue;
        }
        if let Some(held) = block.task.and_then(|task| held.get_mut(&task)) {
            held.0 += block.weight;
            held.1 += block.weight * block.size as f64;
        }
    }
    oldest
        .into_iter()
        .map(|(id, life)| {
            let (blocks, bytes) = held.get(id).copied().unwrap_or_default();
            let mut task = Task {
                id: Some(id.id),
                role: Role::Holds,
                blocks: blocks.round() as u64,
                bytes: bytes.round() as u64,
                ..Task::default()
            };
            fill(&mut task, Some(&staying.kind), life, staying.now);
            task
        })
        .collect()
}
