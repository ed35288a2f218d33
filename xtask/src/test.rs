//! `cargo xtask test`: every check, the host tests, some builds of the matrix,
//! and the live tests with real probes. Only the built live test binary runs as root.

use std::{env, time::Instant};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Programs},
    check, matrix,
    packages::Need,
    setup, shell,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave out the checks and the host tests
    #[arg(long)]
    live_only: bool,
    /// For the live test binary: name filters and its options (see `-- --help`)
    #[arg(last = true)]
    live_arguments: Vec<String>,
}

pub(crate) fn run(options: &Options, no_install: bool) -> Result<()> {
    let start = Instant::now();
    if !options.live_only {
        check::without_compiler()?;
    }
    let tools = setup::prepare(Need::Test, no_install)?;
    // First of all, because everything of the agent's is built anew when the
    // object changes.
    let targets = ["--features", "live", "--examples", "--test", "live"];
    let programs = build::agent_and(&tools, &targets)?;
    if !options.live_only {
        check::with_compiler(&tools)?;
        eprintln!("test: checks passed after {} s", start.elapsed().as_secs());
        shell::run(shell::cargo().args(["test", "--workspace"]))?;
        let before = start.elapsed().as_secs();
        matrix::few(&programs.path("lingerscope")?)?;
        let took = start.elapsed().as_secs() - before;
        eprintln!("test: the few builds of the matrix took {took} s");
    }
    eprintln!(
        "test: live tests start after {} s",
        start.elapsed().as_secs()
    );
    live(&programs, &options.live_arguments)
}

fn live(programs: &Programs, arguments: &[String]) -> Result<()> {
    let lingerscope = programs.path("lingerscope")?;
    let examples = lingerscope
        .parent()
        .context("the program has no directory")?
        .join("examples");
    let mut variables = vec![
        ("LINGERSCOPE_BIN", lingerscope.into_os_string()),
        ("LINGERSCOPE_EXAMPLES", examples.into_os_string()),
    ];
    // sudo would drop what repeats the draws of an earlier run.
    variables.extend(env::var_os("LINGERSCOPE_SEED").map(|seed| ("LINGERSCOPE_SEED", seed)));
    shell::run(shell::as_root(programs.path("live")?, &variables).args(arguments))
}
