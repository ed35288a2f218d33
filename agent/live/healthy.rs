//! Healthy programs are left alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::{
    inspection::Inspection,
    lab,
    leaks::LEAKS,
    server::{Server, lateness},
    trial,
};

/// Long enough for three teeth of the saw, or a burst and its end.
const LONG: u32 = 13;
const SHORT: u32 = 8;

pub(crate) fn trials() -> Vec<Trial> {
    let twins = LEAKS
        .into_iter()
        .chain(["none", "lru", "sawtooth", "slow-cache"])
        .map(|work| {
            trial(format!("healthy::{work}"), move || {
                let mut random = lab::random(&format!("healthy::{work}"))?;
                let late = lateness(&mut random);
                let watched = if work == "sawtooth" { LONG } else { SHORT };
                quiet(&["--healthy", work], late, watched)
            })
        });
    let special = [
        // Switched off, that is: its leak would begin long after the end.
        trial("healthy::leak_switched_off", || {
            quiet(
                &["--leak", "map", "--delay", "1000"],
                Duration::from_secs(1),
                SHORT,
            )
        }),
        trial("healthy::limit_out_of_reach", limit_out_of_reach),
        // The burst comes while the server is watched, and after that nothing.
        trial("healthy::burst-then-idle", || {
            quiet(
                &["--healthy", "burst-then-idle", "--delay", "4"],
                Duration::from_secs(1),
                LONG,
            )
        }),
    ];
    twins.chain(special).collect()
}

fn quiet(arguments: &[&str], late: Duration, watched: u32) -> Result<()> {
    let mut random = lab::random(&format!("{arguments:?}"))?;
    let server = Server::start("server", arguments, &mut random, late)?;
    let pid = server.program.pid();
    let report = Inspection::of(pid, watched)?.run()?;
    let drawn = &server.drawn;
    ensure!(
        report
            .findings(pid)?
            .iter()
            .all(|finding| !finding.is_sure()),
        "{drawn}: a false alarm\n{report}"
    );
    ensure!(report.code() == Some(0), "{drawn}: exit status\n{report}");
    // "Nothing found" says what would have been.
    let process = report.process(pid)?;
    ensure!(
        process["detection_limit_bytes_per_s"]
            .as_f64()
            .is_some_and(|limit| limit > 0.0),
        "{drawn}: no detection limit\n{report}"
    );
    let text = String::from_utf8_lossy(&report.text);
    ensure!(
        text.contains("leak above"),
        "{drawn}: the text names no limit: {text}\n{report}"
    );
    let allocations = report.process(pid)?["capture"]["allocations"].as_u64();
    ensure!(
        allocations.is_some_and(|count| count > 0),
        "{drawn}: nothing was observed\n{report}"
    );
    Ok(())
}

/// Nothing found, but not as finely as asked for: inconclusive.
fn limit_out_of_reach() -> Result<()> {
    let mut random = lab::random("limit")?;
    let server = Server::start("server", &[], &mut random, Duration::ZERO)?;
    let inspection = Inspection::of(server.program.pid(), 6)?;
    let report = inspection
        .arguments(["--limit", "1", "--sample", "64KiB"])
        .run()?;
    report.expect_code(&[4])?;
    ensure!(
        report.message().contains("limit"),
        "it does not say why\n{report}"
    );
    Ok(())
}
