//! The processes that are watched.

use std::{collections::HashMap, io, time::Duration};

use crate::host::population::{Identity, Meter, Pages, Program, Stat};

use super::{
    history::{self, History},
    settings::Settings,
    suspect::Mark,
    sweep::Sweep,
};

/// All entries, by process id.
#[derive(Debug)]
pub(super) struct Table {
    processes: HashMap<u32, Watched>,
    /// Meters that are kept open.
    files: usize,
    /// Most of them, by the limit of this process.
    file_limit: usize,
    coarse_limit: usize,
    ticks_per_s: f64,
    /// Number of the present sweep.
    sweep: u64,
}

/// One entry: a process, a kernel thread or a zombie.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) identity: Identity,
    /// `None` when there are too many open files.
    meter: Option<Meter>,
    pub(super) threads: u32,
    /// Its executable, when it was last looked at.
    pub(super) program: Option<Program>,
    /// `None` for what has no memory: kernel threads and zombies.
    pub(super) history: Option<History>,
    /// Anonymous pages in memory, and in swap.
    pub(super) resident: u64,
    pub(super) swapped: u64,
    seen: u64,
    pub(super) mark: Option<Box<Mark>>,
}

/// Why a process was not read.
pub(super) enum Miss {
    Vanished,
    Unreadable,
}

impl From<io::Error> for Miss {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) {
            Self::Vanished
        } else {
            Self::Unreadable
        }
    }
}

impl Table {
    pub(super) fn new() -> Self {
        // SAFETY: takes no pointers.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Self {
            processes: HashMap::new(),
            files: 0,
            file_limit: file_limit(),
            coarse_limit: history::COARSE,
            ticks_per_s: if ticks > 0 { ticks as f64 } else { 100.0 },
            sweep: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.processes.clear();
        self.files = 0;
    }

    /// A new sweep begins: what it does not see until [`Self::bury`] is gone.
    pub(super) fn begin(&mut self) {
        self.sweep += 1;
    }

    pub(super) fn get(&self, identity: Identity) -> Option<&Watched> {
        self.processes
            .get(&identity.pid)
            .filter(|process| process.identity == identity)
    }

    pub(super) fn get_mut(&mut self, pid: u32) -> Option<&mut Watched> {
        self.processes.get_mut(&pid)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Watched> {
        self.processes.values()
    }

    pub(super) fn bytes(&self) -> usize {
        let histories: usize = self
            .iter()
            .filter_map(|process| process.history.as_ref())
            .map(|history| history.bytes() - size_of::<History>())
            .sum();
        histories + self.processes.capacity() * (size_of::<(u32, Watched)>() + 1)
    }

    pub(super) fn coarse_limit(&self) -> usize {
        self.coarse_limit
    }

    /// An empty history for a process that has just begun, or runs another
    /// program.
    pub(super) fn new_history(&self, settings: &Settings, age: Duration) -> History {
        History::new(settling(settings, age), self.coarse_limit)
    }

    /// Reads a process, which is entered if it is not known. `None`: there is
    /// no room for it.
    pub(super) fn visit(
        &mut self,
        pid: u32,
        uptime: Duration,
        settings: &Settings,
        sweep: &mut Sweep,
    ) -> Result<Option<(&mut Watched, Pages)>, Miss> {
        let known = match self.processes.get(&pid) {
            Some(process) => process.read()?,
            None => None,
        };
        let pages = match known {
            Some(pages) => pages,
            None => match self.meet(pid, uptime, settings, sweep)? {
                Some(pages) => pages,
                None => return Ok(None),
            },
        };
        let mut process = self.processes.get_mut(&pid);
        if let Some(process) = &mut process {
            process.seen = self.sweep;
        }
        Ok(process.map(|process| (process, pages)))
    }

    /// Enters a process that is not in the table, or whose id is used anew.
    fn meet(
        &mut self,
        pid: u32,
        uptime: Duration,
        settings: &Settings,
        sweep: &mut Sweep,
    ) -> Result<Option<Pages>, Miss> {
        if let Some(former) = self.processes.remove(&pid) {
            self.strike(&former, sweep);
        }
        if self.processes.len() >= settings.max_processes {
            sweep.skipped.over_bound += 1;
            return Ok(None);
        }
        let meter = Meter::open(pid)?;
        let found = Stat::of(pid)?;
        // Read last: if it still answers, `found` was of the same process.
        let pages = meter.read()?;
        let alive = pages.size > 0 && !found.kernel_thread && !found.zombie;
        let history = alive.then(|| {
            let seconds = found.identity.start_time as f64 / self.ticks_per_s;
            let begin = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            self.new_history(settings, uptime.saturating_sub(begin))
        });
        if alive {
            sweep.born.push(found.identity);
        }
        let keep = self.files < settings.max_files.min(self.file_limit);
        self.files += usize::from(keep);
        self.processes.insert(
            pid,
            Watched {
                identity: found.identity,
                meter: keep.then_some(meter),
                threads: found.threads,
                program: None,
                history,
                resident: 0,
                swapped: 0,
                seen: self.sweep,
                mark: None,
            },
        );
        Ok(Some(pages))
    }

    /// Removes what this sweep did not see.
    pub(super) fn bury(&mut self, sweep: &mut Sweep) {
        let present = self.sweep;
        let gone: Vec<Watched> = self
            .processes
            .extract_if(|_, process| process.seen != present)
            .map(|(_, process)| process)
            .collect();
        for process in gone {
            self.strike(&process, sweep);
        }
    }

    /// Accounts for an entry that has been removed.
    fn strike(&mut self, process: &Watched, sweep: &mut Sweep) {
        self.files -= usize::from(process.meter.is_some());
        if process.history.is_some() {
            sweep.gone.push(process.identity);
        }
    }

    /// Keeps all histories together below their bound.
    pub(super) fn fit(&mut self, bytes: usize) {
        // In powers of two, so that a coming and going process moves nothing.
        let processes = self.processes.len().next_power_of_two();
        let limit = history::coarse_limit(bytes, processes);
        if limit != self.coarse_limit {
            self.coarse_limit = limit;
            for process in self.processes.values_mut() {
                if let Some(history) = &mut process.history {
                    history.limit_coarse(limit);
                }
            }
        }
    }
}

/// Samples at the beginning of a history that count as start-up, of a program
/// that has run for so long.
pub(super) fn settling(settings: &Settings, age: Duration) -> u64 {
    let settle = settings.settle.saturating_sub(age).as_secs_f64();
    (settle / settings.interval.as_secs_f64()).ceil() as u64
}

/// Half of the files that we may have open: the rest of the program needs some
/// too.
fn file_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the result.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    usize::try_from(limit.rlim_cur / 2).unwrap_or(usize::MAX)
}

impl Watched {
    /// Its sizes; `None` when its id belongs to another process now.
    fn read(&self) -> Result<Option<Pages>, Miss> {
        if let Some(meter) = &self.meter {
            return match meter.read() {
                Ok(pages) => Ok(Some(pages)),
                // The id is listed, so somebody else has it, or soon nobody.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
        let meter = Meter::open(self.identity.pid)?;
        let same = Stat::of(self.identity.pid)?.identity == self.identity;
        let pages = meter.read()?;
        Ok(same.then_some(pages))
    }
}
