//! Ways to name a target.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::{
    allocators::{SmallLeak, plain},
    inspection::{Inspection, Report},
    lab, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("targets::several_processes", several),
        trial("targets::name", by_name),
    ]
}

/// Two processes in one run, each with its own finding.
fn several() -> Result<()> {
    let mut random = lab::random("several")?;
    let first = SmallLeak::start(&plain()?, &mut random)?;
    let flags = ["-Wl,--no-as-needed", "-l:libjemalloc.so.2"];
    let second = lab::compile("cc", "leak.c", &flags, "leak-jemalloc")?;
    let second = SmallLeak::start(&second, &mut random)?;
    let pids = [first.program.pid(), second.program.pid()];
    let report = Inspection::of(pids[0], 8)?
        .arguments(["-p", &pids[1].to_string(), "--fail-on", "suspected"])
        .run()?;
    both_found(&report, &pids)
}

/// Every process of that name, and no other.
fn by_name() -> Result<()> {
    let mut random = lab::random("by name")?;
    let path = lab::compile("cc", "leak.c", &[], "leak-by-name")?;
    let first = SmallLeak::start(&path, &mut random)?;
    let second = SmallLeak::start(&path, &mut random)?;
    let _other = SmallLeak::start(&plain()?, &mut random)?;
    let report = Inspection::new(8)?
        .arguments(["--name", "leak-by-name", "--fail-on", "suspected"])
        .run()?;
    ensure!(
        report.processes().len() == 2,
        "not the two processes of that name\n{report}"
    );
    both_found(&report, &[first.program.pid(), second.program.pid()])
}

fn both_found(report: &Report, pids: &[u32]) -> Result<()> {
    report.expect_code(&[3])?;
    for pid in pids {
        let top = report.top(*pid)?;
        ensure!(
            top.first_user_function().contains("leak_here"),
            "{pid}\n{report}"
        );
    }
    Ok(())
}
