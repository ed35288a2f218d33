//! `cargo xtask bench`: what tracing and watching cost, measured on this
//! machine. Only the built benchmarks run as root.

use anyhow::{Context as _, Result};

use crate::{build, packages::Need, setup, shell};

pub(crate) fn run(no_install: bool) -> Result<()> {
    let tools = setup::prepare(Need::Build, no_install)?;
    let targets = [
        "--bin=lingerscope",
        "--bench=bystanders",
        "--bench=cost",
        "--bench=latency",
        "--bench=task_table",
        "--bench=waits",
        "--bench=watch",
        "--example=pairs",
        "--example=service",
        "--example=tasks",
    ];
    let programs = build::agent_and(&tools, &targets)?;
    let pairs = programs.path("pairs")?;
    let examples = pairs.parent().context("the example has no directory")?;
    let variables = [
        ("LINGERSCOPE_EXAMPLES", examples.as_os_str().to_owned()),
        ("LINGERSCOPE_BIN", programs.path("lingerscope")?.into()),
    ];
    shell::run(&mut shell::as_root(programs.path("cost")?, &variables))?;
    shell::run(&mut shell::as_root(
        programs.path("task_table")?,
        &variables,
    ))?;
    shell::run(&mut shell::as_root(programs.path("waits")?, &[]))?;
    shell::run(&mut shell::as_root(programs.path("watch")?, &[]))?;
    shell::run(&mut shell::as_root(
        programs.path("bystanders")?,
        &variables,
    ))?;
    shell::run(&mut shell::as_root(programs.path("latency")?, &variables))
}
