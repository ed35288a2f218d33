//! COST-1 as an invariant over simulated hours, and that something is still
//! observed.

mod simulation;

use std::time::Duration;

use proptest::prelude::*;

use self::simulation::{Law, Subject, World, multi};
use super::{Budget, Check, Close, Costs, Governor, Mode, Profile, Reading, Wish};

/// Trap time that may be on credit at the beginning, per lane.
const CREDIT: f64 = 0.45;

/// What must hold of every target at every time.
fn cost_1(subject: &Subject, budget: &Budget) -> Result<(), String> {
    let said = || subject.said.join("\n");
    if subject.hottest > budget.window.as_secs_f64() + 1e-6 {
        let (percent, time) = (budget.window_percent, subject.hottest);
        return Err(format!("above {percent} % for {time:.3} s:\n{}", said()));
    }
    let [early, late] = subject.excess;
    if early > CREDIT * subject.law.lanes {
        return Err(format!(
            "{early:.3} s over in the first minute:\n{}",
            said()
        ));
    }
    // Threads that were never seen to share the traps, and suddenly all do,
    // leave a debt that pauses repay.
    if late > budget.window.as_secs_f64() * (subject.law.lanes - 1.0) {
        return Err(format!("{late:.4} s over after a minute:\n{}", said()));
    }
    Ok(())
}

fn run(law: Law, seconds: f64) -> Subject {
    let mut world = World::of(law).run(seconds);
    let subject = world.subjects.remove(0);
    cost_1(&subject, &Budget::default()).unwrap();
    subject
}

#[test]
fn every_rate_is_affordable_and_something_is_caught() {
    for (rate, least) in [
        (10.0, 170.0),
        (1e3, 170.0),
        (3e3, 30.0),
        (5e3, 30.0),
        (1e4, 15.0),
        (3e4, 0.75),
        (1e5, 0.75),
        (2e5, 0.75),
        (1e6, 0.75),
        (5e6, 0.75),
    ] {
        let subject = run(Law::steady(rate), 180.0);
        println!(
            "{rate:9.0}/s: {:?}, {:.3} % average, noticed {:.2} % of the time, {} windows, open {:.2} s, caught {:.3} s",
            subject.modes,
            subject.slowdown() * 100.0,
            subject.noticed / 1.8,
            subject.windows,
            subject.open,
            subject.caught
        );
        assert!(!subject.refused, "{:?}", subject.said);
        assert!(subject.caught > least, "{:?}", subject.said);
        // Few windows tell little, however long they are.
        assert!(rate < 5e3 || subject.windows >= 8, "{:?}", subject.said);
        assert!(subject.noticed < 1.1, "{:?}", subject.said);
    }
}

#[test]
fn without_the_limit_on_noticed_time_the_average_buys_twice_as_much() {
    let budget = Budget {
        noticed_share_percent: 100.0,
        ..Budget::default()
    };
    let world = World::new(budget, multi(), vec![Law::steady(2e5)]).run(180.0);
    let subject = &world.subjects[0];
    cost_1(subject, &budget).unwrap();
    println!("open {:.2} s, caught {:.2} s", subject.open, subject.caught);
    assert!(subject.caught > 1.8, "{:?}", subject.said);
}

#[test]
fn a_burst_in_mid_window_ends_it_in_time() {
    // Idle for long enough to be traced for good, then a million a second.
    let late = run(Law::varying(|t| if t < 500.0 { 5.0 } else { 1e6 }), 1200.0);
    assert!(
        late.modes.starts_with(&["survey", "trace"]),
        "{:?}",
        late.modes
    );
    assert!(late.modes.contains(&"survey"));
    assert!(late.windows > 10, "surveyed afterwards");
    // Bursts of every length, at every moment of a window.
    for length in [0.02, 0.1, 0.5, 3.0, 30.0] {
        for every in [1.7, 7.3, 61.0] {
            let burst = move |t: f64| if t % every < length { 1e6 } else { 20.0 };
            run(Law::varying(burst), 900.0);
        }
    }
    // A survey whose target jumps by a hundred.
    run(
        Law::varying(|t| if t % 20.0 < 19.5 { 8e3 } else { 8e5 }),
        1800.0,
    );
}

