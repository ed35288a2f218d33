//! Verdicts on generated histories.

mod shapes;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use shapes::{HEALTHY, KEYS, LEAKS, SITE, Shape};
use world::{Random, World};

use super::*;

/// Seeds per shape.
const SEEDS: u64 = 40;

fn judged(
    world: &World,
    mean: u64,
    witness: bool,
    tick: f64,
    limit: Option<MemoryLimit>,
    random: &mut Random,
) -> Judgements<u64> {
    let ledger = world.observe(mean, witness, tick, random);
    let context = Context {
        sampling_mean: mean,
        limit,
    };
    judge(
        &ledger,
        |stack| stack.0 % KEYS,
        &context,
        &Settings::default(),
    )
}

fn each(
    shape: Shape,
    seeds: u64,
    mean: u64,
    witness: bool,
    check: &mut dyn FnMut(&World, &Judgements<u64>),
) {
    for seed in 0..seeds {
        let mut random = Random(seed.wrapping_mul(7919) ^ mean ^ u64::from(witness));
        let world = shape(&mut random);
        check(
            &world,
            &judged(&world, mean, witness, 1.0, None, &mut random),
        );
    }
}

fn site(judgements: &Judgements<u64>) -> Option<&Judgement<u64>> {
    judgements.sites.iter().find(|site| site.key == SITE)
}

fn leaks(site: &Judgement<u64>) -> bool {
    site.verdict == Some(Verdict::UnboundedGrowth)
}

/// How often leaks of some shape were found, and how well.
#[derive(Debug, Default)]
struct Score {
    runs: u32,
    found: u32,
    first: u32,
    covered: u32,
    close: u32,
}

impl Score {
    fn add(&mut self, world: &World, judgements: &Judgements<u64>) {
        self.runs += 1;
        let Some(site) = site(judgements).filter(|site| leaks(site)) else {
            return;
        };
        let truth = world.leaked(SITE);
        self.found += 1;
        self.first += u32::from(judgements.sites[0].key == SITE);
        self.covered += u32::from(site.leak_rate.covers(truth));
        self.close += u32::from((site.leak_rate.value / truth - 1.0).abs() <= 0.15);
    }
}

#[test]
fn leaks_are_found_at_their_rate() {
    let mut all = Score::default();
    for (name, shape) in LEAKS {
        let mut score = Score::default();
        each(*shape, SEEDS, 1, true, &mut |world, judgements| {
            score.add(world, judgements);
        });
        println!("{name}: {score:?}");
        assert!(
            f64::from(score.found) >= 0.9 * f64::from(score.runs),
            "{name}: {score:?}"
        );
        assert!(
            f64::from(score.covered) >= 0.9 * f64::from(score.found),
            "{name}: {score:?}"
        );
        assert!(
            f64::from(score.close) >= 0.8 * f64::from(score.found),
            "{name}: {score:?}"
        );
        all = Score {
            runs: all.runs + score.runs,
            found: all.found + score.found,
            first: all.first + score.first,
            covered: all.covered + score.covered,
            close: all.close + score.close,
        };
    }
    println!("all: {all:?}");
    assert!(
        f64::from(all.found) >= 0.95 * f64::from(all.runs),
        "{all:?}"
    );
    assert!(
        f64::from(all.first) >= 0.95 * f64::from(all.found),
        "{all:?}"
    );
    assert!(
        f64::from(all.covered) >= 0.95 * f64::from(all.found),
        "{all:?}"
    );
}

/// Whether a world shows thirty blocks that stay, in half of the tenths of
/// the run.
fn is_busy(world: &World) -> bool {
    let stay = |b: &&world::Block| {
        b.stack % KEYS == SITE
            && b.died > world.end()
            && (world.attach..world.end()).contains(&b.born)
    };
    let tenths: BTreeSet<u64> = world
        .blocks
        .iter()
        .filter(stay)
        .map(|b| ((b.born - world.attach) / world.run * 10.0) as u64)
        .collect();
    world.blocks.iter().filter(stay).count() >= 30 && tenths.len() >= 5
}

