//! What became of tasks: those that stay are told as such, once, and healthy
//! ones are left alone.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    inspection::{Finding, Inspection, Report},
    lab, leaks,
    program::Program,
    server::Server,
    trial,
};

/// Long enough for several readings of the task table on a busy machine.
const WATCHED: u32 = 18;

/// Long enough for windows whose blocks reach the age of 30 s.
const SURVEYED: u32 = 60;

/// Verdicts about tasks.
const VERDICTS: [&str; 2] = ["stuck-task", "unreaped-task"];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("task_life::stuck_tasks_under_survey", || {
            leak("stuck-task", "stuck-task", "idle", surveyed()?)
        }),
        trial("task_life::unreaped_tasks_under_survey", || {
            leak("joinset", "unreaped-task", "complete", surveyed()?)
        }),
        trial("task_life::stuck_tasks", || {
            leak("stuck-task", "stuck-task", "idle", traced()?)
        }),
        trial("task_life::unreaped_tasks", || {
            leak("joinset", "unreaped-task", "complete", traced()?)
        }),
        trial("task_life::healthy_stuck_task", || healthy("stuck-task")),
        trial("task_life::healthy_joinset", || healthy("joinset")),
        trial("task_life::many_idle_tasks", many_idle_tasks),
        trial("task_life::finished_tasks_whose_blocks_live", finished),
    ]
}

fn role<'a>(finding: Finding<'a>, role: &str) -> Vec<&'a Value> {
    let tasks = finding.0["tasks"].as_array().into_iter().flatten();
    tasks.filter(|task| task["role"] == role).collect()
}

/// The counts of tasks, which must be there.
fn counts(report: &Report, pid: u32) -> Result<[u64; 3]> {
    let tasks = &report.process(pid)?["tokio"]["tasks"];
    let number = |name: &str| {
        tasks[name]
            .as_u64()
            .with_context(|| format!("no {name} tasks in {tasks}\n{report}"))
    };
    Ok([number("live")?, number("idle")?, number("completed")?])
}

fn traced() -> Result<Inspection> {
    Ok(Inspection::new(WATCHED)?.arguments(["--sample", "1"]))
}

fn surveyed() -> Result<Inspection> {
    Inspection::by_mode("survey", SURVEYED)
}

/// The leak is one finding with the tasks' verdict, where they are spawned,
/// with the rate that the server counted.
fn leak(leak: &'static str, verdict: &str, state: &str, inspection: Inspection) -> Result<()> {
    let mut random = lab::random(&format!("task_life::{leak}"))?;
    let arguments = ["--leak", leak];
    let server = Server::start_slowly("server", &arguments, &mut random, Duration::ZERO)?;
    let pid = server.program.pid();
    let report = inspection
        .arguments(["--fail-on", "suspected", "-p", &pid.to_string()])
        .run()?;
    let drawn = format!("{}\n{report}", server.drawn);
    report.expect_code(&[3])?;
    std::thread::sleep(Duration::from_millis(500));
    let truth = server.truth()?;
    let of_leak: Vec<Finding<'_>> = report
        .findings(pid)?
        .into_iter()
        .filter(|finding| finding.first_user_function().contains(truth.function()))
        .collect();
    let [finding] = of_leak.as_slice() else {
        anyhow::bail!("{} findings of one leak: {drawn}", of_leak.len());
    };
    ensure!(
        finding.text("verdict") == verdict,
        "another verdict: {drawn}"
    );
    let (begin, end) = report.span()?;
    let exact = report.process(pid)?["capture"]["mode"] == "trace";
    leaks::check_rate(*finding, truth.rate(begin, end)?, exact, &drawn)?;

    let holders = role(*finding, "holds");
    ensure!(!holders.is_empty(), "no task holds it: {drawn}");
    for task in &holders {
        ensure!(
            task["state"] == state
                && task["name"]
                    .as_str()
                    .is_some_and(|name| name.contains(leak_module(leak))),
            "{task}: {drawn}"
        );
    }
    let since = if state == "idle" { "idle_s" } else { "ended_s" };
    ensure!(
        holders[0][since].as_f64().is_some_and(|least| least > 1.0),
        "{since} of {}: {drawn}",
        holders[0]
    );
    let allocators = role(*finding, "allocated");
    ensure!(
        allocators.iter().any(|task| task["state"].is_string()),
        "no state of the tasks that allocated it: {drawn}"
    );
    let [live, idle, completed] = counts(&report, pid)?;
    let many = if state == "idle" { idle } else { completed };
    ensure!(many > 100 && live > 0, "{live} {idle} {completed}: {drawn}");
    ensure!(
        report.process(pid)?["tokio"]["runtimes"] == 1,
        "runtimes: {drawn}"
    );
    let text = String::from_utf8_lossy(&report.text);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["Tokio tasks that hold it", "readings of the task table"] {
        ensure!(text.contains(part), "{part:?} is not in {text}\n{drawn}");
    }
    Ok(())
}