#[test]
fn a_burst_between_two_checks_counts_from_its_first_moment() {
    let budget = Budget {
        window_percent: 54.0,
        window: Duration::from_millis(123),
        ..Budget::default()
    };
    for offset in 0..60 {
        let calm = 15.0 + f64::from(offset) * 0.011;
        let law = Law {
            lanes: 3.0,
            busy: 0.9,
            profile: Profile {
                wish: Wish::Survey,
                ..Profile::default()
            },
            ..Law::varying(move |t| if t % 20.0 < calm { 14e3 } else { 3.3e6 })
        };
        let world = World::new(budget, multi(), vec![law]).run(400.0);
        cost_1(&world.subjects[0], &budget).unwrap();
    }
}

#[test]
fn the_first_look_at_the_hottest_program_is_short() {
    let world = World::of(Law::steady(5e6)).run(1.0);
    let subject = &world.subjects[0];
    assert!(subject.hottest < 0.13, "{}", subject.hottest);
}

#[test]
fn threads_that_share_the_traps_earn_together() {
    let many = run(
        Law {
            lanes: 8.0,
            ..Law::steady(1.6e6)
        },
        600.0,
    );
    assert!(many.caught > 1.5, "{} {:?}", many.caught, many.said);
}

#[test]
fn programs_that_wait_are_traced_within_the_same_budget() {
    let idle = run(
        Law {
            busy: 0.01,
            ..Law::steady(2e3)
        },
        600.0,
    );
    assert!(idle.modes.contains(&"trace"), "{:?}", idle.said);
    run(
        Law {
            busy: 0.2,
            ..Law::steady(2e5)
        },
        600.0,
    );
}

#[test]
fn forks_end_windows_and_many_of_them_refuse_the_target() {
    let often = run(
        Law {
            forks_every: Some(0.05),
            ..Law::steady(1e5)
        },
        900.0,
    );
    assert!(often.refused, "{:?}", often.said);
    assert!(
        often
            .said
            .iter()
            .any(|said| said.contains("it forked in 3 windows in a row"))
    );
    let seldom = run(
        Law {
            forks_every: Some(45.0),
            ..Law::steady(1e5)
        },
        1800.0,
    );
    assert!(!seldom.refused, "{:?}", seldom.said);
    assert!(seldom.windows > 30);
}

#[test]
fn slow_detaching_refuses_breakpoints() {
    let costs = Costs::assumed(crate::capture::links::Method::Perf);
    let world = World::new(Budget::default(), costs, vec![Law::steady(10.0)]).run(100.0);
    let subject = &world.subjects[0];
    assert!(subject.refused && subject.windows == 0);
    assert!(
        subject.said[0].contains("detaching 4800 ms"),
        "{:?}",
        subject.said
    );
}

#[test]
fn a_slow_moment_of_the_host_passes() {
    let mut world = World::of(Law::steady(1e5)).run(200.0);
    let before = world.subjects[0].windows;
    assert!(before > 2);
    // Detaching takes a quarter of a second for a while: one window has that
    // bad luck, then none is opened.
    world.detach = 0.25;
    world.go(400.0);
    let during = world.subjects[0].windows;
    assert!(during <= before + 4, "{before} {during}");
    world.detach = 0.075;
    world.go(1500.0);
    assert!(world.subjects[0].windows > during + 10);
}

#[test]
fn windows_in_one_file_do_not_overlap() {
    let law = || Law {
        profile: Profile {
            files: vec![(1, 2)],
            ..Profile::default()
        },
        ..Law::steady(2e5)
    };
    let world = World::new(Budget::default(), multi(), vec![law(), law(), law(), law()]).run(600.0);
    for subject in &world.subjects {
        cost_1(subject, &Budget::default()).unwrap();
        assert_eq!(subject.overlaps, 0);
        assert!(subject.windows > 10, "{:?}", subject.said);
    }
}

#[test]
fn the_only_room_is_for_all_in_turn() {
    let budget = Budget {
        suspects: 1,
        ..Budget::default()
    };
    let law = |rate| Law {
        profile: Profile {
            wish: Wish::Survey,
            ..Profile::default()
        },
        ..Law::steady(rate)
    };
    let laws = vec![law(100.0), law(300.0), law(500.0)];
    let world = World::new(budget, multi(), laws).run(60.0);
    let open: Vec<f64> = world.subjects.iter().map(|subject| subject.open).collect();
    assert!(open.iter().all(|open| *open > 12.0), "{open:?}");
}

