//! Reading the task tables of followed processes: once at the beginning, now
//! and then, and once at the end.
//!
//! A table is read on a thread of its own, because looking through a large
//! process takes seconds; one at a time, and in between for no more than a
//! hundredth of a core. A thread that does not come back is left behind and
//! its process's table is not read again.

use std::{
    collections::{HashMap, HashSet},
    sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use super::{Account, Investigation, survey::now};
use crate::{
    host::{
        cpu_clock::CpuClock,
        process::{self, Process},
    },
    ledger::{
        Ledger, TaskLedger,
        tasks::{Kind, KindKey, Phase, Seen, TaskId, TaskReading, Work},
    },
    tokio_rt::{
        cell::State,
        future_name,
        table::{self, Reader, Table, WhyNot},
    },
};

/// Least time between two readings of one process: short at first, since
/// short observations need several.
const SOONEST: Duration = Duration::from_secs(2);
/// The same after a while.
const USUAL: Duration = Duration::from_secs(10);
/// Readings rest for so many times what one took of a processor.
const REST: u32 = 100;
/// A reading that takes longer is given up.
const DEADLINE: Duration = Duration::from_secs(20);
/// The last readings of all processes together.
const LAST: Duration = Duration::from_secs(10);
/// The last reading of one process.
const LAST_OF_ONE: Duration = Duration::from_secs(5);
/// Cells whose release is looked for between readings.
const MAX_CELLS: usize = 1 << 15;

/// The tasks of one process over time.
#[derive(Default)]
pub(super) struct TaskLife {
    pub(super) ledger: TaskLedger,
    /// The file whose task ids allocations carry.
    pub(super) module: Option<u64>,
    reader: Option<Reader>,
    under_way: Option<(Instant, Receiver<Answer>)>,
    /// No reading before, CLOCK_MONOTONIC.
    next: Duration,
    began: Option<Duration>,
    why_not: Option<String>,
    /// It will not be read again.
    given_up: bool,
    /// Cells of living tasks that are recorded as blocks: the task, and when
    /// the block was born.
    cells: HashMap<u64, (TaskId, Duration)>,
}

/// What a reading thread brings back.
struct Answer {
    outcome: Result<(Reader, Table), WhyNot>,
    /// When memory was looked through, CLOCK_MONOTONIC.
    begin: Duration,
    end: Duration,
    /// What it took of a processor.
    cpu: Duration,
}

impl TaskLife {
    /// Why there is no table, or not the newest.
    pub(super) fn why_not(&self) -> Option<String> {
        let why = self.why_not.as_ref()?;
        Some(format!("tasks cannot be listed: {why}"))
    }

    /// Losses by cause.
    pub(super) fn losses(&self) -> [(&'static str, u64); 5] {
        let losses = self.ledger.losses();
        [
            ("tasks_not_kept", losses.tasks),
            ("tasks_of_types_not_kept", losses.kinds),
            ("ended_tasks_not_kept", losses.ended),
            ("task_tables_out_of_order", losses.out_of_order),
            ("task_tables_given_up", u64::from(self.given_up)),
        ]
    }

    /// Blocks are recorded anew.
    pub(super) fn forget_cells(&mut self) {
        self.cells.clear();
    }

    /// Takes what an observation of the heap tells of tasks. `between` are
    /// the times of the one before and of this one, since `zero_ns`.
    pub(super) fn observe(&mut self, heap: &Ledger, zero_ns: u64, between: (Duration, Duration)) {
        let Some(module) = self.module else {
            return;
        };
        let zero = Duration::from_nanos(zero_ns);
        for block in heap.live().iter().filter(|block| block.born >= between.0) {
            if let Some(id) = block.task {
                let task = TaskId { module, id };
                self.ledger.allocated(task, zero + block.born);
            }
        }
        let ledger = &mut self.ledger;
        self.cells.retain(|address, (task, born)| {
            let lives = heap
                .block(*address)
                .is_some_and(|block| block.born == *born);
            if !lives {
                ledger.freed(*task, zero + between.0, zero + between.1);
            }
            lives
        });
    }

    fn is_due(&self, at: Duration) -> bool {
        !self.given_up && self.under_way.is_none() && at >= self.next
    }

    /// Starts a reading.
    fn start(&mut self, process: &Process) {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (process, reader) = (process.clone(), self.reader.take());
        let work = move || {
            // Whoever waited may have given up.
            drop(sender.send(read(&process, reader)));
        };
        match thread::Builder::new()
            .name("task-reader".into())
            .spawn(work)
        {
            Ok(_) => self.under_way = Some((Instant::now(), receiver)),
            Err(error) => self.give_up(format!("no thread can be had: {error}")),
        }
    }

    fn give_up(&mut self, why: String) {
        self.given_up = true;
        self.why_not = Some(why);
    }

    /// The answer of the reading under way, if it comes within `limit`.
    fn answer(&mut self, limit: Duration) -> Option<Answer> {
        let (since, receiver) = self.under_way.as_ref()?;
        let (answer, over) = if limit.is_zero() {
            let answer = receiver.try_recv();
            (answer, since.elapsed() >= DEADLINE)
        } else {
            let answer = receiver.recv_timeout(limit).map_err(|why| match why {
                RecvTimeoutError::Timeout => TryRecvError::Empty,
                RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
            });
            (answer, true)
        };
        match answer {
            Ok(answer) => {
                self.under_way = None;
                Some(answer)
            }
            Err(TryRecvError::Empty) if !over => None,
            Err(TryRecvError::Empty) => {
                self.under_way = None;
                self.give_up("reading them took too long".to_owned());
                None
            }
            Err(TryRecvError::Disconnected) => {
                self.under_way = None;
                self.give_up("the reading thread ended early".to_owned());
                None
            }
        }
    }
}

/// The work of the reading thread.
fn read(process: &Process, reader: Option<Reader>) -> Answer {
    let cpu = || CpuClock::THIS_THREAD.read().unwrap_or_default();
    let old = reader.filter(|reader| !reader.is_outdated());
    // What a process's files tell is asked once, and not rested for.
    let free = old.is_none();
    let opened = match old {
        Some(reader) => Ok(reader),
        None => Reader::open(process),
    };
    let (begin, mark) = (now(), if free { cpu() } else { Duration::ZERO });
    let outcome = opened.and_then(|mut reader| {
        let table = reader.read()?;
        Ok((reader, table))
    });
    Answer {
        outcome,
        begin,
        end: now(),
        cpu: cpu().saturating_sub(mark),
    }
}

impl Account {
    /// Enters an answer; what the reading took of a processor.
    fn take_answer(&mut self, answer: Answer) -> Duration {
        let life = &mut self.tasks;
        let began = *life.began.get_or_insert(answer.begin);
        let pause = (answer.end.saturating_sub(began) / 8).clamp(SOONEST, USUAL);
        life.next = answer.begin + pause;
        let (reader, table) = match answer.outcome {
            Ok(read) => read,
            Err(WhyNot::Gone) => return answer.cpu,
            Err(why) => {
                life.why_not = Some(why.to_string());
                // It may change when the process maps another file, or never.
                life.next = answer.end + USUAL;
                return answer.cpu;
            }
        };
        tracing::debug!(
            pid = self.id,
            tasks = table.tasks.len(),
            took = ?answer.end.saturating_sub(answer.begin),
            cpu = ?answer.cpu,
            "task table"
        );
        life.reader = Some(reader);
        life.why_not = None;
        life.module = own_module(&table, &self.process);
        let reading = reading(&table, answer.begin, answer.end);
        self.enter(&reading);
        answer.cpu
    }

    fn enter(&mut self, reading: &TaskReading) {
        let blocks = self.blocks(self.tasks.module);
        let holders: HashSet<TaskId> = blocks.iter().filter_map(|block| block.task).collect();
        let zero = self.surveyed().map_or_else(
            || Duration::from_nanos(self.attached_ns),
            super::survey::Survey::began,
        );
        // Also what was allocated before the first table told whose ids these
        // are.
        for block in &blocks {
            if let Some(task) = block.task {
                self.tasks.ledger.allocated(task, zero + block.born);
            }
        }
        self.tasks.ledger.read(reading, &holders);
        if self.surveyed().is_some() {
            return;
        }
        let alive = reading.tasks.iter().filter(|seen| !seen.phase.is_over());
        self.tasks.cells = alive
            .filter_map(|seen| Some((seen.cell, (seen.task, self.ledger.block(seen.cell)?.born))))
            .take(MAX_CELLS)
            .collect();
    }
}

impl Investigation {
    /// Takes the tables that were read meanwhile, and starts to read the next
    /// one that is due.
    pub(super) fn read_tasks(&mut self) {
        let at = now();
        let mut busy = false;
        for account in self.accounts.values_mut() {
            if let Some(answer) = account.tasks.answer(Duration::ZERO) {
                let end = answer.end;
                let cpu = account.take_answer(answer);
                self.tables_rest = self.tables_rest.max(end + cpu * REST);
            }
            busy |= account.tasks.under_way.is_some();
        }
        if busy {
            return;
        }
        let due = self
            .accounts
            .values_mut()
            .filter(|account| !account.ended && account.tasks.is_due(at))
            // The first reading of a process does not wait for others.
            .filter(|account| account.tasks.began.is_none() || at >= self.tables_rest)
            .filter(|account| {
                let target = self.capture.target(account.id);
                target.is_some_and(|target| target.tasks.tokio)
            })
            .min_by_key(|account| account.tasks.next);
        if let Some(account) = due {
            account.tasks.start(&account.process);
        }
    }

    /// Reads the tables of all processes once more; the probes are off.
    pub(super) fn read_tasks_last(&mut self) {
        let end = Instant::now() + LAST;
        for account in self.accounts.values_mut() {
            let left = || {
                end.saturating_duration_since(Instant::now())
                    .clamp(Duration::from_millis(1), LAST_OF_ONE)
            };
            if let Some(answer) = account.tasks.answer(left()) {
                account.take_answer(answer);
            }
            let target = self.capture.target(account.id);
            let tokio = target.is_some_and(|target| target.tasks.tokio);
            if account.ended || account.tasks.given_up || !tokio || Instant::now() >= end {
                continue;
            }
            account.tasks.start(&account.process);
            if let Some(answer) = account.tasks.answer(left()) {
                account.take_answer(answer);
            }
        }
    }
}

/// The file whose ids allocations carry: the only one, else the program's own.
fn own_module(table: &Table, process: &Process) -> Option<u64> {
    match table.modules.as_slice() {
        [only] => Some(only.bias),
        several => {
            let exe = process::exe_path(process);
            let main = several.iter().find(|module| module.path == exe);
            main.map(|module| module.bias)
        }
    }
}

/// A table as the ledger knows it.
fn reading(table: &Table, begin: Duration, end: Duration) -> TaskReading {
    let bias = |kind: &table::FutureType| {
        let module = table.modules.get(kind.module);
        module.map_or(0, |module| module.bias)
    };
    let tasks = table.tasks.iter().map(|task| Seen {
        task: TaskId {
            module: table.types.get(task.kind).map_or(0, bias),
            id: task.id,
        },
        kind: task.kind,
        cell: task.address,
        phase: phase(task.state),
        mark: task.print.map(|print| print.rotate_left(7) ^ task.state.0),
        join_handle: task.state.has_join_handle(),
    });
    let owners: HashSet<(usize, u64)> = table
        .tasks
        .iter()
        .filter(|task| task.owner != 0)
        .filter_map(|task| Some((table.types.get(task.kind)?.module, task.owner)))
        .collect();
    TaskReading {
        begin,
        end,
        kinds: table.types.iter().map(kind).collect(),
        tasks: tasks.collect(),
        runtimes: u32::try_from(owners.len()).unwrap_or(u32::MAX),
        partial: table.scanned.swapped > 0 || table.dropped > 0,
        dropped: table.dropped,
    }
}

fn kind(kind: &table::FutureType) -> Kind {
    // What is in the box says more than that there is one.
    let name = kind.boxed.as_ref().unwrap_or(&kind.name);
    Kind {
        key: KindKey(kind.key.0, kind.key.1),
        name: name.short.clone().or_else(|| {
            let alternatives = &name.alternatives;
            (!alternatives.is_empty()).then(|| alternatives.join(" or "))
        }),
        location: name.location.as_ref().map(ToString::to_string),
        cell_bytes: kind.cell_bytes,
        work: match kind.name.kind {
            future_name::Kind::Future => Work::Future,
            future_name::Kind::Blocking => Work::Blocking,
            future_name::Kind::Runtime => Work::Runtime,
        },
    }
}

fn phase(state: State) -> Phase {
    if state.is_complete() {
        Phase::Complete
    } else if state.is_running() {
        Phase::Running
    } else if state.is_notified() {
        Phase::Scheduled
    } else {
        Phase::Idle
    }
}
