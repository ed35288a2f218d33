use proptest::prelude::*;

use super::*;

const MODULE: u64 = 0x5555_0000_0000;

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn id(id: u64) -> TaskId {
    TaskId { module: MODULE, id }
}

fn seen(id: u64, phase: Phase, mark: u64) -> Seen {
    Seen {
        task: TaskId { module: MODULE, id },
        kind: 0,
        cell: id * 128,
        phase,
        mark: Some(mark),
        join_handle: false,
    }
}

fn reading(at: f64, tasks: Vec<Seen>) -> TaskReading {
    TaskReading {
        begin: s(at),
        end: s(at + 0.1),
        kinds: vec![Kind {
            key: KindKey(1, None),
            ..Kind::default()
        }],
        tasks,
        ..TaskReading::default()
    }
}

fn none() -> HashSet<TaskId> {
    HashSet::new()
}

#[test]
fn a_life_from_spawn_to_end() {
    let mut ledger = TaskLedger::default();
    let holders = HashSet::from([id(2)]);
    ledger.read(&reading(10.0, vec![seen(1, Phase::Idle, 0)]), &holders);
    ledger.read(
        &reading(20.0, vec![seen(1, Phase::Idle, 0), seen(2, Phase::Idle, 0)]),
        &holders,
    );
    let old = ledger.life(id(1)).unwrap();
    assert_eq!(old.spawned.after, None);
    let (least, most) = old.idle(s(20.1)).unwrap();
    assert_eq!((least, most), (s(10.0), None), "never seen active");
    let young = ledger.life(id(2)).unwrap();
    assert_eq!(young.spawned.ago(s(20.1)), (s(0.0), Some(s(10.1))));

    ledger.read(
        &reading(
            30.0,
            vec![seen(1, Phase::Idle, 1), seen(2, Phase::Complete, 9)],
        ),
        &holders,
    );
    let (least, most) = ledger.life(id(1)).unwrap().idle(s(40.0)).unwrap();
    assert_eq!((least, most), (s(9.9), Some(s(20.0))), "its future changed");
    let done = ledger.life(id(2)).unwrap();
    assert_eq!((done.phase, done.idle(s(40.0))), (Phase::Complete, None));
    assert_eq!(done.ended.unwrap().after, Some(s(20.0)));

    ledger.read(&reading(40.0, Vec::new()), &holders);
    assert_eq!(ledger.life(id(1)), None, "it holds nothing");
    let gone = ledger.life(id(2)).unwrap();
    assert_eq!(gone.phase, Phase::Finished);
    assert_eq!(gone.ended.unwrap().until, s(30.1), "when it was complete");
    let history = &ledger.kinds()[0];
    let alive: Vec<u32> = history.counts.iter().map(|count| count.alive).collect();
    assert_eq!(alive, [1, 2, 1, 0]);
    assert_eq!(history.counts[2].complete, 1);
    assert_eq!(history.ended.tasks, 2);
    ledger.read(&reading(50.0, Vec::new()), &none());
    assert_eq!(ledger.life(id(2)), None, "its blocks are gone");
}

#[test]
fn allocations_and_frees_sharpen_the_times() {
    let mut ledger = TaskLedger::default();
    ledger.read(&reading(10.0, vec![seen(1, Phase::Idle, 0)]), &none());
    ledger.allocated(id(1), s(15.0));
    ledger.allocated(id(7), s(16.0));
    let holders = HashSet::from([id(1), id(7)]);
    let (least, most) = ledger.life(id(1)).unwrap().idle(s(18.0)).unwrap();
    assert_eq!((least, most), (s(3.0), Some(s(3.0))));
    ledger.freed(id(1), s(17.0), s(18.0));
    // as late as the reading itself: it may have been spawned meanwhile
    ledger.allocated(id(8), s(20.05));
    ledger.read(&reading(20.0, Vec::new()), &holders);
    let ended = ledger.life(id(1)).unwrap().ended.unwrap();
    assert_eq!((ended.after, ended.until), (Some(s(17.0)), s(18.0)));
    let unseen = ledger.life(id(7)).unwrap();
    assert_eq!((unseen.kind, unseen.phase), (None, Phase::Finished));
    assert_eq!(unseen.ended.unwrap().after, Some(s(16.0)));
    assert_eq!(ledger.life(id(8)), None);
}

#[test]
fn what_cannot_be_seen_is_not_called_idle_or_ended() {
    let mut ledger = TaskLedger::default();
    let dark = Seen {
        mark: None,
        ..seen(1, Phase::Idle, 0)
    };
    ledger.read(&reading(10.0, vec![dark]), &none());
    ledger.read(&reading(20.0, vec![dark]), &none());
    let (least, _) = ledger.life(id(1)).unwrap().idle(s(20.1)).unwrap();
    assert_eq!(least, s(0.0));
    let partial = TaskReading {
        partial: true,
        ..reading(30.0, Vec::new())
    };
    ledger.read(&partial, &HashSet::from([id(1)]));
    assert_eq!(ledger.life(id(1)), None);
    assert_eq!(ledger.kinds()[0].ended.tasks, 0);
    // back again: nobody knows since when it lives
    ledger.read(&reading(40.0, vec![seen(1, Phase::Idle, 3)]), &none());
    assert_eq!(ledger.life(id(1)).unwrap().spawned.after, None);
    ledger.read(&reading(35.0, Vec::new()), &none());
    assert_eq!(ledger.losses().out_of_order, 1);
}

