use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use super::*;
use crate::{
    analysis::{Context, Identity, Outcome, Settings, Stack, report::name_of},
    finding::{Confidence, Estimate, Finding, Role, Verdict},
    ledger::{
        StackId,
        tasks::{Kind, KindKey, Phase, Seen, TaskId, TaskLedger, TaskReading, Work},
    },
    output::sample::document,
};

/// Seconds of a generated run, and the time between readings.
const RUN: u64 = 60;
const PAUSE: u64 = 5;
/// A cell's bytes.
const CELL: u64 = 1024;

/// A task: when it was spawned, ended and freed, in seconds; it is active in
/// its first second only.
#[derive(Clone, Copy)]
struct Life(f64, f64, f64);

const EVER: f64 = 1e9;

fn waits(spawned: f64) -> Life {
    Life(spawned, EVER, EVER)
}

fn task(id: usize) -> TaskId {
    TaskId {
        module: 1,
        id: id as u64 + 1,
    }
}

fn cell(id: usize) -> u64 {
    0x7000_0000 + 1024 * id as u64
}

fn observed(lives: &[Life], work: Work) -> TaskLedger {
    let mut ledger = TaskLedger::default();
    for at in (0..=RUN).step_by(PAUSE as usize) {
        let now = at as f64;
        let tasks = lives
            .iter()
            .enumerate()
            .filter(|(_, life)| life.0 <= now && now < life.2)
            .map(|(id, life)| Seen {
                task: task(id),
                kind: 0,
                cell: cell(id),
                phase: if life.1 <= now {
                    Phase::Complete
                } else {
                    Phase::Idle
                },
                mark: Some(u64::from(now > life.0 + 1.0)),
                join_handle: true,
            });
        let reading = TaskReading {
            begin: Duration::from_secs(at),
            end: Duration::from_secs(at) + Duration::from_millis(50),
            kinds: vec![Kind {
                key: KindKey(1, None),
                name: Some("app::wait".to_owned()),
                location: Some("src/app.rs:3:5".to_owned()),
                cell_bytes: CELL,
                work,
            }],
            tasks: tasks.collect(),
            ..TaskReading::default()
        };
        ledger.read(&reading, &HashSet::new());
    }
    ledger
}

fn empty() -> Outcome {
    Outcome {
        findings: Vec::new(),
        not_leaks: Vec::new(),
        sites: Vec::new(),
        detection_limit: Ok(1.0),
        rss: None,
        explained_share: None,
    }
}

fn judged(ledger: &TaskLedger) -> Vec<Finding> {
    let mut outcome = empty();
    explain(
        &mut outcome,
        ledger,
        &[],
        &BTreeMap::new(),
        &Identity::default(),
        &Context::default(),
        &Settings::default(),
    );
    outcome.findings
}

fn found(lives: &[Life]) -> Vec<Finding> {
    judged(&observed(lives, Work::Future))
}

/// `number` lives, one every `pause` seconds.
fn every(pause: f64, number: u32, life: impl Fn(f64) -> Life) -> Vec<Life> {
    (0..number).map(|n| life(pause * f64::from(n))).collect()
}

#[test]
fn tasks_that_wait_for_ever_are_stuck() {
    let found = found(&every(0.5, 120, waits));
    let finding = &found[0];
    assert_eq!(found.len(), 1);
    assert_eq!(
        (finding.verdict, finding.confidence),
        (Verdict::StuckTask, Confidence::Suspected)
    );
    let rate = finding.leak_bytes_per_s;
    assert!(rate.covers(2.0 * CELL as f64), "{rate:?}");
    let holder = &finding.tasks[0];
    assert_eq!((holder.role, holder.id), (Role::Holds, Some(1)));
    assert_eq!(holder.name.as_ref().unwrap().as_str(), "app::wait");
    let (least, most) = (holder.idle_s.unwrap(), holder.idle_most_s);
    assert!((50.0..60.1).contains(&least), "{least}");
    assert!(most.is_none_or(|most| most >= least));
    let told = &finding.evidence[0].text;
    assert!(
        told.contains("tasks of app::wait are alive") && told.contains("2.0 more every second"),
        "{told}"
    );
}

#[test]
fn finished_tasks_that_are_held_are_unreaped() {
    let found = found(&every(0.5, 120, |at| Life(at, at + 1.5, EVER)));
    assert_eq!(found.len(), 1);
    let finding = &found[0];
    assert_eq!(finding.verdict, Verdict::UnreapedTask);
    assert!(finding.leak_bytes_per_s.covers(2.0 * CELL as f64));
    let holder = &finding.tasks[0];
    assert_eq!(holder.state.as_ref().unwrap().as_str(), "complete");
    assert!(holder.ended_s.unwrap() > 50.0);
    assert!(finding.evidence[1].text.contains("join handle"));
}

