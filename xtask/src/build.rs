//! `cargo xtask build`: the kernel object, then the program that embeds it.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use serde_json::Value;

use crate::{
    object,
    packages::Need,
    setup::{self, Toolchain},
    shell,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Optimised, as it is shipped (this is the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// With debug assertions, for work on the agent
    #[arg(long)]
    debug: bool,
}

pub(crate) fn run(options: &Options, no_install: bool) -> Result<()> {
    let tools = setup::prepare(Need::Build, no_install)?;
    let agent = agent(&tools, options.release || !options.debug)?;
    println!("{}", agent.display());
    Ok(())
}

/// Builds both halves; the path of the program.
fn agent(tools: &Toolchain, release: bool) -> Result<PathBuf> {
    object::build(tools)?;
    let mut cargo = shell::cargo();
    cargo.args(["build", "-p", "lingerscope", "--bin", "lingerscope"]);
    if release {
        cargo.arg("--release");
    }
    Programs::build(&mut cargo)?.path("lingerscope")
}

/// Builds both halves for release, and more targets of the agent's package.
/// One cargo command does it: examples and tests ask more of some libraries,
/// which would otherwise be built a second time.
pub(crate) fn agent_and(tools: &Toolchain, targets: &[&str]) -> Result<Programs> {
    object::build(tools)?;
    let mut cargo = shell::cargo();
    cargo
        .args([
            "build",
            "--release",
            "-p",
            "lingerscope",
            "--bin",
            "lingerscope",
        ])
        .args(targets);
    Programs::build(&mut cargo)
}

/// What a cargo command has built: name and path of each program. Cargo is
/// asked, because the target directory can be configured in many places.
pub(crate) struct Programs(Vec<(String, PathBuf)>);

impl Programs {
    fn build(cargo: &mut Command) -> Result<Self> {
        cargo
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit());
        shell::print(cargo);
        let output = cargo.output().context("cannot start cargo")?;
        shell::succeeded(cargo, output.status)?;
        let mut made = Vec::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let message: Value = serde_json::from_str(line)
                .with_context(|| format!("unexpected message of cargo: {line}"))?;
            if let (Some(executable), Some(name)) = (
                message["executable"].as_str(),
                message["target"]["name"].as_str(),
            ) {
                made.push((name.to_owned(), executable.into()));
            }
        }
        Ok(Self(made))
    }

    /// The program of this name.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf> {
        let found = self.0.iter().find(|(target, _)| target == name);
        found
            .map(|(_, path)| path.clone())
            .with_context(|| format!("cargo has built no program named {name}"))
    }
}
