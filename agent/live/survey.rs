//! Short windows and reading again find a leak that was never followed as a
//! whole, at a cost below one percent.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::{inspection::Inspection, lab, leaks, server::Server, trial};

/// Long enough for blocks to reach the age of 30 s.
const WATCHED: u32 = 60;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("survey::leak_beside_its_twin", beside_its_twin)]
}

/// Both in one run: the leak is found where it is and as fast as it is, its
/// healthy twin gets nothing.
fn beside_its_twin() -> Result<()> {
    let mut random = lab::random("survey::leak_beside_its_twin")?;
    let start = |arguments: &[&str], random: &mut _| {
        Server::start_slowly("server", arguments, random, Duration::from_secs(1))
    };
    let leaking = start(&["--leak", "arc-cycle"], &mut random)?;
    let healthy = start(&["--leak", "none"], &mut random)?;
    let (pid, twin) = (leaking.program.pid(), healthy.program.pid());
    let drawn = &leaking.drawn;
    let report = Inspection::by_mode("survey", WATCHED)?
        .arguments(["-p", &pid.to_string(), "-p", &twin.to_string()])
        .arguments(["--fail-on", "suspected"])
        .run()?;
    ensure!(report.code() == Some(3), "{drawn}: not found\n{report}");
    let top = report.top(pid)?;
    let truth = leaking.truth()?;
    ensure!(
        top.first_user_function().contains(truth.function()),
        "{drawn}: the top finding is not in {}\n{report}",
        truth.function()
    );
    let (begin, end) = report.span()?;
    leaks::check_rate(
        top,
        truth.rate(begin, end)?,
        false,
        &format!("{drawn}\n{report}"),
    )?;
    ensure!(
        report.findings(twin)?.is_empty(),
        "a finding in the healthy twin\n{report}"
    );
    for process in [pid, twin] {
        let capture = &report.process(process)?["capture"];
        ensure!(capture["mode"] == "survey", "{capture}");
        let slowdown = capture["target_slowdown_percent"]
            .as_f64()
            .context("no slowdown")?;
        ensure!(slowdown < 1.0, "slowed by {slowdown} %\n{report}");
    }
    Ok(())
}
