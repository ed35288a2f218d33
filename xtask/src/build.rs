//! `cargo xtask build`: the kernel object, then the program that embeds it.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    json::Value,
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
pub(crate) fn agent(tools: &Toolchain, release: bool) -> Result<PathBuf> {
    object::build(tools)?;
    let mut build = shell::cargo();
    build.args(["build", "-p", "lingerscope", "--bin", "lingerscope"]);
    if release {
        build.arg("--release");
    }
    executable(&mut build, "lingerscope")
}

/// Runs a cargo build; the path of one of the programs that it made.
pub(crate) fn executable(build: &mut Command, name: &str) -> Result<PathBuf> {
    let made = executables(build)?;
    let found = made.into_iter().find(|(target, _)| target == name);
    found
        .map(|(_, path)| path)
        .with_context(|| format!("cargo has built no program named {name}"))
}

/// Runs a cargo build; name and path of each program that it made. Cargo is
/// asked, because the target directory can be configured in many places.
fn executables(build: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    build
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    shell::print(build);
    let output = build.output().context("cannot start cargo")?;
    shell::succeeded(build, output.status)?;
    let mut made = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message =
            Value::parse(line).with_context(|| format!("unexpected message of cargo: {line}"))?;
        let executable = message.get("executable").text();
        if !executable.is_empty() {
            made.push((
                message.get("target").get("name").text().to_owned(),
                executable.into(),
            ));
        }
    }
    Ok(made)
}
