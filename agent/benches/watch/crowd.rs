//! Real processes to watch, and what a sweep over them costs.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lingerscope::watch::{Settings, Watch};

/// First argument of a copy of this program that changes its memory all the
/// time.
pub(crate) const MOVER: &str = "mover";
/// Sweeps that are measured for a row.
const SWEEPS: usize = 15;
/// Between two of them; the costs are told for [`Settings::default`]'s.
const PACE: Duration = Duration::from_secs(1);

/// Processes that end with this value.
pub(crate) struct Crowd(Vec<Child>);

impl Crowd {
    /// So many processes, of which some change their memory.
    pub(crate) fn start(processes: usize, movers: usize) -> Result<Self> {
        let own = std::env::current_exe().context("cannot find this program")?;
        let mut crowd = Self(Vec::with_capacity(processes));
        for number in 0..processes {
            let mut command = if number < movers {
                let mut command = Command::new(&own);
                command.arg(MOVER);
                command
            } else {
                let mut command = Command::new("sleep");
                command.arg("3600");
                command
            };
            let child = command
                .stdin(Stdio::null())
                .stdout(if number < movers {
                    Stdio::piped()
                } else {
                    Stdio::null()
                })
                .spawn()
                .context("cannot start a process to watch")?;
            crowd.0.push(child);
        }
        // A mover says when it moves; `sleep` has nothing to say.
        for child in crowd.0.iter_mut().take(movers) {
            let output = child.stdout.take().context("a mover has no output")?;
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line)?;
        }
        thread::sleep(Duration::from_millis(500));
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

/// Takes and gives back memory for ever, a few times a second.
#[expect(clippy::print_stdout, reason = "the starter waits for it")]
pub(crate) fn mover() -> ! {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    println!("moving");
    let mut turn: usize = 0;
    loop {
        turn += 1;
        kept.push(vec![1; 160 << 10]);
        if kept.len() > 8 + turn % 5 {
            kept.drain(..5);
        }
        thread::sleep(Duration::from_millis(400));
    }
}

/// Cost of sweeping.
pub(crate) struct Cost {
    /// Processor time of the first sweep, which meets everybody.
    pub(crate) first: Duration,
    /// Of a later one, median.
    pub(crate) median: Duration,
    /// Of the dearest later one.
    pub(crate) most: Duration,
    /// Processes read in each, and those of them that had moved, on average.
    pub(crate) read: usize,
    pub(crate) moved: usize,
    /// Bytes that the watch takes at the end.
    pub(crate) bytes: usize,
}

impl Cost {
    /// Percent of one core, when sweeping every ten seconds.
    pub(crate) fn percent(&self) -> f64 {
        self.median.as_secs_f64() / Settings::default().interval.as_secs_f64() * 100.0
    }
}

/// Measures sweeps over whatever runs.
pub(crate) fn measure(settings: &Settings) -> Result<Cost> {
    let mut watch = Watch::new(settings)?;
    let (_, first) = timed(&mut watch)?;
    let mut costs = Vec::with_capacity(SWEEPS);
    let (mut read, mut moved) = (0, 0);
    for _ in 0..SWEEPS {
        thread::sleep(PACE);
        let (counts, cost) = timed(&mut watch)?;
        costs.push(cost);
        read += counts.0;
        moved += counts.1;
    }
    costs.sort_unstable();
    Ok(Cost {
        first,
        median: costs.get(SWEEPS / 2).copied().unwrap_or_default(),
        most: costs.last().copied().unwrap_or_default(),
        read: read / SWEEPS,
        moved: moved / SWEEPS,
        bytes: watch.bytes(),
    })
}

fn timed(watch: &mut Watch) -> Result<((usize, usize), Duration)> {
    let before = processor_time();
    let sweep = watch.sweep(Instant::now())?;
    Ok((
        (sweep.read, sweep.moved),
        processor_time().saturating_sub(before),
    ))
}

/// Processor time of this thread.
fn processor_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
