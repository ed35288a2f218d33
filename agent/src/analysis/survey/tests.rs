//! The statistics against generated programs of which the truth is known.

mod detection;
mod program;
mod verdicts;

use program::{Program, Random, Schedule, Site, exponential, fixed, lognormal};

use super::*;
use crate::{analysis::MemoryLimit, finding::Confidence};

/// Sampling means that a governor may choose.
const MEANS: [u64; 3] = [1, 1024, 4096];

/// How often something held.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    yes: u32,
    of: u32,
}

impl Tally {
    fn add(&mut self, yes: bool) {
        self.yes += u32::from(yes);
        self.of += 1;
    }

    fn share(self) -> f64 {
        f64::from(self.yes) / f64::from(self.of.max(1))
    }
}

/// A drawn survey of 60 to 300 s with windows of 100 to 300 ms.
fn drawn(random: &mut Random) -> Schedule {
    Schedule {
        run: random.within(60.0, 300.0),
        window: random.within(0.1, 0.3),
        duty: random.within(0.02, 0.06),
        mean: MEANS[random.below(3)],
    }
}

/// A program at work beside the sites that are asked about: 5 to 200 thousand
/// allocations a second of short lives.
fn churn(random: &mut Random, rate: f64) -> Vec<Site> {
    (100..104)
        .map(|stack| {
            let size = random.scale(16.0, 2048.0) as u64;
            Site::churn(stack, size, rate / 4.0, random.scale(1e-4, 0.02))
        })
        .collect()
}

fn group(survivors: &Survivors, stack: u64) -> SurveyGroup {
    survivors
        .groups(|stack| stack)
        .remove(&StackId(stack))
        .unwrap_or_default()
}

fn judged(program: &Program, survivors: &Survivors, limit: Option<MemoryLimit>) -> Survey<StackId> {
    let context = Context {
        sampling_mean: program.schedule.mean,
        limit,
    };
    judge(survivors, |stack| stack, &context, &Settings::default())
}

/// What a site named `stack` was found to be.
fn verdict(survey: &Survey<StackId>, stack: u64) -> (Option<Verdict>, Confidence) {
    survey
        .judgements
        .sites
        .iter()
        .find(|site| site.key == StackId(stack))
        .map_or((None, Confidence::Suspected), |site| {
            (site.verdict, site.confidence)
        })
}

const SITE: u64 = 1;

/// Makes the site that is asked about.
type Shape = fn(&mut Random, &Schedule) -> Site;

/// Leaking sites; their true rate is [`Site::leak_rate`].
const LEAKS: &[(&str, Shape)] = &[
    ("2 % of short lives leak", |random, _| {
        let life = exponential(random.scale(1e-3, 0.3));
        let rate = random.scale(500.0, 5_000.0);
        Site::new(SITE, random.scale(16.0, 4096.0) as u64, rate, life).leaking(0.02)
    }),
    ("2 % of lives of seconds leak", |random, _| {
        let life = lognormal(random.scale(0.1, 1.0), 0.7);
        Site::new(SITE, random.scale(16.0, 4096.0) as u64, 800.0, life).leaking(0.02)
    }),
    ("2 % of fixed lives leak", |random, _| {
        let life = fixed(random.scale(0.01, 1.5));
        Site::new(SITE, random.scale(16.0, 4096.0) as u64, 800.0, life).leaking(0.02)
    }),
    ("all leak", |random, _| {
        Site::new(
            SITE,
            random.scale(64.0, 8192.0) as u64,
            random.scale(5.0, 200.0),
            fixed(1.0),
        )
        .leaking(1.0)
    }),
    ("the load goes up and down", |random, _| {
        let (period, phase) = (random.within(10.0, 100.0), random.within(0.0, 6.3));
        Site::new(SITE, 256, 2000.0, exponential(0.01))
            .leaking(0.02)
            .at_load(move |at| 0.5 + 0.4 * (at / period * std::f64::consts::TAU + phase).sin())
    }),
    ("requests leak by the hundred", |random, _| {
        Site::new(SITE, 128, random.scale(200.0, 1000.0), fixed(1.0))
            .leaking(1.0)
            .in_bursts(random.scale(5.0, 50.0))
    }),
];

