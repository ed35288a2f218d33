//! Development commands: `cargo xtask COMMAND`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool for developers"
)]

mod bench;
mod build;
mod check;
mod demo;
mod json;
mod object;
mod packages;
mod rust_code;
mod setup;
mod shell;
mod test;
mod tidy;
mod toolchain;

use std::process::ExitCode;

use clap::Parser as _;

/// Development commands of lingerscope.
#[derive(clap::Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Find or install what builds and tests need
    Setup(setup::Options),
    /// Build the kernel object and the program that embeds it
    Build(build::Options),
    /// Find a leak in a real server, from nothing
    Demo(demo::Options),
    /// Run every check and every test; the live tests need root or sudo
    Test(test::Options),
    /// Format, lints, documentation, layout rules, spelling, licences
    Check,
    /// Measure what tracing costs
    Bench,
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Setup(options) => setup::run(&options),
        Command::Build(options) => build::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Check => check::run(),
        Command::Bench => bench::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // No backtrace: what failed is in the words.
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
