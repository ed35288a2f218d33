//! The ledger of a survey under any order of events.

use proptest::prelude::*;

use super::*;
use crate::analysis::survey::{Curve, estimate};

fn at(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn block(address: u64, size: u64, stack: u64, born: Duration, mean: u64) -> SurveyBlock {
    SurveyBlock {
        block: LiveBlock {
            address,
            size,
            stack: StackId(stack),
            task: None,
            born,
            mean,
        },
        usable: size,
    }
}

/// A window of 200 ms whose survivors are `blocks`.
fn window(survivors: &mut Survivors, closed: Duration, blocks: Vec<SurveyBlock>) -> Vec<BlockId> {
    let open = Duration::from_millis(200);
    survivors.window_opened(closed.saturating_sub(open));
    survivors
        .window_closed(
            closed,
            WindowOutcome {
                open,
                mean: 1,
                survivors: blocks,
                ..WindowOutcome::default()
            },
        )
        .into_iter()
        .flatten()
        .collect()
}

#[derive(Clone, Debug)]
enum Event {
    Pass(u64),
    Open,
    Close {
        open: u64,
        blocks: Vec<(u64, u64, u64)>,
        mean: u64,
        lost: u64,
        counted: bool,
    },
    Read {
        most: usize,
        signs: Vec<Sign>,
    },
    /// Of any name, at any time.
    Stray(u64, u64, Sign),
    Memory(Option<u64>),
    Reuse(u64, u64),
    Abandon,
    Restart,
    End,
}

fn sign() -> impl Strategy<Value = Sign> {
    prop_oneof![
        4 => Just(Sign::Alive),
        1 => Just(Sign::Mutated),
        1 => Just(Sign::Unchanged),
        2 => Just(Sign::Gone),
        1 => Just(Sign::Unknown),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let size = prop_oneof![0..5000u64, Just(u64::MAX), Just(1 << 45)];
    let blocks = proptest::collection::vec((0..60u64, size, 0..4u64), 0..12);
    prop_oneof![
        8 => (0..40_000u64).prop_map(Event::Pass),
        3 => Just(Event::Open),
        8 => (0..400u64, blocks, prop_oneof![Just(1u64), 0..100_000u64], 0..3u64, any::<bool>())
            .prop_map(|(open, blocks, mean, lost, counted)| Event::Close { open, blocks, mean, lost, counted }),
        8 => (0..200usize, proptest::collection::vec(sign(), 1..20))
            .prop_map(|(most, signs)| Event::Read { most, signs }),
        2 => (0..100u64, 0..1_000_000u64, sign()).prop_map(|(id, at, sign)| Event::Stray(id, at, sign)),
        3 => proptest::option::of(any::<u64>()).prop_map(Event::Memory),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(size, time)| Event::Reuse(size, time)),
        1 => Just(Event::Abandon),
        1 => Just(Event::Restart),
        1 => Just(Event::End),
    ]
}

fn apply(survivors: &mut Survivors, now: &mut Duration, event: Event) {
    match event {
        Event::Pass(millis) => *now += Duration::from_millis(millis),
        Event::Open => survivors.window_opened(*now),
        Event::Close {
            open,
            blocks,
            mean,
            lost,
            counted,
        } => {
            let blocks: Vec<SurveyBlock> = blocks
                .into_iter()
                .map(|(address, size, stack)| block(address, size, stack, *now, mean))
                .collect();
            let listed = blocks.len();
            let names = survivors.window_closed(
                *now,
                WindowOutcome {
                    open: Duration::from_millis(open),
                    mean,
                    counts: vec![StackCount {
                        stack: StackId(open % 5),
                        sampled: 20,
                        freed: 8,
                        longest_life: Duration::from_millis(open),
                    }],
                    survivors: blocks,
                    calls: counted.then_some(Calls {
                        allocations: open,
                        frees: lost,
                    }),
                    lost,
                },
            );
            assert_eq!(names.len(), listed);
        }
        Event::Read { most, signs } => {
            for (id, sign) in survivors.due(*now, most).into_iter().zip(signs) {
                assert!(survivors.block(id).is_some());
                survivors.reading(id, *now, sign);
            }
        }
        Event::Stray(id, at, sign) => {
            survivors.reading(BlockId(id), Duration::from_millis(at), sign);
        }
        Event::Memory(bytes) => survivors.memory(*now, bytes),
        Event::Reuse(size, time) => survivors.reuse_seen(size, Duration::from_millis(time)),
        Event::Abandon => survivors.window_abandoned(*now),
        Event::Restart => survivors.restart(),
        Event::End => survivors.ended(),
    }
}

fn check(survivors: &Survivors) -> Result<(), TestCaseError> {
    prop_assert!(survivors.windows.len() <= Survivors::MAX_WINDOWS);
    prop_assert_eq!(survivors.addresses.len(), survivors.followed.len());
    let followed: usize = survivors.sites.values().map(|site| site.followed).sum();
    prop_assert_eq!(followed, survivors.followed.len());
    prop_assert!(survivors.ended || survivors.queue.len() == survivors.followed.len());
    for group in survivors.groups(|stack| stack.0 % 2).values() {
        let found = estimate(group, survivors);
        let mut last = 1.0;
        for share in &found.curve.survival {
            prop_assert!((0.0..=last).contains(share), "{:?}", found.curve);
            last = *share;
        }
        if let Some(rate) = found.rate {
            prop_assert!(rate.low.is_finite() && rate.value.is_finite() && rate.high.is_finite());
            prop_assert!(0.0 <= rate.low && rate.low <= rate.value && rate.value <= rate.high);
        }
    }
    let context = crate::analysis::Context::default();
    let settings = crate::analysis::Settings::default();
    let survey = crate::analysis::survey::judge(survivors, |stack| stack, &context, &settings);
    for site in &survey.judgements.sites {
        for estimate in [site.leak_rate, site.live_bytes, site.live_blocks] {
            prop_assert!(
                estimate.low.is_finite() && estimate.high.is_finite(),
                "{estimate:?}"
            );
            prop_assert!(
                estimate.low <= estimate.value && estimate.value <= estimate.high,
                "{estimate:?}"
            );
        }
    }
    if let Some(share) = survey.explained_share {
        prop_assert!(
            share.low <= share.value && share.value <= share.high,
            "{share:?}"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_order_of_events_is_borne(events in proptest::collection::vec(event(), 1..120)) {
        let mut survivors = Survivors::default();
        let mut now = Duration::ZERO;
        for event in events {
            apply(&mut survivors, &mut now, event);
        }
        check(&survivors)?;
    }
}

#[test]
fn a_death_is_put_at_the_step_that_found_it() {
    let mut survivors = Survivors::default();
    let blocks = (0..4).map(|i| block(i * 16, 100, 1, at(1.0), 1)).collect();
    let ids = window(&mut survivors, at(1.1), blocks);
    assert_eq!(survivors.due(at(3.0), 10), []);
    assert_eq!(survivors.due(at(3.2), 10), ids);
    assert_eq!(survivors.due(at(3.2), 2), ids[..2]);
    survivors.reading(ids[0], at(3.2), Sign::Alive);
    survivors.reading(ids[1], at(3.3), Sign::Gone);
    survivors.reading(ids[2], at(3.3), Sign::Unknown);
    survivors.reading(ids[3], at(3.3), Sign::Mutated);
    survivors.reading(ids[1], at(3.3), Sign::Gone);
    assert_eq!(survivors.losses().stray, 1);
    assert_eq!(survivors.due(at(11.2), 10), [ids[0], ids[2], ids[3]]);
    // Nothing was told of it at 2 s and it is gone at 10 s; most of the
    // others that died had by 2 s.
    survivors.reading(ids[2], at(11.2), Sign::Gone);
    survivors.reading(ids[0], at(11.2), Sign::Alive);
    let group = &survivors.groups(|_| ())[&()];
    let rows: Vec<(u32, u32)> = (1..=2)
        .map(|step| group.windows[0].step(step))
        .map(|row| (row.known, row.gone))
        .collect();
    assert_eq!(rows, [(4, 2), (1, 0)]);
    let curve = Curve::of(group);
    assert_eq!(curve.survival, [1.0, 0.5, 0.5]);
}

#[test]
fn an_address_given_out_again_was_freed() {
    let mut survivors = Survivors::default();
    let old = window(&mut survivors, at(1.0), vec![block(64, 100, 1, at(0.9), 1)]);
    let new = window(&mut survivors, at(9.0), vec![block(64, 100, 1, at(8.9), 1)]);
    assert!(survivors.block(old[0]).is_none() && survivors.block(new[0]).is_some());
    let group = &survivors.groups(|_| ())[&()];
    assert_eq!(group.windows[0].step(1).gone, 1);
    assert_eq!(survivors.followed(), 1);
    // Twice in one window: the earlier one's free was missed.
    let both = vec![block(80, 8, 1, at(19.8), 1), block(80, 9, 1, at(19.9), 1)];
    let kept = window(&mut survivors, at(20.0), both);
    assert_eq!(kept.len(), 1);
    assert_eq!(survivors.block(kept[0]).unwrap().block.size, 9);
    assert_eq!(survivors.losses().duplicates, 1);
}

#[test]
fn blocks_that_never_tell_are_let_go() {
    let mut survivors = Survivors::default();
    let ids = window(&mut survivors, at(1.0), vec![block(64, 100, 1, at(0.9), 1)]);
    for now in [3.0, 11.0, 31.0] {
        assert_eq!(survivors.due(at(now), 1), ids);
        survivors.reading(ids[0], at(now), Sign::Unknown);
    }
    assert_eq!((survivors.followed(), survivors.losses().given_up), (0, 1));
    let group = &survivors.groups(|_| ())[&()];
    assert_eq!(estimate(group, &survivors).rate, None);
}

#[test]
fn another_program_begins_anew() {
    let mut survivors = Survivors::default();
    let ids = window(&mut survivors, at(1.0), vec![block(64, 100, 1, at(0.9), 1)]);
    survivors.restart();
    survivors.reading(ids[0], at(3.0), Sign::Alive);
    assert_eq!(survivors.losses().stray, 1);
    assert!(survivors.windows().is_empty() && survivors.stacks().is_empty());
    let again = window(&mut survivors, at(5.0), vec![block(64, 100, 1, at(4.9), 1)]);
    assert_ne!(again, ids);
    survivors.ended();
    assert_eq!(survivors.due(at(100.0), 9), []);
    assert_eq!(survivors.next_due(), None);
}

#[test]
fn letting_go_keeps_the_sums() {
    let mut total = 0.0;
    let runs = 60;
    for seed in 0..runs {
        let mut survivors = Survivors::default();
        survivors.random.0 = seed << 32;
        let mut truth = 0.0;
        for step in 0..8u64 {
            let blocks: Vec<SurveyBlock> = (0..400)
                .map(|i| {
                    block(
                        (step * 1000 + i) * 16,
                        16 + (i * i) % 977,
                        1,
                        at(step as f64),
                        1,
                    )
                })
                .collect();
            truth += blocks.iter().map(|b| b.block.size as f64).sum::<f64>();
            window(&mut survivors, at(step as f64 + 0.1), blocks);
        }
        assert!(survivors.followed() <= Survivors::MAX_BLOCKS_PER_SITE);
        assert!(survivors.losses().thinned > 2000);
        let kept: f64 = survivors.followed.values().map(Followed::bytes).sum();
        total += kept / truth;
    }
    // one run's standard error is below 3 %
    assert!(
        (total / f64::from(runs as u32) - 1.0).abs() < 0.01,
        "{total}"
    );
}

#[test]
fn rooms_have_walls() {
    let mut survivors = Survivors::default();
    for round in 0..40u64 {
        let blocks: Vec<SurveyBlock> = (0..2000)
            .map(|i| {
                block(
                    (round * 10_000 + i) * 16,
                    32,
                    round * 50 + i % 50,
                    at(round as f64),
                    1,
                )
            })
            .collect();
        window(&mut survivors, at(round as f64 + 0.5), blocks);
    }
    assert!(survivors.followed() <= Survivors::MAX_BLOCKS);
    assert!(survivors.sites.len() <= Survivors::MAX_SITES);
    let losses = survivors.losses();
    assert!(losses.without_site > 0 && losses.thinned > 0, "{losses:?}");
}

#[test]
fn windows_put_together_keep_their_sums() {
    let mut survivors = Survivors::default();
    for round in 0..1000u64 {
        let now = at(round as f64 * 2.0 + 1.0);
        window(&mut survivors, now, vec![block(round * 16, 64, 1, now, 1)]);
        for id in survivors.due(now, 10_000) {
            survivors.reading(id, now, Sign::Alive);
        }
    }
    assert!(survivors.windows().len() <= Survivors::MAX_WINDOWS);
    assert_eq!(survivors.window_count(), 1000);
    assert!((survivors.open_time() - 200.0).abs() < 1e-6);
    let group = &survivors.groups(|_| ())[&()];
    let born: f64 = group.windows.iter().map(|window| window.born.bytes).sum();
    assert!((born - 64_000.0).abs() < 1e-6);
    let rate = estimate(group, &survivors).rate.unwrap();
    assert!(rate.covers(64_000.0 / 200.0), "{rate:?}");
}