#[test]
fn healthy_programs_get_nothing() {
    let quiet: [(&str, Vec<Life>); 7] = [
        ("idle connections", every(0.0, 1000, |_| waits(-100.0))),
        (
            "connections that come and go",
            every(0.5, 320, |at| Life(at - 100.0, at - 60.0, at - 60.0)),
        ),
        (
            "connections that change hands: as many go as come",
            every(0.5, 120, waits)
                .into_iter()
                .chain(every(0.5, 120, |at| Life(-100.0, at, at)))
                .collect(),
        ),
        ("a pool that fills and stays", every(0.2, 100, waits)),
        (
            "results that are collected at once",
            every(0.2, 300, |at| Life(at, at + 1.0, at + 1.2)),
        ),
        (
            "results that are collected in batches",
            every(0.2, 300, |at| {
                Life(at, at + 1.0, ((at + 1.0) / 17.0).ceil() * 17.0)
            }),
        ),
        ("a few tasks", every(15.0, 4, waits)),
    ];
    for (name, lives) in quiet {
        let found = found(&lives);
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
    for work in [Work::Blocking, Work::Runtime] {
        assert!(judged(&observed(&every(0.5, 120, waits), work)).is_empty());
    }
}

/// Tasks that are not idle for far longer than others of the type lived are
/// just slow.
#[test]
fn others_of_the_type_set_the_measure() {
    let slow = every(0.5, 120, waits)
        .into_iter()
        .chain(every(0.5, 40, |at| Life(at, at + 25.0, at + 25.0)))
        .collect::<Vec<_>>();
    assert!(found(&slow).is_empty());
}

#[test]
fn no_readings_no_verdict() {
    assert!(judged(&TaskLedger::default()).is_empty());
    let findings: &mut [Finding] = &mut [];
    assert_eq!(describe(findings, &TaskLedger::default(), Some(1)), None);
}

#[test]
fn tasks_are_counted() {
    let lives: Vec<Life> = every(0.0, 30, |_| waits(-9.0))
        .into_iter()
        .chain([waits(58.0), Life(3.0, 4.0, EVER)])
        .collect();
    let findings: &mut [Finding] = &mut [];
    let counts = describe(findings, &observed(&lives, Work::Future), Some(1)).unwrap();
    assert_eq!((counts.live, counts.idle, counts.completed), (31, 30, 1));
}

/// A site that grows, and what of it belongs to the stuck tasks.
struct Case {
    confidence: Confidence,
    /// Cells of the tasks, blocks that the tasks allocated, and others.
    cells: usize,
    own: usize,
    others: usize,
}

fn merged(cases: &[Case], lives: &[Life]) -> Outcome {
    let identity = Identity {
        exe_basename: "server".to_owned(),
        ..Identity::default()
    };
    let (mut outcome, mut stacks, mut blocks) = (empty(), BTreeMap::new(), Vec::new());
    for (index, case) in cases.iter().enumerate() {
        let stack = StackId(index as u64);
        let sample = document("spawn").processes[0].findings[0].clone();
        stacks.insert(stack, Stack::default());
        outcome.findings.push(Finding {
            fingerprint: name_of(&Err(stack), &identity),
            confidence: case.confidence,
            leak_bytes_per_s: Estimate::exact(1000.0 / (index + 1) as f64),
            ..sample
        });
        let block = |address, task| Block {
            address,
            stack,
            task,
            born: Duration::ZERO,
            size: 100,
            weight: 1.0,
        };
        let at = |n: usize| 0x10_0000 * (index as u64 + 1) + 16 * n as u64;
        blocks.extend((0..case.cells).map(|n| block(cell(n), Some(task(99_999)))));
        blocks.extend((0..case.own).map(|n| block(at(n), Some(task(n % lives.len())))));
        blocks.extend((0..case.others).map(|n| block(at(case.own + n), None)));
    }
    explain(
        &mut outcome,
        &observed(lives, Work::Future),
        &blocks,
        &stacks,
        &identity,
        &Context::default(),
        &Settings::default(),
    );
    outcome
}

fn case(cells: usize, own: usize, others: usize) -> Case {
    Case {
        confidence: Confidence::Suspected,
        cells,
        own,
        others,
    }
}

#[test]
fn one_leak_is_one_finding() {
    let stuck = every(0.5, 100, waits);
    let all = [
        Case {
            confidence: Confidence::Strong,
            ..case(80, 0, 160)
        },
        case(0, 95, 5),
        case(0, 10, 90),
    ];
    let outcome = merged(&all, &stuck);
    let verdicts: Vec<Verdict> = outcome.findings.iter().map(|f| f.verdict).collect();
    assert_eq!(verdicts, [Verdict::StuckTask, Verdict::UnboundedGrowth]);
    let merged = &outcome.findings[0];
    assert_eq!(
        merged.confidence,
        Confidence::Strong,
        "what was certain stays so"
    );
    assert_eq!(merged.leak, Verdict::StuckTask.leak());
    assert!((merged.leak_bytes_per_s.value - 1500.0).abs() < 1e-6);
    assert_eq!(merged.members.len(), 1);
    let roles: Vec<Role> = merged.tasks.iter().map(|task| task.role).collect();
    assert_eq!(roles[0], Role::Allocated);
    assert!(roles[1..].iter().all(|role| *role == Role::Holds) && roles.len() > 1);
    assert_eq!(merged.tasks[1].blocks, 3, "its cell and its own blocks");
    let kinds: Vec<&str> = merged.evidence.iter().map(|line| line.kind).collect();
    assert_eq!(kinds[..3], ["tasks", "tasks-idle", "tasks-sites"]);
    assert!(kinds.contains(&"growth"), "the site's own evidence stays");
}

#[test]
fn other_leaks_keep_their_verdict() {
    let stuck = every(0.5, 100, waits);
    // a few tasks are spawned where much else leaks
    let outcome = merged(&[case(8, 0, 4000)], &stuck);
    assert_eq!(outcome.findings.len(), 1, "judged by its allocations");
    assert_eq!(outcome.findings[0].verdict, Verdict::UnboundedGrowth);
    // none of the tasks was spawned in what was captured
    let outcome = merged(&[case(0, 0, 4000)], &stuck);
    let verdicts: Vec<Verdict> = outcome.findings.iter().map(|f| f.verdict).collect();
    assert_eq!(verdicts, [Verdict::StuckTask, Verdict::UnboundedGrowth]);
    let healthy = every(0.0, 100, |_| waits(-100.0));
    let outcome = merged(&[case(80, 0, 10)], &healthy);
    assert_eq!(outcome.findings[0].verdict, Verdict::UnboundedGrowth);
}
