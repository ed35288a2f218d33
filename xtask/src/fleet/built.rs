//! The programs that a run needs: built, or given; and root, which it needs
//! as well.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{build, interrupt, packages::Need, setup, shell};

/// Programs to use instead of building them.
#[derive(clap::Args, Clone)]
pub(crate) struct Given {
    /// Use this lingerscope instead of building it; goes with --server
    #[arg(long, requires = "server")]
    lingerscope: Option<PathBuf>,
    /// Use this example server instead of building it
    #[arg(long, requires = "lingerscope")]
    server: Option<PathBuf>,
}

/// What was built.
pub(crate) struct Built {
    pub(crate) lingerscope: PathBuf,
    pub(crate) server: PathBuf,
}

/// Installs and builds what is missing. `None`: it was all done as root by
/// another process, because we are not.
pub(crate) fn prepare(given: &Given, need: Need, no_install: bool) -> Result<Option<Built>> {
    let found = |path: &PathBuf| {
        fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))
    };
    let built = if let (Some(lingerscope), Some(server)) = (&given.lingerscope, &given.server) {
        setup::packages(need, no_install)?;
        Built {
            lingerscope: found(lingerscope)?,
            server: found(server)?,
        }
    } else {
        let tools = setup::prepare(need, no_install)?;
        let programs = build::agent_and(&tools, &["--example", "server"])?;
        Built {
            lingerscope: programs.path("lingerscope")?,
            server: programs.path("server")?,
        }
    };
    interrupt::listen()?;
    if shell::is_root() {
        return Ok(Some(built));
    }
    let ours = env::current_exe().context("cannot find ourselves")?;
    let mut elevated = shell::as_root(ours, &[]);
    elevated.args(env::args_os().skip(1));
    if given.lingerscope.is_none() {
        elevated.arg("--lingerscope").arg(&built.lingerscope);
        elevated.arg("--server").arg(&built.server);
    }
    shell::run(&mut elevated)?;
    Ok(None)
}
