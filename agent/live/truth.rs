//! The side file in which a leaking program counts for itself.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// The longest that a line is waited for.
const LATE: Duration = Duration::from_secs(5);

/// All lines of a side file.
pub(crate) struct Truth {
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    /// CLOCK_MONOTONIC.
    t_ns: u64,
    leaked_bytes: f64,
    leaked_blocks: u64,
    overhead_bytes: f64,
    function: String,
    tasks: Vec<u64>,
}

/// What leaked per second over some time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Bytes that the program asked for itself.
    pub(crate) low: f64,
    /// With at most so many more in task cells, tables and queue blocks.
    pub(crate) high: f64,
}

impl Truth {
    /// What the program has written until now, and its next line after that:
    /// on a busy machine it is late. One that has ended writes none.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let now = lingerscope::host::kernel::monotonic_ns();
        let start = Instant::now();
        loop {
            let truth = Self::read_now(path)?;
            let last = truth.lines.last().map_or(0, |line| line.t_ns);
            if last > now || start.elapsed() > LATE {
                return Ok(truth);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn read_now(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines: Vec<Line> = whole
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| path.display().to_string())?;
        ensure!(lines.len() > 1, "{} has not begun", path.display());
        Ok(Self { lines })
    }

    /// The leaking function's name, as it ends.
    pub(crate) fn function(&self) -> &str {
        self.lines.first().map_or("", |line| &line.function)
    }

    /// Blocks that have leaked so far.
    pub(crate) fn blocks(&self) -> u64 {
        self.lines.last().map_or(0, |line| line.leaked_blocks)
    }

    /// Every task that is known to have leaked.
    pub(crate) fn tasks(&self) -> BTreeSet<u64> {
        self.lines
            .iter()
            .flat_map(|line| line.tasks.iter().copied())
            .collect()
    }

    /// The rate between two times of CLOCK_MONOTONIC in seconds.
    pub(crate) fn rate(&self, begin: f64, end: f64) -> Result<Rate> {
        ensure!(end > begin, "no time between {begin} and {end}");
        let per_second = |field: fn(&Line) -> f64| -> Result<f64> {
            Ok((self.at(end, field)? - self.at(begin, field)?) / (end - begin))
        };
        let low = per_second(|line| line.leaked_bytes)?;
        let overhead = per_second(|line| line.overhead_bytes)?;
        Ok(Rate {
            low,
            high: low + overhead,
        })
    }

    /// Interpolates between two lines.
    fn at(&self, time: f64, field: fn(&Line) -> f64) -> Result<f64> {
        let seconds = |line: &Line| line.t_ns as f64 / 1e9;
        let (before, after) = self
            .lines
            .windows(2)
            .filter_map(|pair| Some((pair.first()?, pair.last()?)))
            .find(|(before, after)| seconds(before) <= time && time <= seconds(after))
            .context("the side file does not span the inspection")?;
        let share = (time - seconds(before)) / (seconds(after) - seconds(before)).max(1e-9);
        Ok(field(before) + share * (field(after) - field(before)))
    }
}
