//! `cargo xtask bench`: what tracing costs, measured on this machine.

use anyhow::{Result, bail};

use crate::{build, packages::Need, setup, shell};

pub(crate) fn run(no_install: bool) -> Result<()> {
    if !shell::root().join("agent/benches/cost.rs").is_file() {
        bail!("agent/benches/cost.rs is not there yet: there is nothing to measure");
    }
    let tools = setup::prepare(Need::Build, no_install)?;
    let programs = build::agent_and(&tools, &["--bench", "cost"])?;
    let lingerscope = programs.path("lingerscope")?;
    let cost = programs.path("cost")?;
    shell::run(
        shell::as_root(cost, &[("LINGERSCOPE_BIN", lingerscope.into_os_string())]).arg("--bench"),
    )
}
