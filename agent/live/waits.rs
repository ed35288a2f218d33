//! Futex waits of real programs: their classes by real stacks, and the verdict
//! on a consumer that is stuck at a lock.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    inspection::{Inspection, Report},
    lab,
    program::Program,
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("waits::classes", classes),
        trial("waits::blocked_while_watched", || blocked("3", 1, 14)),
        trial("waits::blocked_before", || blocked("0", 2, 10)),
        trial("waits::healthy_twin", healthy_twin),
    ]
}

fn places(report: &Report, pid: u32) -> Result<&[Value]> {
    let places = report.process(pid)?["waits"]["places"].as_array();
    Ok(places.with_context(|| format!("no waits\n{report}"))?)
}

/// Every kind of waiting is told apart, though all of it began before.
fn classes() -> Result<()> {
    let program = Program::start(&lab::plain_example("waits")?, &[])?;
    let pid = program.pid();
    thread::sleep(Duration::from_secs(1));
    let report = Inspection::of(pid, 5)?.run()?;
    let places = places(&report, pid)?;
    for (class, on, function) in [
        ("task", "lock", "waits::task_on_lock"),
        ("task", "channel", "waits::task_on_channel"),
        ("task", "condvar", "waits::task_on_condvar"),
        ("spawn-blocking", "lock", "waits::closure_on_lock"),
        ("thread", "lock", "waits::thread_on_lock"),
        ("thread", "channel", "waits::thread_on_channel"),
    ] {
        let found = places.iter().any(|place| {
            place["class"] == class
                && place["on"] == on
                && place["function"]
                    .as_str()
                    .is_some_and(|name| name.contains(function))
                && place["open"].as_u64() == Some(1)
                && place["began_before"] == true
        });
        ensure!(found, "no {class} on {on} in {function}\n{report}");
    }
    let total = |class: &str| -> u64 {
        let of_class = places.iter().filter(|place| place["class"] == class);
        let number = |place: &Value, field| place[field].as_u64().unwrap_or(0);
        of_class
            .map(|place| number(place, "open") + number(place, "count"))
            .sum()
    };
    for class in ["parked-worker", "idle-pool-thread"] {
        ensure!(total(class) > 0, "no {class}\n{report}");
    }
    ensure!(
        places.iter().all(|place| place["class"] != "unknown"),
        "a wait of unknown class\n{report}"
    );
    let text = String::from_utf8_lossy(&report.text);
    ensure!(
        text.contains("Waits (futex") && text.contains("task (lock) in waits::task_on_lock"),
        "the text names no waits: {text}"
    );
    // Nothing grows, so nothing of this is a finding.
    ensure!(report.findings(pid)?.is_empty(), "a finding\n{report}");
    Ok(())
}

/// A consumer waits for a lock while its queue grows.
fn blocked(delay: &str, alone: u64, watched: u32) -> Result<()> {
    let arguments = "--leak blocked-consumer --rate 200 --size 8192 --workers 4 --delay";
    let path = lab::plain_example("server")?;
    let arguments: Vec<&str> = arguments.split(' ').chain([delay]).collect();
    let program = Program::start(&path, &arguments)?;
    let pid = program.pid();
    thread::sleep(Duration::from_secs(alone));
    let report = Inspection::of(pid, watched)?
        .arguments(["--fail-on", "suspected"])
        .run()?;
    report.expect_code(&[3])?;
    let document = report.process(pid)?;
    let findings = document["findings"].as_array().context("no findings")?;
    let of = |verdict: &str| {
        findings
            .iter()
            .find(|finding| finding["verdict"] == verdict)
    };
    let blocked = of("blocked-thread").with_context(|| format!("no blocked thread\n{report}"))?;
    let in_function = |finding: &Value, name: &str| {
        let mut frames = finding["site"]["frames"].as_array().into_iter().flatten();
        frames.any(|frame| {
            frame["function"]
                .as_str()
                .is_some_and(|function| function.contains(name))
        })
    };
    ensure!(
        in_function(blocked, "blocked_consumer::write_out"),
        "not where it waits\n{report}"
    );
    ensure!(
        blocked["confidence"] == "suspected" && blocked["leak"] == "suspected",
        "more than suspected\n{report}"
    );
    let evidence = |finding: &Value, kind: &str| {
        let mut lines = finding["evidence"].as_array().into_iter().flatten();
        lines.any(|line| line["kind"] == kind)
    };
    ensure!(evidence(blocked, "inside-poll"), "not in a poll\n{report}");
    let growing = of("unbounded-growth").with_context(|| format!("nothing grows\n{report}"))?;
    ensure!(
        in_function(growing, "blocked_consumer::enqueue") && evidence(growing, "blocked-thread"),
        "the queue's finding does not tell of the thread\n{report}"
    );
    ensure!(
        places(&report, pid)?
            .iter()
            .any(|place| place["class"] == "parked-worker"),
        "no parked worker\n{report}"
    );
    Ok(())
}

/// The same lock, held for moments: waits, and nothing wrong with them.
fn healthy_twin() -> Result<()> {
    let path = lab::plain_example("server")?;
    let arguments = ["--healthy", "blocked-consumer", "--rate", "400"];
    let program = Program::start(&path, &arguments)?;
    let pid = program.pid();
    let report = Inspection::of(pid, 8)?.run()?;
    ensure!(
        report
            .findings(pid)?
            .iter()
            .all(|finding| !finding.is_sure()),
        "a false alarm\n{report}"
    );
    let findings = report.process(pid)?["findings"].as_array();
    ensure!(
        findings
            .into_iter()
            .flatten()
            .all(|finding| finding["verdict"] != "blocked-thread"),
        "a false alarm\n{report}"
    );
    // Its contention is seen, and what it waits for ends.
    let place = places(&report, pid)?.iter().find(|place| {
        place["function"]
            .as_str()
            .is_some_and(|name| name.contains("blocked_consumer::write_out"))
    });
    let place = place.with_context(|| format!("its waits were not seen\n{report}"))?;
    ensure!(
        place["class"] == "task"
            && place["on"] == "lock"
            && place["count"].as_u64().is_some_and(|count| count > 0)
            && place["open"] == 0,
        "{place}\n{report}"
    );
    Ok(())
}
