//! Each leak of the example server is found where it is, as fast as it is, in
//! the task that did it.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::{
    inspection::{Finding, Inspection, Report},
    lab,
    program::Program,
    server::{Server, lateness},
    trial,
    truth::Rate,
};

pub(crate) const LEAKS: [&str; 7] = [
    "arc-cycle",
    "stuck-task",
    "unbounded-channel",
    "joinset",
    "map",
    "forget",
    "ffi",
];

/// Seconds of each inspection.
const WATCHED: u32 = 11;

/// Share of the truth by which an interval may miss it: the side file is
/// written five times a second, and a run's first and last moments are not the
/// instants between which blocks were counted.
const CLOCKS: f64 = 0.05;

/// How far the value may be off when every allocation was captured.
const EXACT: f64 = 0.15;

pub(crate) fn trials() -> Vec<Trial> {
    LEAKS
        .into_iter()
        .flat_map(|leak| {
            [
                trial(format!("leaks::{leak}"), move || find(leak, &[])),
                trial(format!("leaks::{leak}_every_allocation"), move || {
                    find(leak, &["--sample", "1"])
                }),
            ]
        })
        .chain([
            trial("leaks::source_line", source_line),
            trial("leaks::tasks_of_a_stripped_program", stripped),
        ])
        .collect()
}

/// With debug information, the finding names file and line.
fn source_line() -> Result<()> {
    let path = lab::example("server")?;
    let program = Program::start(&path, &["--leak", "map", "--seconds", "60"])?;
    let pid = program.pid();
    let report = Inspection::of(pid, 8)?
        .arguments(["--fail-on", "suspected"])
        .run()?;
    report.expect_code(&[3])?;
    let top = report.top(pid)?.0;
    let mut frames = top["site"]["frames"].as_array().into_iter().flatten();
    let frame = frames.find(|frame| {
        frame["function"]
            .as_str()
            .is_some_and(|name| name.contains("map::remember"))
    });
    let frame = frame.with_context(|| format!("no frame of map::remember\n{report}"))?;
    ensure!(
        frame["file"]
            .as_str()
            .is_some_and(|file| file.ends_with("server/map.rs"))
            && frame["line"]
                .as_u64()
                .is_some_and(|line| (15..60).contains(&line)),
        "file and line of {frame}\n{report}"
    );
    let text = String::from_utf8_lossy(&report.text);
    ensure!(
        text.contains("map.rs:"),
        "the text names no line: {text}\n{report}"
    );
    Ok(())
}

/// Without symbols the id's place is found by trial; the ids are the server's
/// own, and no others.
fn stripped() -> Result<()> {
    let mut random = lab::random("leaks::stripped")?;
    let arguments = ["--leak", "stuck-task"];
    let alone = Duration::from_secs(1);
    let server = Server::start_stripped("server", &arguments, &mut random, alone)?;
    let pid = server.program.pid();
    let report = Inspection::of(pid, WATCHED)?
        .arguments(["--fail-on", "suspected", "--sample", "1"])
        .run()?;
    let drawn = &server.drawn;
    ensure!(report.code() == Some(3), "{drawn}: not found\n{report}");
    thread::sleep(Duration::from_millis(500));
    check_tasks(&report, &server)?;
    let leaking = server.truth()?.tasks();
    let ids = report.top(pid)?.task_ids();
    ensure!(
        ids.iter().all(|id| leaking.contains(id)),
        "{drawn}: of the tasks {ids:?} some did not leak; {leaking:?} did\n{report}"
    );
    Ok(())
}

fn find(leak: &'static str, sampling: &[&str]) -> Result<()> {
    let mut random = lab::random(&format!("leaks::{leak}{sampling:?}"))?;
    let late = lateness(&mut random);
    let server = Server::start("server", &["--leak", leak], &mut random, late)?;
    check(&server, sampling)
}

/// Inspects a leaking server and compares with its own count.
pub(crate) fn check(server: &Server, sampling: &[&str]) -> Result<()> {
    let pid = server.program.pid();
    let report = Inspection::of(pid, WATCHED)?
        .arguments(["--fail-on", "suspected"])
        .arguments(sampling)
        .run()?;
    let drawn = &server.drawn;
    ensure!(report.code() == Some(3), "{drawn}: not found\n{report}");
    // The server writes its count at its own pace: wait for the line after the
    // end.
    thread::sleep(Duration::from_millis(500));
    let truth = server.truth()?;
    let top = report.top(pid)?;
    ensure!(
        top.first_user_function().contains(truth.function()),
        "{drawn}: the top finding is not in {}\n{report}",
        truth.function()
    );
    let (begin, end) = report.span()?;
    let rate = truth.rate(begin, end)?;
    check_rate(
        top,
        rate,
        !sampling.is_empty(),
        &format!("{drawn}\n{report}"),
    )?;
    check_tasks(&report, server)
}

/// The interval covers the truth; with every allocation captured the value
/// itself is near.
pub(crate) fn check_rate(
    finding: Finding<'_>,
    truth: Rate,
    exact: bool,
    about: &str,
) -> Result<()> {
    let (value, low, high) = finding.estimate("leak_bytes_per_s")?;
    ensure!(
        low <= value && value <= high,
        "{value} is not within {low}..{high}: {about}"
    );
    ensure!(
        low <= truth.high * (1.0 + CLOCKS) && truth.low * (1.0 - CLOCKS) <= high,
        "{low:.0}..{high:.0} B/s does not cover the true {:.0}..{:.0}: {about}",
        truth.low,
        truth.high
    );
    ensure!(
        !exact || (truth.low * (1.0 - EXACT) <= value && value <= truth.high * (1.0 + EXACT)),
        "{value:.0} B/s is not within 15 % of the true {:.0}..{:.0}: {about}",
        truth.low,
        truth.high
    );
    Ok(())
}

fn check_tasks(report: &Report, server: &Server) -> Result<()> {
    let pid = server.program.pid();
    let drawn = &server.drawn;
    ensure!(
        report.process(pid)?["tokio"]["task_id"] == "tls",
        "{drawn}: the task ids must come from its TLS\n{report}"
    );
    let leaking = server.truth()?.tasks();
    let ids = report.top(pid)?.task_ids();
    ensure!(
        !ids.is_empty(),
        "{drawn}: the finding names no task\n{report}"
    );
    ensure!(
        ids.iter().any(|id| leaking.contains(id)),
        "{drawn}: none of the tasks {ids:?} leaked; {leaking:?} did\n{report}"
    );
    Ok(())
}
