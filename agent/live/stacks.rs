//! Stacks that are hard to follow without frame pointers are followed to the
//! start of the thread.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::{
    inspection::{Finding, Inspection, Report},
    lab,
    program::Program,
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("stacks::deep_recursion", || {
            let report = inspect("deep", &[])?;
            let frames = found(&report, &["leak_here", "deep", "leak_by_pathway", "_start"])?;
            let depth = frames.iter().filter(|name| **name == "deep").count();
            ensure!(
                depth == 61,
                "{depth} frames of the recursion instead of 61\n{report}"
            );
            Ok(())
        }),
        trial("stacks::signal_handler", || {
            let report = inspect("signal", &[])?;
            found(
                &report,
                &["leak_here", "on_signal", "leak_by_pathway", "_start"],
            )
            .map(drop)
        }),
        trial("stacks::callback_from_libc", || {
            let report = inspect("callback", &[])?;
            found(
                &report,
                &["leak_here", "compare", "leak_by_pathway", "_start"],
            )
            .map(drop)
        }),
        trial("stacks::library_loaded_later", || {
            let library = lab::compile(
                "cc",
                "library.c",
                &["-shared", "-fPIC"],
                "library_loaded_later.so",
            )?;
            let report = inspect(&library.to_string_lossy(), &[])?;
            found(&report, &["leak_in_library", "leak_by_pathway", "_start"]).map(drop)
        }),
        trial("stacks::position_dependent_program", || {
            let report = inspect("deep", &["-no-pie", "-fno-pie"])?;
            found(&report, &["leak_here", "deep", "leak_by_pathway", "_start"]).map(drop)
        }),
    ]
}

fn inspect(pathway: &str, flags: &[&str]) -> Result<Report> {
    let name = format!("stacks{}", flags.concat());
    let path = lab::compile("cc", "stacks.c", flags, &name)?;
    let program = start(&path, pathway)?;
    let report = Inspection::of(program.pid(), 8)?
        .arguments(["--fail-on", "suspected"])
        .run()?;
    report.expect_code(&[3])?;
    Ok(report)
}

fn start(path: &Path, pathway: &str) -> Result<Program> {
    let mut command = Command::new(path);
    command.args(["300", "3000", "60"]).env("PATHWAY", pathway);
    Program::from_command(command)
}

/// The top finding's functions, of which `path` is a subsequence.
fn found<'a>(report: &'a Report, path: &[&str]) -> Result<Vec<&'a str>> {
    let process = report.processes().first();
    let top = process
        .and_then(|process| process["findings"].get(0))
        .map(Finding);
    let functions = top.map(Finding::functions).unwrap_or_default();
    let mut rest = functions.iter();
    ensure!(
        path.iter()
            .all(|wanted| rest.any(|function| function == wanted)),
        "{path:?} is not the way to {functions:?}\n{report}"
    );
    let truncated = top.map(|top| &top.0["site"]["truncated"]);
    ensure!(
        truncated.is_none_or(serde_json::Value::is_null),
        "truncated: {truncated:?}\n{report}"
    );
    Ok(functions)
}