#[test]
fn short_runs_find_busy_leaks() {
    for (run, least) in [(4.0, 0.8), (10.0, 0.9)] {
        // its connections outlive such a run
        for (name, shape) in LEAKS
            .iter()
            .filter(|shape| !shape.0.ends_with("from one line"))
        {
            let mut score = Score::default();
            for seed in 0..SEEDS {
                let mut random = Random(seed * 17 + 3);
                let mut world = shape(&mut random);
                // the same world, watched for less time
                world.run = run;
                if is_busy(&world) {
                    score.add(&world, &judged(&world, 1, true, 1.0, None, &mut random));
                }
            }
            println!("{run} s, {name}: {score:?}");
            assert!(
                f64::from(score.found) >= least * f64::from(score.runs),
                "{run} s, {name}: {score:?}"
            );
            assert!(
                f64::from(score.covered) >= 0.9 * f64::from(score.found),
                "{run} s, {name}: {score:?}"
            );
        }
    }
}

#[test]
fn without_counted_calls_leaks_are_still_found() {
    for (name, shape) in LEAKS {
        let mut score = Score::default();
        each(*shape, SEEDS / 2, 1, false, &mut |world, judgements| {
            score.add(world, judgements);
        });
        println!("{name}: {score:?}");
        assert!(
            f64::from(score.found) >= 0.8 * f64::from(score.runs),
            "{name}: {score:?}"
        );
        assert!(
            f64::from(score.covered) >= 0.9 * f64::from(score.found),
            "{name}: {score:?}"
        );
    }
}

#[test]
fn sampled_estimates_cover_the_truth() {
    let (mut live_covered, mut runs) = (0, 0);
    for mean in [4096u64, 32_768] {
        let mut score = Score::default();
        for seed in 0..80 {
            let mut random = Random(seed ^ (mean << 20));
            let mut world = World {
                run: 20.0,
                ..World::default()
            };
            // about 20 to 200 samples of what leaks
            let size = random.scale(32.0, 16_384.0);
            let rate = random.scale(20.0, 200.0) * mean as f64 / size.min(mean as f64) / 20.0;
            let churn = random.chance(0.5);
            let mut at = 0.0;
            while at < 20.0 {
                world.add(SITE, at, 1e9, size as u64);
                if churn {
                    let life = random.exponential(0.3);
                    world.add(SITE, at, life, size as u64);
                }
                at += random.exponential(1.0 / rate);
            }
            let judgements = judged(&world, mean, true, 1.0, None, &mut random);
            score.add(&world, &judgements);
            runs += 1;
            live_covered += u32::from(
                site(&judgements)
                    .is_some_and(|site| site.live_bytes.covers(world.held(SITE, 20.0))),
            );
        }
        println!("mean {mean}: {score:?}");
        assert!(
            f64::from(score.found) >= 0.95 * f64::from(score.runs),
            "{score:?}"
        );
        assert!(
            f64::from(score.covered) >= 0.9 * f64::from(score.found),
            "{score:?}"
        );
    }
    println!("live bytes covered {live_covered} of {runs}");
    assert!(
        f64::from(live_covered) >= 0.92 * f64::from(runs),
        "{live_covered} of {runs}"
    );
}

#[test]
fn healthy_sites_are_never_strong() {
    let limit = MemoryLimit {
        limit_bytes: 1 << 30,
        used_bytes: 100 << 20,
    };
    for (name, shape) in HEALTHY {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for witness in [true, false] {
            for seed in 0..SEEDS / 2 {
                let mut random = Random(seed.wrapping_mul(104_729) ^ u64::from(witness));
                let world = shape(&mut random);
                let judgements = judged(&world, 1, witness, 1.0, Some(limit), &mut random);
                let verdict = site(&judgements)
                    .and_then(|site| site.verdict)
                    .map_or("none", Verdict::id);
                *counts.entry(verdict).or_default() += 1;
                for site in &judgements.sites {
                    assert!(site.confidence < Confidence::Strong, "{name}: {site:?}");
                }
            }
        }
        println!("{name}: {counts:?}");
    }
}

