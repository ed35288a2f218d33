use std::time::Duration;

use super::*;
use crate::{
    finding::Text,
    ledger::{Ledger, Observation},
};

/// A process whose memory is `bytes` at each second.
fn process(bytes: impl Fn(u64) -> u64, seconds: u64) -> Process {
    let mut ledger = Ledger::default();
    for second in 0..=seconds {
        ledger.observe(Observation {
            at: Duration::from_secs(second),
            anonymous_bytes: Some(bytes(second)),
            ..Observation::default()
        });
    }
    Process::of(&ledger)
}

fn stacks() -> BTreeMap<StackId, Stack> {
    let frame = |name: &str| Frame {
        function: Some(Text::symbol(name)),
        ..Frame::default()
    };
    [(1, "grow_arena"), (2, "warm_up")]
        .into_iter()
        .map(|(id, name)| {
            let stack = Stack {
                frames: vec![frame(name), frame("main")],
                truncated: None,
            };
            (StackId(id), stack)
        })
        .collect()
}

fn residence(regions: &[(u64, u64, Region)]) -> Residence {
    Residence {
        stacks: regions
            .iter()
            .map(|(stack, recorded, region)| FaultStack {
                stack: StackId(*stack),
                recorded: *recorded,
                region: *region,
            })
            .collect(),
        ..Residence::default()
    }
}

fn verdict(process: &Process, found: &[Finding], residence: &Residence) -> Option<Finding> {
    judge(
        process,
        found,
        residence,
        &stacks(),
        &Identity::default(),
        &Settings::default(),
    )
}

const MIB: u64 = 1 << 20;

#[test]
fn direct_mappings_are_named() {
    let growing = process(|second| 100 * MIB + second * 2 * MIB, 30);
    let faults = residence(&[(1, 300, Region::Anonymous), (2, 60, Region::Allocator)]);
    let found = verdict(&growing, &[], &faults).unwrap();
    assert_eq!(found.verdict, Verdict::OutsideAllocators);
    assert_eq!(found.confidence, Confidence::Suspected);
    assert!(
        found
            .leak_bytes_per_s
            .covers(2.0 * MIB as f64 * 300.0 / 360.0)
    );
    assert_eq!(
        found.site.frames[0].function.as_ref().unwrap().as_str(),
        "grow_arena"
    );
}

#[test]
fn a_runtime_manages_its_heap() {
    let growing = process(|second| 100 * MIB + second * 2 * MIB, 30);
    let mut faults = residence(&[(1, 300, Region::Anonymous), (2, 60, Region::Allocator)]);
    faults.runtime = Some("the Java virtual machine");
    faults.runtime_limit = Some(512 * MIB);
    let found = verdict(&growing, &[], &faults).unwrap();
    assert_eq!(found.verdict, Verdict::ManagedHeap);
    assert_eq!(found.leak, crate::finding::Leak::No);
    assert!(
        found
            .evidence
            .iter()
            .any(|line| line.kind == "runtime-limit")
    );
}

#[test]
fn an_allocator_keeps_memory() {
    let growing = process(|second| 100 * MIB + second * 2 * MIB, 30);
    let faults = residence(&[(1, 30, Region::Anonymous), (2, 600, Region::Allocator)]);
    assert_eq!(
        verdict(&growing, &[], &faults).unwrap().verdict,
        Verdict::Retention
    );
}

#[test]
fn healthy_processes_get_nothing() {
    let faults = residence(&[(1, 300, Region::Anonymous)]);
    // Flat, growing too little, slowing.
    assert!(verdict(&process(|_| 100 * MIB, 60), &[], &faults).is_none());
    assert!(
        verdict(
            &process(|second| 100 * MIB + second * 1024, 60),
            &[],
            &faults
        )
        .is_none()
    );
    let slowing =
        |second: u64| 100 * MIB + (200.0 * (1.0 - (-(second as f64) / 8.0).exp())) as u64 * MIB;
    assert!(verdict(&process(slowing, 60), &[], &faults).is_none());
    // Too few faults to tell.
    let few = residence(&[(1, 5, Region::Anonymous)]);
    let growing = process(|second| 100 * MIB + second * 2 * MIB, 30);
    assert!(verdict(&growing, &[], &few).is_none());
}
