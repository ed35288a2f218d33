//! `cargo xtask bench`: what tracing and watching cost, measured on this
//! machine. Only the built benchmarks run as root.

use anyhow::{Context as _, Result};

use crate::{build, packages::Need, setup, shell};

pub(crate) fn run(no_install: bool) -> Result<()> {
    let tools = setup::prepare(Need::Build, no_install)?;
    let programs = build::agent_and(
        &tools,
        &["--bench", "cost", "--bench", "watch", "--example", "pairs"],
    )?;
    let pairs = programs.path("pairs")?;
    let examples = pairs.parent().context("the example has no directory")?;
    let variables = [("LINGERSCOPE_EXAMPLES", examples.as_os_str().to_owned())];
    shell::run(&mut shell::as_root(programs.path("cost")?, &variables))?;
    shell::run(&mut shell::as_root(programs.path("watch")?, &[]))
}