/// Shapes whose verdict must be quiet, not merely weak.
#[test]
fn shapes_that_can_be_told_are_told() {
    for (name, quiet) in [
        ("connection churn", 1.0),
        ("start-up", 1.0),
        ("burst then idle", 1.0),
        ("one Box::leak", 1.0),
        ("Vec that doubles", 1.0),
        ("full LRU cache, attached late", 0.8),
        ("full FIFO, turnover longer than the run", 0.95),
        ("cache that fills and is full", 0.9),
        ("cache of few keys, fills ever more slowly", 0.9),
        ("sawtooth, shorter than the run", 1.0),
        ("queue that breathes", 1.0),
    ] {
        let shape = HEALTHY
            .iter()
            .find(|shape| shape.0 == name)
            .expect("a shape of this name")
            .1;
        let mut suspected = 0;
        each(shape, SEEDS, 1, true, &mut |_, judgements| {
            suspected += u32::from(site(judgements).is_some_and(leaks));
        });
        println!("{name}: {suspected} of {SEEDS} suspected");
        assert!(
            f64::from(suspected) <= (1.0 - quiet) * SEEDS as f64,
            "{name}: {suspected}"
        );
    }
}

#[test]
fn leaks_at_the_detection_limit_are_found() {
    for (mean, size, run) in [
        (1u64, 4096u64, 30.0),
        (1, 4096, 60.0),
        (65_536, 512, 30.0),
        (524_288, 4096, 60.0),
    ] {
        let (mut found, runs) = (0, 200);
        let mut limit = 0.0;
        for seed in 0..runs {
            let mut random = Random(seed * 31 + mean);
            let mut world = World {
                run,
                ..World::default()
            };
            limit = judged(&world, mean, true, 1.0, None, &mut random)
                .detection_limit
                .expect("a limit");
            let mut at = random.exponential(size as f64 / limit);
            while at < run {
                world.add(SITE, at, 1e9, size);
                at += random.exponential(size as f64 / limit);
            }
            found += u32::from(
                site(&judged(&world, mean, true, 1.0, None, &mut random)).is_some_and(leaks),
            );
        }
        println!("mean {mean}, {run} s: {found} of {runs} leaks of {limit:.0} B/s found");
        assert!(
            f64::from(found) >= 0.95 * runs as f64,
            "mean {mean}, {run} s: {found} of {runs} at {limit:.0} B/s"
        );
    }
}

#[test]
fn nothing_to_say_about_a_short_run() {
    let mut random = Random(1);
    let world = World {
        run: 2.0,
        ..World::default()
    };
    let judgements = judged(&world, 1, true, 1.0, None, &mut random);
    assert!(
        judgements
            .detection_limit
            .unwrap_err()
            .contains("at least 3 s")
    );
    let judgements = judge(
        &Ledger::default(),
        |stack| stack,
        &Context::default(),
        &Settings::default(),
    );
    assert!(
        judgements.sites.is_empty()
            && judgements.detection_limit.is_err()
            && judgements.rss.is_none()
    );
}

/// A leak of 2 KiB/s for so long, with blocks that are freed after `life`.
fn long_leak(run: f64, life: f64, random: &mut Random) -> World {
    let mut world = World {
        run,
        ..World::default()
    };
    let mut at = 0.0;
    while at < run {
        world.add(SITE, at, 1e9, 2048);
        if life > 0.0 {
            let life = random.within(0.2, 1.0) * life;
            world.add(SITE, at, life, 2048);
        }
        at += random.exponential(1.0);
    }
    world
}

