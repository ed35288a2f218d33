//! `cargo xtask check`: what must hold besides the tests. Lints are warnings
//! while one works, and errors here.

use anyhow::Result;

use crate::{
    object,
    packages::Need,
    setup::{self, Toolchain},
    shell, tidy,
};

pub(crate) fn run(no_install: bool) -> Result<()> {
    without_compiler()?;
    let tools = setup::prepare(Need::Build, no_install)?;
    with_compiler(&tools)
}

/// The quick part.
pub(crate) fn without_compiler() -> Result<()> {
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    if shell::which("typos").is_some() {
        shell::run(&mut shell::command("typos"))?;
    } else {
        eprintln!("check: spelling was not checked, typos is not installed");
    }
    // Advisories change from day to day, so they are no part of the gate.
    if shell::which("cargo-deny").is_some() {
        shell::run(shell::cargo().args(["deny", "check", "bans", "licenses", "sources"]))?;
    } else {
        eprintln!("check: licences and duplicates were not checked, cargo-deny is not installed");
    }
    Ok(())
}

/// Lints and documentation.
pub(crate) fn with_compiler(tools: &Toolchain) -> Result<()> {
    let mut clippy = shell::cargo();
    clippy.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "lingerscope/live",
    ]);
    shell::run(clippy.args(["--", "-Dwarnings"]))?;
    if !object::clippy(tools)? {
        eprintln!(
            "check: the kernel programs were not linted, there is no clippy beside {}",
            tools.rustc
        );
    }
    shell::run(
        shell::cargo()
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )
}
