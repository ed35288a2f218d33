//! Live tests: real probes on real processes, one test at a time.
//!
//! ```text
//! LINGERSCOPE_BIN        program under test       target/release/lingerscope
//! LINGERSCOPE_EXAMPLES   built examples           target/release/examples
//! LINGERSCOPE_SEED       repeats a run's draws    printed at its start
//! ```
//!
//! C and C++ programs are compiled when the first test needs them.

mod allocators;
mod attach;
mod bad_input;
mod breakpoints;
mod command;
mod hazards;
mod healthy;
mod hostile;
mod inspection;
mod journal;
mod lab;
mod leaks;
mod program;
mod random;
mod server;
mod stacks;
mod targets;
mod truth;

use libtest_mimic::{Arguments, Trial};

/// Wraps a test for the runner, which wants a message instead of an error.
fn trial(
    name: impl Into<String>,
    test: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        test().map_err(|error| format!("{error:#}").into())
    })
}

#[expect(clippy::print_stderr, reason = "a test runner reports to its terminal")]
fn main() {
    let mut arguments = Arguments::from_args();
    // Probes of one test would slow down another's target.
    arguments.test_threads = Some(1);
    if !arguments.list {
        // SAFETY: geteuid takes nothing and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("live tests need root: run them by `cargo xtask test`, which asks sudo");
            std::process::exit(1);
        }
        match lab::prepare() {
            Ok(seed) => eprintln!("LINGERSCOPE_SEED={seed}"),
            Err(error) => {
                eprintln!("live tests cannot start: {error:#}");
                std::process::exit(1);
            }
        }
    }
    let trials = [
        leaks::trials(),
        healthy::trials(),
        allocators::trials(),
        attach::trials(),
        hazards::trials(),
        hostile::trials(),
        bad_input::trials(),
        journal::trials(),
        command::trials(),
        stacks::trials(),
        targets::trials(),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials.into_iter().flatten().collect());
    lab::clear(conclusion.has_failed());
    conclusion.exit();
}
