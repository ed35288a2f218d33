//! `inspect -- CMD`: from the first allocation on, through exec and fork.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::{
    inspection::{Inspection, Report},
    lab, trial,
};

/// Blocks that the program leaks before it says READY, and their size.
const AT_START: f64 = 500.0;
const SIZE: f64 = 1000.0;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("command::first_allocation", || {
            let path = program()?;
            let report = named(|| run(&[&path.to_string_lossy(), "4", "7"], 30))?;
            exit_status(&report, 7)?;
            child(&report)
        }),
        trial("command::static_program", || {
            let path = lab::compile(
                "cc",
                "first_allocation.c",
                &["-static"],
                "first_allocation-static",
            )?;
            named(|| run(&[&path.to_string_lossy(), "1", "0"], 30)).map(drop)
        }),
        trial("command::ends_at_once", || {
            let path = program()?;
            named(|| run(&[&path.to_string_lossy(), "0", "0"], 30)).map(drop)
        }),
        trial("command::no_allocator_after_all", || {
            let path = lab::compile(
                "cc",
                "no_allocator.c",
                &["-nostdlib", "-static", "-ffreestanding"],
                "no_allocator",
            )?;
            let report = run(&[&path.to_string_lossy()], 3)?;
            report.expect_code(&[4])?;
            ensure!(
                report.message().contains("no allocator to follow"),
                "nothing was seen, and it does not say why\n{report}"
            );
            Ok(())
        }),
        trial("command::exec", || {
            let script = format!("exec {} 4 9", program()?.display());
            let report = run(&["sh", "-c", &script], 30)?;
            from_the_start(&report)?;
            exit_status(&report, 9)
        }),
        trial("command::outlives_the_window", || {
            let report = run(&[&program()?.to_string_lossy(), "60", "0"], 3)?;
            from_the_start(&report)
        }),
        trial("command::not_found", || {
            let report = run(&["/nonexistent/program"], 3)?;
            report.expect_code(&[1, 2])?;
            ensure!(
                report.message().contains("/nonexistent/program"),
                "which program?\n{report}"
            );
            Ok(())
        }),
    ]
}

fn program() -> Result<PathBuf> {
    lab::compile("cc", "first_allocation.c", &[], "first_allocation")
}

fn run(command: &[&str], seconds: u32) -> Result<Report> {
    Inspection::new(seconds)?
        .arguments(["--sample", "1", "--"])
        .arguments(command)
        .run()
}

/// The blocks from before main had done anything else are all there.
fn from_the_start(report: &Report) -> Result<()> {
    let sites = report
        .processes()
        .iter()
        .flat_map(|process| process["sites"].as_array().into_iter().flatten());
    let live: f64 = sites
        .filter_map(|site| site["live_bytes"]["value"].as_f64())
        .sum();
    ensure!(
        live > AT_START * SIZE - 1.0,
        "{live} bytes live from the start, not {}\n{report}",
        AT_START * SIZE
    );
    Ok(())
}

/// And so are the names of who allocated them: where the libraries lie was
/// known before. On a machine with more to do than processors a run may be too
/// late for that, which it counts; not every run is.
fn named(run: impl Fn() -> Result<Report>) -> Result<Report> {
    let mut report = run()?;
    for _ in 0..4 {
        from_the_start(&report)?;
        if site(&report, "leak_at_start").is_ok_and(|bytes| bytes > 0.9 * AT_START * SIZE) {
            break;
        }
        report = run()?;
    }
    let bytes = site(&report, "leak_at_start")?;
    ensure!(
        bytes > 0.9 * AT_START * SIZE,
        "only {bytes} bytes have their names\n{report}"
    );
    Ok(report)
}

/// The child's own leak, which began at its fork.
fn child(report: &Report) -> Result<()> {
    let bytes = site(report, "leak_in_child")?;
    ensure!(
        bytes > 500.0 * 2000.0,
        "only {bytes} bytes of the child's leak were seen\n{report}"
    );
    Ok(())
}

/// Live bytes of the site in function `name`, in whichever process.
fn site(report: &Report, name: &str) -> Result<f64> {
    report
        .processes()
        .iter()
        .flat_map(|process| process["sites"].as_array().into_iter().flatten())
        .filter(|site| {
            let mut frames = site["site"]["frames"].as_array().into_iter().flatten();
            frames.any(|frame| frame["function"] == name)
        })
        .filter_map(|site| site["live_bytes"]["value"].as_f64())
        .reduce(f64::max)
        .with_context(|| format!("no site in {name}\n{report}"))
}

fn exit_status(report: &Report, expected: i64) -> Result<()> {
    let status = report
        .processes()
        .iter()
        .find_map(|process| process["command"]["exit_status"].as_i64());
    ensure!(
        status == Some(expected),
        "exit status of the command: {status:?}\n{report}"
    );
    Ok(())
}
