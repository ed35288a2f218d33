//! Which processes grow: every process of the host, always, without a probe.
//!
//! [`Watch::sweep`] is called every [`Settings::interval`]. It reads the
//! anonymous memory of all processes from open `/proc/PID/statm` files, swap
//! too where the host swaps, keeps a [`history::History`] of each, and lets
//! [`judgement::Judge`] decide which are [`Suspect`]s. Everything but the
//! sweep itself is pure.
//!
//! What growth means is written at [`judgement`]. A suspect is no finding:
//! capture looks at it next, and [`Watch::dismiss`] tells the watch that what
//! has happened so far is explained.
//!
//! Bounds: [`Settings::max_processes`] processes, [`Settings::history_bytes`]
//! for all histories, [`Settings::max_files`] open files. At the defaults and
//! with 32 768 processes that all move this is 96 MiB of histories and 6 MiB
//! of table here, and 12 MiB of open files in the kernel.

pub mod history;
pub mod judgement;
mod settings;
mod student;
mod suspect;
mod sweep;
mod table;
pub mod trend;

use std::{
    io,
    time::{Duration, Instant},
};

use crate::host::{
    cgroup::{Group, Groups, Limit, LimitKind},
    counting::Counting,
    meminfo::Meminfo,
    population::{self, Identity, Stat},
    process,
};

pub use judgement::{Growth, Resolution};
pub use settings::{Settings, Thresholds};
pub use suspect::Suspect;
pub use sweep::{Skipped, Sweep};

use history::History;
use judgement::{Judge, PAGE};
use suspect::Mark;
use table::{Miss, Table, Watched};

/// A suspect that does not pass any more stays one for so many intervals: the
/// growth of a leak rests now and then. For the slow resolution, coarse points.
const LINGER: u32 = 12;

/// The watch over all processes.
#[derive(Debug)]
pub struct Watch {
    judge: Judge,
    counting: Counting,
    groups: Groups,
    table: Table,
    own_pid: u32,
    swept: Option<Instant>,
}

impl Watch {
    /// A watch that has seen nothing yet.
    ///
    /// # Errors
    /// When our own entries in `/proc` cannot be read.
    pub fn new(settings: &Settings) -> io::Result<Self> {
        Ok(Self {
            judge: Judge::new(settings),
            counting: Counting::of_this_kernel()?,
            groups: Groups::of_this_host()?,
            table: Table::new(),
            own_pid: std::process::id(),
            swept: None,
        })
    }

    /// Takes other settings. Histories are kept unless the interval changes,
    /// which is what they are counted in; then all begin anew.
    pub fn set(&mut self, settings: &Settings) {
        let before = self.judge.settings().interval;
        self.judge = Judge::new(settings);
        if self.judge.settings().interval != before {
            self.table.clear();
            self.swept = None;
        }
    }

    /// The settings in use, brought into range.
    pub fn settings(&self) -> &Settings {
        self.judge.settings()
    }

    /// How exactly this kernel counts.
    pub fn counting(&self) -> Counting {
        self.counting
    }

    /// Processes that have memory and are watched.
    pub fn watched(&self) -> usize {
        self.table
            .iter()
            .filter(|process| process.history.is_some())
            .count()
    }

