//! The example server, started with drawn parameters.

use std::{
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{lab, program::Program, random::Random, truth::Truth};

/// A running server and its own count.
pub(crate) struct Server {
    pub(crate) program: Program,
    truth: PathBuf,
    /// What was drawn, for messages.
    pub(crate) drawn: String,
}

/// Allocations per second and bytes each: drawn so that an exact capture is
/// affordable and a leak is worth finding.
struct Load {
    rate: u32,
    size: u32,
    workers: u32,
}

impl Load {
    fn draw(random: &mut Random) -> Self {
        let rate = random.log_uniform(60, 800);
        // 150 KB/s to 8 MB/s.
        let size = random.log_uniform((150_000 / rate).max(64), 8_000_000 / rate);
        Self {
            rate,
            size,
            workers: random.uniform(1, 4),
        }
    }
}

impl Server {
    /// Starts `example` with `arguments` and lets it run for a while alone.
    pub(crate) fn start(
        example: &str,
        arguments: &[&str],
        random: &mut Random,
        alone: Duration,
    ) -> Result<Self> {
        let load = Load::draw(random);
        let program = lab::plain_example(example)?;
        Self::start_with(&load, &program, arguments, alone)
    }

    /// The same without any symbols.
    pub(crate) fn start_stripped(
        example: &str,
        arguments: &[&str],
        random: &mut Random,
        alone: Duration,
    ) -> Result<Self> {
        let load = Load::draw(random);
        let program = lab::stripped_example(example)?;
        Self::start_with(&load, &program, arguments, alone)
    }

    /// The same with so little traffic that windows are affordable often.
    pub(crate) fn start_slowly(
        example: &str,
        arguments: &[&str],
        random: &mut Random,
        alone: Duration,
    ) -> Result<Self> {
        let load = Load {
            rate: random.log_uniform(60, 200),
            size: random.log_uniform(1000, 10_000),
            workers: random.uniform(1, 4),
        };
        let program = lab::plain_example(example)?;
        Self::start_with(&load, &program, arguments, alone)
    }

    fn start_with(
        load: &Load,
        program: &Path,
        arguments: &[&str],
        alone: Duration,
    ) -> Result<Self> {
        let truth = lab::fresh("truth")?;
        let drawn = format!(
            "{} {} --rate {} --size {} --workers {}, attached after {:.1} s",
            program.display(),
            arguments.join(" "),
            load.rate,
            load.size,
            load.workers,
            alone.as_secs_f64()
        );
        let (rate, size, workers) = (
            load.rate.to_string(),
            load.size.to_string(),
            load.workers.to_string(),
        );
        let truth_argument = truth.to_string_lossy().into_owned();
        let mut all = arguments.to_vec();
        all.extend(["--rate", &rate, "--size", &size, "--workers", &workers]);
        all.extend(["--seconds", "300", "--truth", &truth_argument]);
        let program = Program::start(program, &all)?;
        thread::sleep(alone);
        Ok(Self {
            program,
            truth,
            drawn,
        })
    }

    /// What the server has counted so far.
    pub(crate) fn truth(&self) -> Result<Truth> {
        Truth::read(&self.truth)
    }
}

/// How late to attach: mostly soon, up to half a minute.
pub(crate) fn lateness(random: &mut Random) -> Duration {
    Duration::from_secs_f64(30.0 * random.share().powi(8))
}
