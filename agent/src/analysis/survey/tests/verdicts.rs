//! What sites are called, and how surely.

use super::{
    program::{Allocator, Program, Random, Schedule, Site},
    *,
};
use crate::analysis::Identity;

const KIB: f64 = 1024.0;

fn schedule(run: f64) -> Schedule {
    Schedule {
        run,
        window: 0.25,
        duty: 0.05,
        mean: 256,
    }
}

/// A leak of 100 KiB/s in a busy site.
fn leaky(run: f64) -> Program {
    Program::new(
        schedule(run),
        vec![
            Site::new(SITE, 128, 100.0 * KIB / 128.0, fixed(1.0)).leaking(1.0),
            Site::churn(SITE, 128, 20_000.0, 0.005),
        ],
    )
}

fn observed(program: &Program, limit: Option<MemoryLimit>, seed: u64) -> Survey<StackId> {
    judged(program, &program.observe(&mut Random(seed)), limit)
}

fn near(seconds: f64) -> MemoryLimit {
    MemoryLimit {
        limit_bytes: 1 << 30,
        used_bytes: (1 << 30) - (100.0 * KIB * seconds) as u64,
    }
}

#[test]
fn a_leak_is_suspected_until_a_limit_is_near_or_time_has_passed() {
    for seed in 0..10 {
        let program = leaky(300.0);
        let growth = Some(Verdict::UnboundedGrowth);
        let far = verdict(&observed(&program, None, seed), SITE);
        assert_eq!(far, (growth, Confidence::Suspected));
        let close = verdict(&observed(&program, Some(near(600.0)), seed), SITE);
        assert_eq!(close, (growth, Confidence::Strong));
        let away = verdict(&observed(&program, Some(near(9e3)), seed), SITE);
        assert_eq!(away, (growth, Confidence::Suspected));
    }
}

#[test]
fn blocks_that_await_their_reading_are_not_missing() {
    for seed in 0..10 {
        let mut program = leaky(300.0);
        program.schedule.duty = 0.2;
        program.read_until = 200.0;
        let growth = (Some(Verdict::UnboundedGrowth), Confidence::Suspected);
        assert_eq!(verdict(&observed(&program, None, seed), SITE), growth);
    }
}

#[test]
fn a_leak_that_never_slows_is_strong_in_time() {
    let mut program = leaky(4000.0);
    program.schedule.duty = 0.01;
    program.schedule.mean = 4096;
    let survey = observed(&program, None, 1);
    let found = verdict(&survey, SITE);
    let why = &survey.judgements.sites[0].evidence;
    assert_eq!(
        found,
        (Some(Verdict::UnboundedGrowth), Confidence::Strong),
        "{why:#?}"
    );
}

#[test]
fn strong_needs_a_plateau_beyond_the_longest_life() {
    for seed in 0..10 {
        let mut program = leaky(300.0);
        // some live for 12 s and then go
        program.sites.push(Site::new(SITE, 128, 20.0, fixed(12.0)));
        program.schedule.run = 80.0;
        let survey = observed(&program, Some(near(300.0)), seed);
        assert_ne!(verdict(&survey, SITE).1, Confidence::Strong);
    }
}

#[test]
fn strong_needs_a_memory_that_grows() {
    for seed in 0..10 {
        let mut program = leaky(300.0);
        program.growth = Some(0.0);
        let found = verdict(&observed(&program, Some(near(300.0)), seed), SITE);
        assert_ne!(found.1, Confidence::Strong);
        assert_eq!(found.0, Some(Verdict::Bounded));
    }
}

/// Cache with old entries from before the survey: every insertion evicts one
/// of those, and no new entry is seen to go.
#[test]
fn a_full_cache_with_long_lives_is_not_strong() {
    let (mut quiet, mut strong) = (Tally::default(), Tally::default());
    for seed in 0..40 {
        let mut program = Program::new(
            schedule(180.0),
            vec![Site::new(SITE, 512, 200.0, fixed(600.0))],
        );
        program.growth = Some(0.0);
        let found = verdict(&observed(&program, Some(near(60.0)), seed), SITE);
        quiet.add(found.0 != Some(Verdict::UnboundedGrowth));
        strong.add(found.1 == Confidence::Strong);
    }
    println!(
        "full cache: quiet in {} of {}, strong {}",
        quiet.yes, quiet.of, strong.yes
    );
    assert!(strong.yes == 0 && quiet.share() >= 0.95);
}

#[test]
fn warm_up_is_not_strong() {
    let mut counts = std::collections::BTreeMap::new();
    let mut strong = 0;
    for seed in 0..40 {
        let mut random = Random(seed);
        let fills = random.within(10.0, 60.0);
        let site = Site::new(SITE, 256, 2000.0, fixed(1.0))
            .leaking(1.0)
            .at_load(move |at| (-at / fills).exp());
        let program = Program::new(schedule(random.within(180.0, 300.0)), vec![site]);
        let found = verdict(&observed(&program, Some(near(300.0)), seed), SITE);
        *counts.entry(found.0.map(Verdict::id)).or_insert(0) += 1;
        strong += u32::from(found.1 == Confidence::Strong);
    }
    println!("warm-up: {counts:?}, strong {strong} of 40");
    assert_eq!(strong, 0);
    let blamed = counts.get(&Some("unbounded-growth")).copied().unwrap_or(0);
    // Of those that fill for a third of the run, some cannot be told yet.
    assert!(blamed <= 8, "{counts:?}");
}

