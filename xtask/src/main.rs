//! Development commands: `cargo xtask COMMAND`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool for developers"
)]

mod bench;
mod boot;
mod build;
mod check;
mod daemon;
mod demo;
mod fleet;
mod interrupt;
mod matrix;
mod mixed;
mod object;
mod packages;
mod recall;
mod rust_code;
mod setup;
mod shell;
mod soak;
mod test;
mod tidy;
mod toolchain;

use std::process::ExitCode;

use clap::Parser as _;

use packages::Need;

/// Development commands of lingerscope.
#[derive(clap::Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Options {
    /// Install nothing: where something is missing, print the commands that install it, and fail
    #[arg(long, global = true)]
    no_install: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Find or install what builds and tests need
    Setup,
    /// Build the kernel object and the program that embeds it
    Build(build::Options),
    /// Find a leak in a real server, from nothing
    Demo(demo::Options),
    /// Run every check and every test; the live tests need root or sudo
    Test(test::Options),
    /// Format, lints, documentation, layout rules, spelling, licences
    Check,
    /// Compare the task table with the truth over versions of Tokio, profiles and allocators
    Matrix(matrix::Options),
    /// Run the service under systemd in a virtual machine, beside one that leaks (about 10 minutes)
    Boot(boot::Options),
    /// Measure what tracing costs
    Bench,
    /// Watch a dozen real servers, of which one leaks, with the daemon
    Mixed(mixed::Options),
    /// Look for the same small leaks again and again by surveys
    Recall(recall::Options),
    /// Watch whether the daemon itself grows while processes come and go
    Soak(soak::Options),
}

fn main() -> ExitCode {
    let Options {
        no_install,
        command,
    } = Options::parse();
    let result = match command {
        Command::Setup => setup::prepare(Need::Test, no_install).map(drop),
        Command::Build(options) => build::run(&options, no_install),
        Command::Demo(options) => demo::run(&options, no_install),
        Command::Test(options) => test::run(&options, no_install),
        Command::Check => check::run(no_install),
        Command::Matrix(options) => matrix::run(&options, no_install),
        Command::Boot(options) => boot::run(&options, no_install),
        Command::Bench => bench::run(no_install),
        Command::Mixed(options) => mixed::run(&options, no_install),
        Command::Recall(options) => recall::run(&options, no_install),
        Command::Soak(options) => soak::run(&options, no_install),
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
