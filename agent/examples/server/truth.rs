//! The program's own count of what it has leaked, written to a side file.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use super::work::Function;

/// Task ids kept, the oldest out first when full: a second's worth of the
/// fastest load, so that no task is missing from every line of the file.
const TASKS: usize = 1000;
/// Pause between two lines of the side file.
const PERIOD: Duration = Duration::from_millis(200);

/// What one operation asked the allocator for and will not give back.
#[derive(Clone, Copy, Default)]
pub(super) struct Loss {
    /// Bytes requested, headers such as an `Arc`'s two counters included.
    pub(super) bytes: u64,
    /// Blocks those bytes are in.
    pub(super) blocks: u64,
    /// Upper bound of the further bytes that a library allocates beside them
    /// (task cells, hash tables, queue blocks).
    pub(super) overhead: u64,
}

/// Running totals.
#[derive(Default)]
pub(super) struct Truth(Mutex<Totals>);

struct Totals {
    lost: Loss,
    tasks: [u64; TASKS],
    newest: usize,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            lost: Loss::default(),
            tasks: [0; TASKS],
            newest: 0,
        }
    }
}

impl Truth {
    /// Adds what the current task has just leaked.
    pub(super) fn add(&self, loss: Loss) {
        let task = tokio::task::try_id()
            .and_then(|id| id.to_string().parse().ok())
            .unwrap_or(0);
        let mut totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        totals.lost.bytes += loss.bytes;
        totals.lost.blocks += loss.blocks;
        totals.lost.overhead += loss.overhead;
        if task != 0 && !totals.tasks.contains(&task) {
            totals.newest = (totals.newest + 1) % TASKS;
            let newest = totals.newest;
            if let Some(slot) = totals.tasks.get_mut(newest) {
                *slot = task;
            }
        }
    }

    /// Takes back what was released after all (a queue that is read slowly).
    pub(super) fn remove(&self, loss: Loss) {
        let mut totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        totals.lost.bytes = totals.lost.bytes.saturating_sub(loss.bytes);
        totals.lost.blocks = totals.lost.blocks.saturating_sub(loss.blocks);
        totals.lost.overhead = totals.lost.overhead.saturating_sub(loss.overhead);
    }

    /// Starts the thread that appends the totals to `path` five times a second:
    /// JSON lines with the monotonic clock in nanoseconds.
    pub(super) fn publish(
        truth: Arc<Self>,
        path: &Path,
        function: Function,
    ) -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        thread::Builder::new().name("truth".into()).spawn(move || {
            loop {
                if truth.append(&mut file, function).is_err() {
                    return;
                }
                thread::sleep(PERIOD);
            }
        })?;
        Ok(())
    }

    /// Writes one line without touching the heap: the count must not disturb
    /// what it counts.
    fn append(&self, file: &mut File, function: Function) -> std::io::Result<()> {
        let mut line = [0_u8; 16 * 1024];
        let mut rest = line.as_mut_slice();
        let (lost, tasks) = {
            let totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (totals.lost, totals.tasks)
        };
        write!(
            rest,
            "{{\"t_ns\":{},\"leaked_bytes\":{},\"leaked_blocks\":{},\"overhead_bytes\":{},\"exact\":{},\"function\":\"{}\",\"tasks\":[",
            monotonic_ns(),
            lost.bytes,
            lost.blocks,
            lost.overhead,
            function.exact,
            function.name,
        )?;
        for (index, task) in tasks.iter().filter(|task| **task != 0).enumerate() {
            write!(rest, "{}{task}", if index == 0 { "" } else { "," })?;
        }
        rest.write_all(b"]}\n")?;
        let unused = rest.len();
        file.write_all(line.get(..line.len() - unused).unwrap_or_default())
    }
}

fn monotonic_ns() -> i128 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec for the call to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}