#[test]
fn start_up_state_is_quiet() {
    for seed in 0..20 {
        let site = Site::new(SITE, 4096, 500.0, fixed(1.0))
            .leaking(1.0)
            .at_load(|at| if at < 20.0 { 1.0 } else { 0.0 });
        let mut program = Program::new(schedule(180.0), vec![site]);
        program.growth = Some(2e5);
        let found = verdict(&observed(&program, None, seed), SITE).0;
        assert_ne!(found, Some(Verdict::UnboundedGrowth));
    }
}

#[test]
fn a_sawtooth_of_half_the_run_is_not_strong() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let (period, phase) = (random.within(30.0, 90.0), random.within(0.0, 90.0));
        let site = Site::new(
            SITE,
            512,
            500.0,
            Box::new(move |born, _| {
                let at = born + phase;
                (at / period).floor() * period + period - at
            }),
        );
        let mut program = Program::new(schedule(240.0), vec![site]);
        program.growth = Some(1000.0);
        let survey = observed(&program, Some(near(60.0)), seed);
        assert_ne!(verdict(&survey, SITE).1, Confidence::Strong);
    }
}

#[test]
fn unchanged_contents_alone_prove_little() {
    let mut program = leaky(300.0);
    program.allocator = Allocator::Silent(300);
    // A class of its own: nobody sees how soon it is reused.
    program.sites.truncate(1);
    let alone = observed(&program, Some(near(300.0)), 1);
    let site = &alone.judgements.sites[0];
    assert_eq!(site.verdict, Some(Verdict::UnboundedGrowth));
    assert_eq!(site.confidence, Confidence::Suspected);
    assert!(site.leak_rate.low <= 0.0, "{:?}", site.leak_rate);
    assert!(
        site.evidence
            .iter()
            .any(|line| line.text.contains("proves little"))
    );
    // The same, where the process is not seen to grow: nothing.
    program.growth = Some(0.0);
    let flat = observed(&program, None, 1);
    assert_ne!(verdict(&flat, SITE).0, Some(Verdict::UnboundedGrowth));
    // Others of this size come and go.
    program.growth = None;
    program
        .sites
        .push(Site::new(2, 128, 2000.0, exponential(0.2)));
    let beside = observed(&program, Some(near(300.0)), 1);
    assert_eq!(
        verdict(&beside, SITE),
        (Some(Verdict::UnboundedGrowth), Confidence::Strong)
    );
    assert_eq!(verdict(&beside, 2).0, None);
}

#[test]
fn an_inconsistent_estimate_supports_no_verdict() {
    let mut program = leaky(300.0);
    program.growth = Some(25.0 * KIB);
    let survey = observed(&program, Some(near(300.0)), 3);
    assert!(survey.inconsistent, "{:?}", survey.explained_share);
    assert_eq!(verdict(&survey, SITE).0, None);
    assert!(survey.judgements.detection_limit.is_err());
    let honest = observed(&leaky(300.0), None, 3);
    let share = honest.explained_share.unwrap();
    assert!(share.covers(1.0) && !honest.inconsistent, "{share:?}");
}

#[test]
fn the_outcome_is_that_of_the_other_account() {
    let program = leaky(300.0);
    let survivors = program.observe(&mut Random(5));
    let outcome = findings(
        &survivors,
        &crate::analysis::residence::Residence::default(),
        &std::collections::BTreeMap::new(),
        &Identity {
            pid: 7,
            start_time: 8,
            exe_basename: "server".to_owned(),
        },
        &Context::default(),
        &Settings::default(),
    );
    assert_eq!(outcome.findings.len(), 1);
    let finding = &outcome.findings[0];
    for line in &finding.evidence {
        println!("{}: {}", line.kind, line.text);
    }
    let truth = program.leak_rate(SITE);
    assert!(finding.leak_bytes_per_s.covers(truth));
    assert!(
        finding.live_bytes.covers(truth * 300.0),
        "{:?}",
        finding.live_bytes
    );
    assert!(outcome.detection_limit.unwrap() < truth);
    assert!(outcome.explained_share.unwrap().covers(1.0));
}

#[test]
fn what_cannot_be_known_is_said() {
    let empty = Survivors::default();
    let survey = judge(
        &empty,
        |stack| stack,
        &Context::default(),
        &Settings::default(),
    );
    assert!(survey.judgements.sites.is_empty());
    assert!(survey.detection_limits.unwrap_err().contains("windows"));
    let short = Program::new(schedule(20.0), vec![Site::churn(SITE, 64, 1000.0, 0.01)]);
    let limits = observed(&short, None, 1).detection_limits;
    assert!(limits.unwrap_err().contains("older than"));
}