#[test]
fn pressure_and_pause_take_probes_off_at_the_next_check() {
    for pause in [false, true] {
        let mut world = World::of(Law::steady(10.0)).run(5.0);
        assert_eq!(world.subjects[0].modes.last(), Some(&"trace"));
        let at = Duration::from_secs_f64(world.now);
        if pause {
            world.governor.pause(at, at + Duration::from_secs(30));
        } else {
            assert!(world.governor.press(at, 40.0));
        }
        world.go(5.3);
        assert_eq!(world.subjects[0].modes.last(), Some(&"hold"));
        let open = world.subjects[0].open;
        world.go(30.0);
        assert!(world.subjects[0].open - open < 1e-9);
        if pause {
            world.governor.resume(Duration::from_secs(30));
        } else {
            world.governor.press(Duration::from_secs(30), 0.0);
            assert!(!world.governor.press(Duration::from_secs(91), 0.0));
        }
        world.go(100.0);
        assert!(world.subjects[0].open - open > 5.0);
    }
}

#[test]
fn tracing_on_demand_is_told_and_not_limited() {
    let law = Law {
        profile: Profile {
            wish: Wish::Trace,
            ..Profile::default()
        },
        ..Law::steady(2e5)
    };
    let world = World::of(law).run(60.0);
    let subject = &world.subjects[0];
    assert!(subject.open > 59.0, "{:?}", subject.said);
    let standing = world.governor.standing(0).unwrap();
    let truth = subject.slowdown() * 100.0;
    assert!((standing.slowdown_percent / truth - 1.0).abs() < 0.05);
}

#[test]
fn sheds_from_the_fullest_control_group_and_spares_the_most_urgent() {
    let mut governor = Governor::new(
        Budget {
            suspects: 4,
            ..Budget::default()
        },
        multi(),
        Duration::ZERO,
    );
    for (id, group) in [(1, "/a"), (2, "/b"), (3, "/b"), (4, "/b")] {
        let profile = Profile {
            cgroup: group.to_owned(),
            ..Profile::default()
        };
        governor.admit(id, profile, Duration::ZERO, None).unwrap();
        let decision = governor.decide(id, Duration::ZERO, None);
        assert!(matches!(decision.mode, Mode::Survey(_)), "{decision:?}");
        governor.opening(id, Duration::ZERO);
    }
    governor.rank(2, Some(Duration::from_mins(10)));
    governor.rank(3, Some(Duration::from_mins(1)));
    assert!(governor.shed(Duration::ZERO).is_empty());
    for second in 0..8 {
        let at = Duration::from_secs(second);
        governor.account_for(at, at / 10);
    }
    assert_eq!(governor.allowance().suspects, 2);
    let shed = governor.shed(Duration::from_secs(8));
    let ids: Vec<u32> = shed.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [4, 2]);
    assert!(shed[0].1.contains("2 of 4 targets") && shed[0].1.contains("/b"));
    // No newcomer takes the freed places.
    governor
        .admit(9, Profile::default(), Duration::from_secs(8), None)
        .unwrap();
    let decision = governor.decide(9, Duration::from_secs(8), None);
    assert!(matches!(decision.mode, Mode::Hold { .. }), "{decision:?}");
    let (notes, dropped) = governor.take_notes();
    assert!(
        dropped == 0
            && notes
                .iter()
                .any(|note| note.sentence.contains("% of a core"))
    );
}

#[test]
fn dangers_are_refused_with_their_own_sentence() {
    let profile = Profile {
        refusal: Some("it runs under a seccomp filter".to_owned()),
        ..Profile::default()
    };
    let mut governor = Governor::new(Budget::default(), multi(), Duration::ZERO);
    governor.admit(1, profile, Duration::ZERO, None).unwrap();
    let decision = governor.decide(1, Duration::ZERO, None);
    assert_eq!(decision.mode, Mode::Refuse { again: None });
    assert_eq!(decision.why, "it runs under a seccomp filter");
}

#[test]
fn misuse_takes_probes_off() {
    let mut governor = Governor::new(Budget::default(), multi(), Duration::ZERO);
    let reading = Reading::default();
    assert!(matches!(
        governor.check(7, Duration::ZERO, &reading),
        Check::Detach(Close::Held(_))
    ));
    governor.closed(7, Duration::ZERO, &reading);
    governor.opening(7, Duration::ZERO);
    assert!(governor.standing(7).is_none());
}