#[test]
fn everything_is_bounded() {
    let mut ledger = TaskLedger::default();
    let mut many = reading(0.0, Vec::new());
    many.kinds = (0..TaskLedger::MAX_KINDS as u64 + 10)
        .map(|key| Kind {
            key: KindKey(key, None),
            ..Kind::default()
        })
        .collect();
    many.tasks = (0..many.kinds.len())
        .map(|kind| Seen {
            kind,
            ..seen(kind as u64 + 1, Phase::Idle, 0)
        })
        .collect();
    ledger.read(&many, &none());
    assert_eq!(ledger.kinds().len(), TaskLedger::MAX_KINDS);
    assert_eq!(ledger.losses().kinds, 10);
    for at in 1..500 {
        ledger.read(&reading(f64::from(at), Vec::new()), &none());
    }
    assert!(ledger.readings().len() <= TaskLedger::MAX_READINGS);
    let history = &ledger.kinds()[0];
    assert_eq!(history.counts.len(), ledger.readings().len());
    assert_eq!(history.counts[0].alive, 1, "the first one stays");
    for task in 0..2 * TaskLedger::MAX_ENDED as u64 {
        ledger.allocated(id(10_000 + task), s(600.0));
    }
    let holders = (0..2 * TaskLedger::MAX_ENDED as u64)
        .map(|task| id(10_000 + task))
        .collect();
    ledger.read(&reading(700.0, Vec::new()), &holders);
    assert!(ledger.unseen.is_empty() && ledger.gone.len() == TaskLedger::MAX_ENDED);
}

/// A task of a generated program: when it is spawned, ends, is freed, and
/// when it is polled.
#[derive(Clone, Debug)]
struct True {
    spawned: f64,
    ended: f64,
    freed: f64,
    polls: Vec<f64>,
}

fn tasks() -> impl Strategy<Value = Vec<True>> {
    let task = (
        0.0..100.0f64,
        0.0..80.0f64,
        prop_oneof![Just(0.0), 0.0..40.0f64],
        proptest::collection::vec(0.0..1.0f64, 0..5),
    );
    let task = task.prop_map(|(spawned, life, held, polls)| {
        let ended = spawned + life;
        True {
            spawned,
            ended,
            freed: ended + held,
            polls: polls.iter().map(|part| spawned + part * life).collect(),
        }
    });
    proptest::collection::vec(task, 1..12).prop_map(|mut tasks| {
        tasks.sort_by(|a, b| a.spawned.total_cmp(&b.spawned));
        tasks
    })
}

fn contains(within: Within, truth: f64) -> bool {
    // times are kept in milliseconds
    within
        .after
        .is_none_or(|after| after.as_secs_f64() <= truth + 0.002)
        && truth <= within.until.as_secs_f64() + 0.002
}

proptest! {
    #[test]
    fn the_truth_is_within_what_is_told(
        tasks in tasks(),
        steps in proptest::collection::vec((0.1..30.0f64, 0.0..3.0f64, 0.0..1.0f64), 1..8),
    ) {
        let mut ledger = TaskLedger::default();
        let all: HashSet<TaskId> = (1..=tasks.len() as u64).map(id).collect();
        let mut at = 0.0;
        for (index, (pause, length, share)) in steps.iter().enumerate() {
            let begin = at + pause;
            at = begin + length;
            let mut shown = HashMap::new();
            for (number, task) in tasks.iter().enumerate() {
                // every place in memory is read at its own moment
                let moment = begin + length * ((share * 7.0 + number as f64 * 0.37).fract());
                if task.spawned <= moment && moment < task.freed {
                    shown.insert(number, moment);
                }
            }
            let list = shown.iter().map(|(number, moment)| {
                let task = &tasks[*number];
                let polls = task.polls.iter().filter(|poll| **poll <= *moment).count() as u64;
                let phase = if task.ended <= *moment { Phase::Complete } else { Phase::Idle };
                seen(*number as u64 + 1, phase, polls)
            });
            ledger.read(&TaskReading {
                begin: s(begin),
                end: s(at),
                ..reading(0.0, list.collect())
            }, &all);
            for (number, task) in tasks.iter().enumerate() {
                let life = ledger.life(id(number as u64 + 1));
                if let Some(moment) = shown.get(&number) {
                    let life = life.expect("a task that was shown");
                    prop_assert!(contains(life.spawned, task.spawned), "{index} {task:?} {life:?}");
                    if life.phase == Phase::Idle {
                        let polls = task.polls.iter().copied().filter(|poll| poll <= moment);
                        let last = polls.fold(task.spawned, f64::max);
                        prop_assert!(contains(life.active, last), "{index} {task:?} {life:?}");
                    }
                }
                if let Some(ended) = life.and_then(|life| life.ended) {
                    prop_assert!(contains(ended, task.ended), "{index} {task:?} {life:?}");
                }
            }
            let last = ledger.kinds()[0].counts.last().unwrap();
            prop_assert_eq!((last.alive + last.complete) as usize, shown.len());
        }
    }
}