    /// Bytes of table and histories.
    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }

    /// History of a process, in pages.
    pub fn history(&self, identity: Identity) -> Option<&History> {
        self.table.get(identity)?.history.as_ref()
    }

    /// What has happened to this process so far is explained: it is no suspect
    /// until it grows anew, to the same evidence.
    pub fn dismiss(&mut self, identity: Identity) {
        if let Some(process) = self.table.get_mut(identity.pid)
            && process.identity == identity
        {
            process.mark = None;
            if let Some(history) = &mut process.history {
                history.begin_anew();
            }
        }
    }

    /// The process runs another program now, with other memory.
    pub fn exec(&mut self, pid: u32) {
        let fresh = self
            .table
            .new_history(self.judge.settings(), Duration::ZERO);
        if let Some(process) = self.table.get_mut(pid)
            && process.history.is_some()
        {
            process.mark = None;
            process.history = Some(fresh);
        }
    }

    /// Reads all processes once. To be called every interval; a call that
    /// comes earlier than half of it does nothing and returns an empty sweep.
    ///
    /// # Errors
    /// When `/proc` cannot be listed or `/proc/meminfo` not be read. What
    /// concerns single processes is counted in [`Sweep::skipped`].
    pub fn sweep(&mut self, now: Instant) -> io::Result<Sweep> {
        let started = Instant::now();
        let mut sweep = Sweep::default();
        let interval = self.judge.settings().interval;
        if let Some(before) = self.swept {
            let passed =
                now.saturating_duration_since(before).as_secs_f64() / interval.as_secs_f64();
            if passed < 0.5 {
                return Ok(sweep);
            }
            sweep.skipped.missed_sweeps = (passed.round() as u64).saturating_sub(1);
        }
        let host = Meminfo::read()?;
        let pids = process::all()?;
        self.swept = Some(now);
        self.table.begin();
        let uptime = uptime();
        for pid in pids {
            if pid == self.own_pid {
                continue;
            }
            match self.visit(pid, (&host, uptime), now, &mut sweep) {
                Ok(()) => {}
                Err(Miss::Vanished) => sweep.skipped.vanished += 1,
                Err(Miss::Unreadable) => sweep.skipped.unreadable += 1,
            }
        }
        self.table.bury(&mut sweep);
        self.table.fit(self.judge.settings().history_bytes);
        sweep.suspects.sort_by(Suspect::urgency);
        let most = self.judge.settings().max_suspects;
        sweep.skipped.suspects_over_bound = sweep.suspects.len().saturating_sub(most);
        sweep.suspects.truncate(most);
        sweep.took = started.elapsed();
        Ok(sweep)
    }

    fn visit(
        &mut self,
        pid: u32,
        (host, uptime): (&Meminfo, Duration),
        now: Instant,
        sweep: &mut Sweep,
    ) -> Result<(), Miss> {
        let settings = self.judge.settings();
        let coarse_limit = self.table.coarse_limit();
        let Some((process, pages)) = self.table.visit(pid, uptime, settings, sweep)? else {
            return Ok(());
        };
        if pages.size == 0 {
            // A process that ends keeps its entry until its parent takes note.
            if process.history.take().is_some() {
                process.mark = None;
                sweep.gone.push(process.identity);
            }
            sweep.skipped.without_memory += 1;
            return Ok(());
        }
        sweep.read += 1;
        // A helper that the kernel starts is a kernel thread until its exec.
        let history = process.history.get_or_insert_with(|| {
            sweep.born.push(process.identity);
            History::new(0, coarse_limit)
        });
        if pages.anonymous != process.resident || history.samples() == 0 {
            process.resident = pages.anonymous;
            sweep.moved += 1;
            // Another program begins with other memory, so only movers can
            // have executed one. One that executes its own file again is not
            // noticed.
            let program = population::program(pid).ok();
            if program.is_some() {
                let before = std::mem::replace(&mut process.program, program);
                if before.is_some() && before != program {
                    let settling = table::settling(settings, Duration::ZERO);
                    *history = History::new(settling, coarse_limit);
                    process.mark = None;
                    sweep.executed.push(process.identity);
                }
            }
            // Pages that go to swap leave memory, so only movers are asked.
            process.swapped = if host.swap_total > host.swap_free {
                population::swapped_bytes(pid)? / PAGE
            } else {
                0
            };
        }
        let total = process.resident.saturating_add(process.swapped);
        history.skip(sweep.skipped.missed_sweeps);
        let completed = history.push(u32::try_from(total).unwrap_or(u32::MAX));
        if process.mark.is_none() && !self.judge.is_candidate(history, completed) {
            return Ok(());
        }
        let around = Around {
            judge: &self.judge,
            counting: self.counting,
            host,
            now,
        };
        let suspect = around.examine(process, completed, &mut self.groups, &mut sweep.skipped);
        sweep.suspects.extend(suspect);
        Ok(())
    }
}