#[test]
fn strong_needs_an_hour_of_unslowed_growth() {
    for seed in 0..3 {
        let mut random = Random(seed);
        let mut confidence = |run: f64, life: f64| {
            let world = long_leak(run, life, &mut random);
            let judgements = judged(&world, 1, true, 20.0, None, &mut random);
            let site = site(&judgements).expect("the site").clone();
            assert!(leaks(&site), "{site:?}");
            site.confidence
        };
        assert_eq!(confidence(3700.0, 0.0), Confidence::Strong);
        assert_eq!(confidence(3700.0, 60.0), Confidence::Strong);
        assert_eq!(confidence(3400.0, 0.0), Confidence::Suspected);
        // 3 × the longest life is longer than the run
        assert_eq!(confidence(3700.0, 1500.0), Confidence::Suspected);
    }
}

#[test]
fn strong_when_the_limit_is_near() {
    let mut random = Random(5);
    let world = long_leak(120.0, 1.0, &mut random);
    let mut with_left = |left: u64| {
        let limit = MemoryLimit {
            limit_bytes: 1 << 30,
            used_bytes: (1 << 30) - left,
        };
        let judgements = judged(&world, 1, true, 1.0, Some(limit), &mut random);
        let site = site(&judgements).expect("the site").clone();
        assert!(leaks(&site));
        (
            site.confidence,
            site.time_to_limit.expect("a time").as_secs_f64(),
        )
    };
    // 2 KiB/s: 1 MiB lasts 512 s, less than 10 × 120 s
    let (confidence, time) = with_left(1 << 20);
    assert_eq!(confidence, Confidence::Strong);
    assert!((300.0..800.0).contains(&time), "{time}");
    // 8 MiB lasts 4096 s: extrapolated too far
    assert_eq!(with_left(8 << 20).0, Confidence::Suspected);
    assert!(with_left(0).1.abs() < 1e-9);
}

#[test]
fn a_slowly_filling_cache_is_not_strong_after_an_hour() {
    for seed in 0..3 {
        let mut random = Random(seed);
        let mut world = World {
            run: 4000.0,
            ..World::default()
        };
        let keys = 4000.0;
        let (mut held, mut at) = (0.0, 0.0);
        while at < world.run {
            if random.chance(1.0 - held / keys) {
                held += 1.0;
                world.add(SITE, at, 1e9, 2048);
            }
            at += random.exponential(1.0);
        }
        let judgements = judged(&world, 1, true, 20.0, None, &mut random);
        let site = site(&judgements).expect("the site");
        assert!(site.confidence < Confidence::Strong, "{site:?}");
    }
}

#[test]
fn every_verdict_has_evidence_and_advice() {
    for (_, shape) in LEAKS.iter().chain(HEALTHY) {
        each(*shape, 5, 1, true, &mut |_, judgements| {
            for site in judgements
                .sites
                .iter()
                .filter(|site| site.verdict.is_some())
            {
                assert!(
                    !site.evidence.is_empty() && !site.advice.is_empty(),
                    "{site:?}"
                );
                assert!(
                    site.leak_rate.low <= site.leak_rate.value
                        && site.leak_rate.value <= site.leak_rate.high,
                    "{site:?}"
                );
                for line in &site.evidence {
                    assert!(
                        line.text.ends_with('.')
                            && !line.text.contains("NaN")
                            && !line.text.contains("inf"),
                        "{line:?}"
                    );
                    assert!(line.value.is_none_or(f64::is_finite), "{line:?}");
                }
            }
        });
    }
}

#[test]
fn the_table_of_a_growing_map_is_no_member() {
    let mut random = Random(3);
    let mut world = World {
        run: 40.0,
        attach: 5.0,
        ..World::default()
    };
    let mut at = 0.0;
    while at < world.end() {
        world.add(SITE, at, 1e9, 64);
        at += 0.02;
    }
    // the table moves when 512, 1024 … entries are reached
    for power in 0..4 {
        let born = f64::from(1 << power) * 10.24;
        world.add(SITE, born, born, 1 << (16 + power));
    }
    let judgements = judged(&world, 1, true, 1.0, None, &mut random);
    let site = site(&judgements).expect("the site");
    assert!(
        leaks(site) && (site.leak_rate.value / 3200.0 - 1.0).abs() < 0.05,
        "{:?}",
        site.leak_rate
    );
}
