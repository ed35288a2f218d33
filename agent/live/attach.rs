//! Every way to attach finds the leak, touches nothing else and leaves nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::{
    allocators::{SmallLeak, plain},
    breakpoints,
    inspection::Inspection,
    lab, trial,
};

/// Attach mode and how long its breakpoints may stay after the end. After
/// `kill -9` the kernel removes perf probes one by one: 52 of them, at 0.3 s
/// each at worst.
const MODES: [(&str, u64); 2] = [("multi", 2000), ("perf", 16_800)];

const ATTACH_LIMIT: Duration = Duration::from_secs(15);

pub(crate) fn trials() -> Vec<Trial> {
    MODES
        .into_iter()
        .flat_map(|(mode, gone)| {
            let gone = Duration::from_millis(gone);
            [
                trial(format!("attach::{mode}_finds_the_leak"), move || {
                    let small = SmallLeak::start(&plain()?, &mut lab::random(mode)?)?;
                    small.check(&["--attach", mode], "glibc").map(drop)
                }),
                trial(
                    format!("attach::{mode}_leaves_nothing_after_interrupt"),
                    move || stop(mode, gone, false),
                ),
                trial(
                    format!("attach::{mode}_leaves_nothing_after_kill"),
                    move || stop(mode, gone, true),
                ),
                trial(
                    format!("attach::{mode}_touches_no_other_process"),
                    move || alone(mode),
                ),
            ]
        })
        .collect()
}

/// Ends a run in its middle: by Ctrl-C, which reports, or by `kill -9`.
fn stop(mode: &str, gone: Duration, kill: bool) -> Result<()> {
    let mut random = lab::random(&format!("stop {mode} {kill}"))?;
    let mut small = SmallLeak::start(&plain()?, &mut random)?;
    let pid = small.program.pid();
    let mut running = Inspection::of(pid, 40)?
        .arguments(["--attach", mode])
        .start()?;
    breakpoints::wait_for(pid, ATTACH_LIMIT)?;
    // A report of less than five seconds is inconclusive.
    let while_watched = if kill { 1.0 } else { 6.0 } + random.share();
    std::thread::sleep(Duration::from_secs_f64(while_watched));
    if kill {
        running.kill()?;
    } else {
        running.interrupt()?;
        let report = running
            .finish(Duration::from_secs(10))
            .context("after SIGINT")?;
        report.expect_code(&[0, 3])?;
        report.process(pid)?;
        ensure!(!report.text.is_empty(), "no report after SIGINT\n{report}");
    }
    breakpoints::wait_until_gone(pid, gone)?;
    ensure!(small.program.is_running()?, "the observed program ended");
    Ok(())
}

/// A second process on the same libc never gets a breakpoint.
fn alone(mode: &str) -> Result<()> {
    let mut random = lab::random(&format!("alone {mode}"))?;
    let observed = SmallLeak::start(&plain()?, &mut random)?;
    let other = SmallLeak::start(&plain()?, &mut random)?;
    let pid = observed.program.pid();
    let mut running = Inspection::of(pid, 4)?
        .arguments(["--attach", mode])
        .start()?;
    breakpoints::wait_for(pid, ATTACH_LIMIT)?;
    let mut looks = 0;
    while running.is_running()? {
        let found = breakpoints::in_process(other.program.pid())?;
        ensure!(
            found.is_empty(),
            "{} breakpoints in a process that is no target",
            found.len()
        );
        looks += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(
        looks > 5,
        "the run ended before the other process could be looked at"
    );
    running
        .finish(Duration::from_secs(1))?
        // Four seconds are too few for a verdict.
        .expect_code(&[0, 3, 4])
}