/// Healthy sites whose blocks do not outlive a good part of the shortest run.
const HEALTHY: &[(&str, Shape)] = &[
    ("exponential lives", |random, _| {
        Site::new(
            SITE,
            200,
            random.scale(100.0, 1_000.0),
            exponential(random.scale(1e-3, 6.0)),
        )
    }),
    ("lognormal lives", |random, _| {
        let life = lognormal(random.scale(0.01, 1.0), random.within(0.5, 1.5));
        Site::new(SITE, 500, random.scale(100.0, 1000.0), life)
    }),
    ("fixed lives", |random, _| {
        Site::new(
            SITE,
            64,
            random.scale(100.0, 1000.0),
            fixed(random.scale(0.01, 12.0)),
        )
    }),
    ("sessions of very different lengths", |random, _| {
        let (short, long) = (exponential(0.01), exponential(random.scale(2.0, 8.0)));
        Site::new(
            SITE,
            1000,
            1000.0,
            Box::new(move |born, random| {
                if random.unit() < 0.95 {
                    short(born, random)
                } else {
                    long(born, random)
                }
            }),
        )
    }),
    ("full LRU cache", |random, _| {
        let capacity = random.scale(300.0, 3_000.0);
        let rate = capacity / random.within(3.0, 15.0);
        Site::new(SITE, 300, rate, fixed(capacity / rate))
    }),
    ("sawtooth", |random, _| {
        let period = random.within(2.0, 15.0);
        Site::new(
            SITE,
            512,
            random.scale(50.0, 1000.0),
            Box::new(move |born, _| (born / period).floor() * period + period - born),
        )
    }),
    ("occupancy goes up and down, correlated", |random, _| {
        let (period, phase) = (random.within(15.0, 90.0), random.within(0.0, 6.3));
        Site::new(
            SITE,
            1024,
            5_000.0,
            Box::new(move |born, random| {
                let busy = (born / period * std::f64::consts::TAU + phase).sin();
                random.exponential(0.05 * (2.0 * busy).exp())
            }),
        )
        .at_load(move |at| 0.5 + 0.4 * (at / period * std::f64::consts::TAU + phase).sin())
    }),
    ("silence", |_, _| Site::new(SITE, 4096, 0.5, fixed(0.001))),
];

/// In full by `cargo test --release --lib intervals`.
const RUNS: u64 = if cfg!(debug_assertions) { 40 } else { 100 };

fn each(shape: Shape, seed: u64, check: &mut dyn FnMut(&Program, &Survivors, u64)) {
    for run in 0..RUNS {
        let mut random = Random(seed * 1_000_003 + run);
        let schedule = drawn(&mut random);
        let site = shape(&mut random, &schedule);
        let rate = random.scale(5_000.0, 200_000.0);
        let mut sites = churn(&mut random, rate);
        sites.push(site);
        let program = Program::new(schedule, sites);
        let survivors = program.observe(&mut random);
        check(&program, &survivors, run);
    }
}

#[test]
fn intervals_cover_the_truth_of_leaks() {
    let mut all = Tally::default();
    for (seed, (name, shape)) in LEAKS.iter().enumerate() {
        let (mut covered, mut close, mut found) =
            (Tally::default(), Tally::default(), Tally::default());
        each(*shape, seed as u64, &mut |program, survivors, _| {
            let truth = program.leak_rate(SITE);
            let Some(rate) = estimate(&group(survivors, SITE), survivors).rate else {
                covered.add(false);
                return;
            };
            covered.add(rate.covers(truth));
            all.add(rate.covers(truth));
            close.add((rate.value / truth - 1.0).abs() < 0.25);
            let survey = judged(program, survivors, None);
            found.add(verdict(&survey, SITE).0 == Some(Verdict::UnboundedGrowth));
        });
        println!(
            "{name}: covered {}/{}, within 25 % {}, called growth {}",
            covered.yes, covered.of, close.yes, found.yes
        );
        // 95 % of 100 is 95 ± 2.2
        assert!(covered.share() >= 0.89, "{name}: {covered:?}");
    }
    println!(
        "all: covered {}/{} ({:.1} %)",
        all.yes,
        all.of,
        100.0 * all.share()
    );
    assert!(all.share() >= 0.93, "{all:?}");
}

#[test]
fn intervals_of_healthy_sites_contain_zero() {
    for (seed, (name, shape)) in HEALTHY.iter().enumerate() {
        let (mut zero, mut quiet) = (Tally::default(), Tally::default());
        each(*shape, 100 + seed as u64, &mut |program, survivors, _| {
            let rate = estimate(&group(survivors, SITE), survivors).rate;
            zero.add(rate.is_none_or(|rate| rate.low <= 0.0));
            let survey = judged(program, survivors, None);
            quiet.add(
                survey
                    .judgements
                    .sites
                    .iter()
                    .all(|site| site.verdict != Some(Verdict::UnboundedGrowth)),
            );
        });
        println!(
            "{name}: interval contains 0 in {}/{}, nothing found in {}",
            zero.yes, zero.of, quiet.yes
        );
        assert!(zero.share() >= 0.95, "{name}: {zero:?}");
        assert!(quiet.share() >= 0.95, "{name}: {quiet:?}");
    }
}
