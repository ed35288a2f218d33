//! The cost of a hit, as the governor measures it at start.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use lingerscope::{
    capture::{
        Capture,
        governor::{Costs, costs::measure},
        links::Method,
        object::Sizes,
    },
    host::quarantine::Quarantine,
};

use crate::{allocators::SmallLeak, inspection::Inspection, lab, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("costs::multi", || check(Method::Multi)),
        trial("costs::single_stepped_are_told", single_stepped),
        trial("costs::own_processor_time_is_told", own_processor_time),
    ]
}

/// The told microseconds of a call of a program that does nothing else.
fn told(flags: &[&str], name: &str) -> Result<f64> {
    let path = lab::compile("cc", "leak.c", flags, name)?;
    let small = SmallLeak::start(&path, &mut lab::random(name)?)?;
    let report = Inspection::of(small.pid(), 6)?
        .arguments(["--sample", "1000000"])
        .run()?;
    let capture = &report.process(small.pid())?["capture"];
    let number = |name: &str| {
        let value = capture[name].as_f64();
        value.with_context(|| format!("no {name}\n{report}"))
    };
    let seconds = number("target_slowdown_percent")? / 100.0 * number("open_s")?;
    Ok(seconds / number("allocations")? * 1e6)
}

fn single_stepped() -> Result<()> {
    let emulated = told(&[], "leak-glibc")?;
    let stepped = told(&["-DALIGNED"], "leak-aligned")?;
    // A trap takes 0.7 µs, ten times that where it is single-stepped.
    ensure!(
        emulated < 4.0 && stepped > emulated + 1.5,
        "{emulated} µs a call, and {stepped} µs single-stepped"
    );
    Ok(())
}

/// A service that mostly waits.
fn own_processor_time() -> Result<()> {
    let path = lab::compile("cc", "leak.c", &[], "leak-glibc")?;
    let small = SmallLeak::start(&path, &mut lab::random("costs::own")?)?;
    let pid = small.pid();
    for mode in ["trace", "auto"] {
        let report = Inspection::by_mode(mode, 6)?
            .arguments(["-p", &pid.to_string()])
            .run()?;
        let cpu = &report.process(pid)?["capture"]["target_cpu"];
        let number = |name: &str| {
            let value = cpu[name].as_f64();
            value.with_context(|| format!("{mode}: no {name}\n{report}"))
        };
        let (before, during) = (number("cores_before")?, number("cores_during")?);
        let share = number("probe_percent_of_own")?;
        ensure!(
            (0.0..0.5).contains(&before) && during > 0.0 && during < 0.5,
            "{mode}: {before}, {during}\n{report}"
        );
        // 100 calls a second and more of it, in a process that does nothing
        // else: more of its own time than of all time.
        let time = report.process(pid)?["capture"]["target_slowdown_percent"].as_f64();
        ensure!(
            share > time.context("no slowdown")? && share <= 100.0,
            "{mode}: {share}\n{report}"
        );
    }
    // Nobody saw a command before it was probed.
    let path = path.to_string_lossy();
    let report = Inspection::new(3)?
        .arguments(["--", &path, "200", "1000", "2"])
        .run()?;
    let process = report.processes().first().context("no process")?;
    let cpu = &process["capture"]["target_cpu"];
    ensure!(
        cpu["cores_before"].is_null() && cpu["cores_during"].is_number(),
        "{report}"
    );
    Ok(())
}

fn check(method: Method) -> Result<()> {
    let place = std::env::temp_dir().join(format!("lingerscope-live-costs-{}", std::process::id()));
    let sizes = Sizes { live_blocks: 4096 };
    let mut capture = Capture::new(sizes, &[method], Quarantine::open(&place))?;
    // Another load on the machine makes it longer, never shorter.
    let mut quickest = Duration::MAX;
    let mut best: Option<Costs> = None;
    for _ in 0..5 {
        let began = Instant::now();
        let costs = measure::measure(&mut capture);
        quickest = quickest.min(began.elapsed());
        if best.is_none_or(|best| costs.trap < best.trap) {
            best = Some(costs);
        }
    }
    let costs = best.context("nothing was measured")?;
    ensure!(
        quickest < Duration::from_millis(300),
        "measuring takes {quickest:?}"
    );
    let assumed = Costs::assumed(method);
    ensure!(
        (costs.trap - assumed.trap).abs() > 1e-9 && (costs.frame - assumed.frame).abs() > 1e-9,
        "costs were assumed, not measured: {costs:?}"
    );
    // Of any machine: a trap costs hundreds of nanoseconds, a frame a few, and
    // a child that inherited breakpoints pays about what its parent does.
    ensure!((150.0..5_000.0).contains(&costs.trap), "{costs:?}");
    ensure!(costs.stepped > costs.trap, "{costs:?}");
    ensure!((1.0..500.0).contains(&costs.frame), "{costs:?}");
    ensure!((50.0..10_000.0).contains(&costs.record), "{costs:?}");
    ensure!((200.0..20_000.0).contains(&costs.inherited), "{costs:?}");
    ensure!(costs.detach < Duration::from_secs(1), "{costs:?}");
    Ok(())
}
