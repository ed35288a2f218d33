//! Live tests: real probes on real processes.
//!
//! ```text
//! LINGERSCOPE_BIN        program under test       target/release/lingerscope
//! LINGERSCOPE_EXAMPLES   built examples           target/release/examples
//! LINGERSCOPE_SEED       repeats a run's draws    printed at its start
//! LINGERSCOPE_BATCHES    hostile files, by four   3
//! ```
//!
//! C and C++ programs are compiled when the first test needs them.

mod allocators;
mod attach;
mod bad_input;
mod breakpoints;
mod bystanders;
mod command;
mod containers;
mod costs;
mod daemon;
mod deaths;
mod evidence;
mod governed;
mod hazards;
mod healthy;
mod hostile;
mod inspection;
mod journal;
mod lab;
mod leaks;
mod outside;
mod program;
mod quarantine;
mod random;
mod reader;
mod server;
mod signals;
mod stacks;
mod survey;
mod targets;
mod task_life;
mod tasks;
mod text;
mod truth;
mod waits;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Trial};

/// Wraps a test for the runner, which wants a message instead of an error.
#[expect(clippy::print_stderr, reason = "a test runner reports to its terminal")]
fn trial(
    name: impl Into<String>,
    test: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    let name = name.into();
    let test_name = name.clone();
    Trial::test(name, move || {
        let start = Instant::now();
        let outcome = test();
        let took = start.elapsed();
        if took > SLOW {
            eprintln!("({test_name} took {} s)", took.as_secs());
        }
        outcome.map_err(|error| format!("{error:#}").into())
    })
}

/// Tests that take longer tell it: all of them together have a limit.
const SLOW: Duration = Duration::from_secs(10);

/// Tests that watch at the same time; each loads a processor by a tenth or so.
const SIDE_BY_SIDE: usize = 4;

#[expect(clippy::print_stderr, reason = "a test runner reports to its terminal")]
fn main() -> ExitCode {
    // The reader of files, and what ways of attaching are tried on, are
    // copies of this program.
    if lingerscope::reader::is_asked_for() {
        return lingerscope::reader::serve::run();
    }
    if std::env::args().nth(1).as_deref() == Some(lingerscope::capture::trial::SUBCOMMAND) {
        return lingerscope::capture::trial::subject();
    }
    let mut arguments = Arguments::from_args();
    if !arguments.list {
        // SAFETY: geteuid takes nothing and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("live tests need root: run them by `cargo xtask test`, which asks sudo");
            return ExitCode::FAILURE;
        }
        match lab::prepare() {
            Ok(seed) => eprintln!("LINGERSCOPE_SEED={seed}"),
            Err(error) => {
                eprintln!("live tests cannot start: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    // Most of the time of these passes in watching.
    let side_by_side = [
        // The longest first.
        survey::trials(),
        bystanders::trials(),
        task_life::trials(),
        leaks::trials(),
        hazards::trials(),
        text::trials(),
        healthy::trials(),
        allocators::trials(),
        outside::trials(),
        waits::trials(),
        tasks::trials(),
        // No probe is set.
        evidence::trials(),
    ];
    // These measure time, or look for what another test's probes would leave.
    let one_by_one = [
        attach::trials(),
        costs::trials(),
        governed::trials(),
        hazards::measured(),
        hostile::trials(),
        reader::trials(),
        bad_input::trials(),
        journal::trials(),
        command::trials(),
        quarantine::trials(),
        deaths::trials(),
        signals::trials(),
        stacks::trials(),
        targets::trials(),
        containers::trials(),
        daemon::trials(),
    ];
    let mut run = |threads: usize, trials: Vec<Trial>| {
        arguments.test_threads = Some(threads);
        libtest_mimic::run(&arguments, trials)
    };
    let first = run(SIDE_BY_SIDE, side_by_side.into_iter().flatten().collect());
    let second = run(1, one_by_one.into_iter().flatten().collect());
    let failed = first.has_failed() || second.has_failed();
    lab::clear(failed);
    ExitCode::from(if failed { 101 } else { 0 })
}