fn leak_module(leak: &str) -> &str {
    match leak {
        "stuck-task" => "stuck_task",
        other => other,
    }
}

fn no_task_verdict(report: &Report, pid: u32, about: &str) -> Result<()> {
    let findings = report.findings(pid)?;
    ensure!(
        findings
            .iter()
            .all(|finding| !VERDICTS.contains(&finding.text("verdict")) && !finding.is_sure()),
        "{about}: a false alarm\n{report}"
    );
    Ok(())
}

fn healthy(work: &'static str) -> Result<()> {
    let mut random = lab::random(&format!("task_life::healthy::{work}"))?;
    let arguments = ["--healthy", work];
    let server = Server::start_slowly("server", &arguments, &mut random, Duration::ZERO)?;
    let pid = server.program.pid();
    let report = Inspection::of(pid, WATCHED)?.run()?;
    no_task_verdict(&report, pid, &server.drawn)?;
    let [live, ..] = counts(&report, pid)?;
    ensure!(live > 8, "{}: only {live} tasks\n{report}", server.drawn);
    Ok(())
}

/// Many tasks that wait for long, but no more of them as time goes on.
fn many_idle_tasks() -> Result<()> {
    let program = Program::start(&lab::plain_example("tasks")?, &["20000", "1"])?;
    let pid = program.pid();
    let report = Inspection::of(pid, WATCHED)?.run()?;
    no_task_verdict(&report, pid, "20000 idle tasks")?;
    let [live, idle, _] = counts(&report, pid)?;
    ensure!(live >= 20_000, "only {live} tasks\n{report}");
    ensure!(
        idle * 10 >= live * 9,
        "only {idle} of {live} idle\n{report}"
    );
    Ok(())
}

/// Connections that have ended and left a cycle behind.
fn finished() -> Result<()> {
    let mut random = lab::random("task_life::finished")?;
    let arguments = ["--leak", "arc-cycle"];
    let server = Server::start_slowly("server", &arguments, &mut random, Duration::ZERO)?;
    let pid = server.program.pid();
    let report = Inspection::of(pid, WATCHED)?
        .arguments(["--fail-on", "suspected"])
        .run()?;
    let top = report.top(pid)?;
    ensure!(
        top.text("verdict") == "unbounded-growth",
        "{}: another verdict\n{report}",
        server.drawn
    );
    let allocators = role(top, "allocated");
    let over = allocators.iter().filter(|task| {
        task["state"] == "finished" && task["ended_s"].as_f64().is_some_and(|least| least >= 0.0)
    });
    ensure!(
        over.count() * 2 > allocators.len(),
        "{}: most of {allocators:?} have finished\n{report}",
        server.drawn
    );
    let text = String::from_utf8_lossy(&report.text);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(
        text.contains("while its blocks live"),
        "{}: {text}\n{report}",
        server.drawn
    );
    Ok(())
}