#[test]
fn single_stepped_probes_are_counted_as_such() {
    // As counted, whatever was said beforehand.
    for stepped_frees in [true, false] {
        let law = Law {
            stepped: 1.0,
            profile: Profile {
                stepped_frees,
                ..Profile::default()
            },
            ..Law::steady(3e3)
        };
        let subject = run(law, 600.0);
        assert!(!subject.modes.contains(&"trace"), "{:?}", subject.said);
        assert!(subject.windows > 5, "{:?}", subject.said);
    }
    // What might be stepped and is not costs no more.
    let law = Law {
        profile: Profile {
            stepped_allocations: true,
            stepped_frees: true,
            ..Profile::default()
        },
        ..Law::steady(1e3)
    };
    assert!(run(law, 60.0).modes.contains(&"trace"));
}

#[test]
fn what_is_spent_is_what_was_hit() {
    let costs = multi();
    let before = Reading {
        allocations: 1000,
        frees: 500,
        sampled: 10,
        stepped: 900,
        ..Reading::default()
    };
    let now = Reading {
        allocations: 1100,
        frees: 600,
        sampled: 10,
        stepped: 950,
        ..before
    };
    let spent = costs.spent(&Profile::default(), &before, &now, false);
    // An allocation has two: 250 emulated hits and 50 stepped ones.
    let right = (250.0 * costs.trap + 50.0 * costs.stepped) * 1e-9;
    assert!((spent - right).abs() < 1e-12, "{spent} {right}");
}

fn law() -> impl Strategy<Value = Law> {
    let stretch = (0.001f64..20.0, 1.0f64..6.7);
    (
        proptest::collection::vec(stretch, 1..12),
        prop_oneof![Just(1.0), 1.0f64..8.0],
        0.0f64..1.0,
        16u64..100_000,
        proptest::option::weighted(0.2, 0.02f64..100.0),
        prop_oneof![Just(0.0), Just(1.0), Just(2.0), 0.0f64..2.0],
        any::<[bool; 2]>(),
    )
        .prop_map(
            |(stretches, lanes, busy, size, forks_every, stepped, told)| {
                let length: f64 = stretches.iter().map(|(length, _)| length).sum();
                let rate = move |t: f64| {
                    let mut left = t % length;
                    for (stretch, exponent) in &stretches {
                        if left < *stretch {
                            return 10f64.powf(*exponent);
                        }
                        left -= stretch;
                    }
                    0.0
                };
                Law {
                    lanes: f64::floor(lanes),
                    busy,
                    size,
                    forks_every,
                    stepped,
                    profile: Profile {
                        stepped_allocations: told[0],
                        stepped_frees: told[1],
                        ..Profile::default()
                    },
                    ..Law::varying(rate)
                }
            },
        )
}

impl std::fmt::Debug for Law {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "lanes {} busy {} size {} forks {:?} stepped {:?}, rates at every second {:?}",
            self.lanes,
            self.busy,
            self.size,
            self.forks_every,
            self.stepped,
            (0..60)
                .map(|t| (self.rate)(f64::from(t)) as u64)
                .collect::<Vec<_>>()
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        max_shrink_iters: 64,
        ..ProptestConfig::default()
    })]
    #[test]
    fn cost_1_holds_for_any_target(law in law()) {
        let world = World::of(law).run(300.0);
        cost_1(&world.subjects[0], &Budget::default()).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn cost_1_holds_for_any_two_targets_and_budget(
        laws in proptest::collection::vec(law(), 2..3),
        target_percent in 0.1f64..5.0,
        window_percent in 5.0f64..60.0,
        window in 120u64..500,
    ) {
        let budget = Budget {
            target_percent,
            window_percent,
            window: Duration::from_millis(window),
            ..Budget::default()
        };
        let world = World::new(budget, multi(), laws).run(300.0);
        for subject in &world.subjects {
            let window = subject.hottest <= budget.window.as_secs_f64() + 1e-6;
            prop_assert!(window, "{}: {:?}", subject.hottest, subject.said);
            // A window on credit is repaid later where the budget is small.
            let credit = (budget.window.as_secs_f64() + CREDIT) * subject.law.lanes;
            prop_assert!(subject.excess[1] < credit, "{:?}", subject.excess);
        }
    }
}