/// What judging needs besides the process.
struct Around<'a> {
    judge: &'a Judge,
    counting: Counting,
    host: &'a Meminfo,
    now: Instant,
}

impl Around<'_> {
    /// Judges a candidate, keeps its mark, and describes it if it is a suspect.
    fn examine(
        &self,
        process: &mut Watched,
        completed: bool,
        groups: &mut Groups,
        skipped: &mut Skipped,
    ) -> Option<Suspect> {
        let Self {
            judge,
            counting,
            host,
            now,
        } = *self;
        let history = process.history.as_mut()?;
        let pid = process.identity.pid;
        if counting == Counting::PerThread {
            process.threads = Stat::of(pid).map_or(process.threads, |stat| stat.threads);
        }
        let error = counting.error_pages(process.threads) * PAGE;
        let group = groups.of(pid).ok();
        let limit = nearest(group.as_deref(), host);
        let growth = judge.judge(history, completed, error, Some(limit.headroom()));
        let settings = judge.settings();
        let mut new = false;
        match (growth, &mut process.mark) {
            (Some(growth), Some(mark)) => {
                // The other resolution may see less of it.
                let begin = now.checked_sub(growth.window).unwrap_or(mark.since);
                mark.since = mark.since.min(begin);
                mark.growth = growth;
                mark.passed = now;
            }
            (Some(growth), none) => {
                let Some(confirmed) = confirm(process.identity, history, &growth, settings) else {
                    skipped.unconfirmed += 1;
                    history.begin_anew();
                    return None;
                };
                new = true;
                *none = Some(Box::new(Mark {
                    growth,
                    since: now.checked_sub(growth.window).unwrap_or(now),
                    passed: now,
                    confirmed,
                }));
            }
            (None, Some(mark)) => {
                let step = match mark.growth.resolution {
                    Resolution::Fast => settings.interval,
                    Resolution::Slow => settings.interval * history::STEP as u32,
                };
                if now.saturating_duration_since(mark.passed) > step * LINGER {
                    process.mark = None;
                }
            }
            (None, None) => {}
        }
        let mark = process.mark.as_ref()?;
        Some(Suspect {
            identity: process.identity,
            growth: mark.growth.rate,
            net_growth: mark.growth.net,
            since: mark.since,
            resolution: mark.growth.resolution,
            bytes: u64::from(history.last()) * PAGE,
            new,
            confirmed: mark.confirmed,
            time_to_limit: suspect::time_left(&limit, mark.growth.rate.value),
            high: group.as_deref().and_then(Group::nearest_high),
            limit: Some(limit),
            group,
        })
    }
}

/// Asks the page tables once. `Some(false)`: they could not be asked, `None`:
/// they contradict.
fn confirm(
    identity: Identity,
    history: &History,
    growth: &Growth,
    settings: &Settings,
) -> Option<bool> {
    let counted = u64::from(history.last()) * PAGE;
    if counted > settings.confirm_up_to {
        return Some(false);
    }
    let Ok(exact) = population::exact(identity.pid) else {
        return Some(false);
    };
    // At most half of the growth may be missing or on its way back.
    let held = exact.anonymous_and_swap.saturating_sub(exact.lazily_freed);
    (held.saturating_add(growth.net / 2) >= counted).then_some(true)
}

/// The limit that leaves least.
fn nearest(group: Option<&Group>, host: &Meminfo) -> Limit {
    let capacity = host.total.saturating_add(host.swap_total);
    let host = Limit {
        kind: LimitKind::Host,
        directory: None,
        used: capacity.saturating_sub(host.headroom()),
        max: capacity,
    };
    match group.and_then(Group::nearest_max) {
        Some(limit) if limit.headroom() < host.headroom() => limit,
        _ => host,
    }
}

/// Time since boot, the clock of start times.
fn uptime() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
