//! All Tokio tasks of a process at one moment, read from its memory while it
//! runs on.
//!
//! Every task is one heap block that points at the vtable of its type. The
//! vtables are found in the files, the blocks by looking through the process's
//! private memory for pointers at them. A thread's stack holds copies of
//! cells that are being made, so stacks are left out.

mod modules;
mod names;
mod suspension;
mod threads;
mod types;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_ebpf::abi::heap::TaskIdRecipe;

use self::{
    modules::{OpenModule, Unread},
    names::Names,
    threads::Threads,
    types::{Own, add_tasks},
};
use super::{
    acceptance::{self, Known, Outcome},
    await_point::SourceLine,
    cell::{self, State},
    future_name::FutureName,
    sighting::{Sighting, Sightings, VtableId},
    source_location::SourceLocation,
    tls,
    vtable::Vtable,
};
use crate::host::{
    cache::Cache,
    heap::{Heap, Scanned},
    mapping,
    memory::MAX_PIECE,
    module::ModuleId,
    process::Process,
};

/// Tokio's first version with the alignment below (task/core.rs).
const FIRST_ALIGNED: u32 = 30;
/// Alignment of cells from then on.
const ALIGN: u64 = 128;
/// Tokio's first version with hooks in the trailer.
const FIRST_WITH_HOOKS: u32 = 40;
/// Tokio's first version whose vtables tell the id's place.
pub const FIRST_READABLE: u32 = 23;

/// All tasks of a process.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Files with Tokio in them that have tasks.
    pub modules: Vec<Module>,
    /// Types of futures that have tasks.
    pub types: Vec<FutureType>,
    /// Sorted by type and id.
    pub tasks: Vec<Task>,
    /// What was read.
    pub scanned: Scanned,
    /// How long that took.
    pub scan_time: Duration,
    /// Threads of the process, and those of them whose memory was found.
    pub threads: (usize, usize),
    /// Tasks beyond the bound.
    pub dropped: u64,
    /// Mapped files that could not be looked at, each with the reason.
    pub unread: Vec<(PathBuf, String)>,
    /// Remembered analyses that were not believed.
    pub cache_ignored: u64,
}

/// A file with Tokio in it.
#[derive(Clone, Debug)]
pub struct Module {
    /// Path as the process sees it; raw.
    pub path: PathBuf,
    /// Hexadecimal build id.
    pub build_id: Option<String>,
    /// Tokio's version, if the file tells it.
    pub version: Option<String>,
    /// Address in the process minus address as linked; no two files have the
    /// same.
    pub bias: u64,
    /// Whether the current task's id can be read of a thread.
    pub task_ids: TaskIds,
}

/// Whether the current task's id can be read of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskIds {
    /// It can: what was read were the ids of running tasks.
    Confirmed {
        /// What told the place.
        source: tls::Source,
        /// Threads on which that was seen.
        threads: usize,
        /// For the kernel programs.
        recipe: TaskIdRecipe,
    },
    /// It may be; nothing shows it.
    Unconfirmed(&'static str),
    /// It cannot.
    Unknown(String),
}

/// A type of future.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FutureType {
    /// Index of its file.
    pub module: usize,
    /// What it is called.
    pub name: FutureName,
    /// The future inside, where it is a boxed one.
    pub boxed: Option<FutureName>,
    /// Bytes of a cell, with header and trailer.
    pub cell_bytes: u64,
    /// Bytes of the future itself, or of its output if that is larger.
    pub future_bytes: u64,
    /// Names the type in this process: addresses of its task vtable and, of a
    /// boxed future, of the trait object's.
    pub key: (u64, Option<u64>),
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Index of its type.
    pub kind: usize,
    /// Tokio's id of it.
    pub id: u64,
    /// Tokio's state word.
    pub state: State,
    /// Number of the runtime or `LocalSet` that owns it; 0: the blocking pool.
    pub owner: u64,
    /// Address of its cell.
    pub address: u64,
    /// Changes with its future's state; see [`cell::Cell::print`].
    pub print: Option<u64>,
    /// The thread that polls it.
    pub thread: Option<u32>,
    /// Where it was spawned; unstable builds tell.
    pub spawned_at: Option<SourceLocation>,
    /// The `.await` that it is suspended at; builds with debug information
    /// tell.
    pub waits_at: Option<Arc<SourceLine>>,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum WhyNot {
    /// The process ended.
    #[error("it has ended")]
    Gone,
    /// No Tokio.
    #[error("no Tokio is in it")]
    NoTokio,
    /// A version that keeps its tasks otherwise.
    #[error(
        "{path} has Tokio {version} in it, whose tasks cannot be listed; they can from 1.{FIRST_READABLE} on"
    )]
    TooOld {
        /// The file.
        path: String,
        /// Tokio's version.
        version: String,
    },
    /// Tokio is there, but nothing of its tasks is known.
    #[error("{path} has Tokio {version} in it, but no task of a kind that is known")]
    NoVtables {
        /// The file.
        path: String,
        /// Tokio's version.
        version: String,
    },
    /// A file may have Tokio, and cannot be read.
    #[error("no Tokio was found, but {path} could not be looked at: {why}")]
    Unread {
        /// The file.
        path: String,
        /// The reason.
        why: String,
    },
    /// The kernel does not let us.
    #[error("its memory cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

/// Reads the table of a process.
///
/// # Errors
/// Why there is none.
pub fn read(process: &Process) -> Result<Table, WhyNot> {
    read_once(process, Depth::Whole)
}

/// Only the files with Tokio in them, and whether the current task's id can
/// be read: what naming takes is saved.
///
/// # Errors
/// As [`read`].
pub fn modules(process: &Process) -> Result<Vec<Module>, WhyNot> {
    read_once(process, Depth::Modules).map(|table| table.modules)
}

fn read_once(process: &Process, depth: Depth) -> Result<Table, WhyNot> {
    let outcome = Reader::open(process).and_then(|mut reader| reader.look(depth));
    gone_or(process, outcome)
}

/// What is asked of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// Its files, and whether the current task's id can be read.
    Modules,
    /// The same, and all that is known of its tasks.
    Whole,
    /// Its tasks and their types.
    Lives,
}

/// Tells an end from other failures, which follow from it.
fn gone_or<T>(process: &Process, outcome: Result<T, WhyNot>) -> Result<T, WhyNot> {
    match outcome {
        Err(WhyNot::Unreadable(error))
            if error.kind() == io::ErrorKind::NotFound || !process.is_running() =>
        {
            Err(WhyNot::Gone)
        }
        outcome => outcome,
    }
}

/// Reads the table of one process again and again. Its files are looked at
/// once, and again when it has mapped others.
pub struct Reader {
    process: Process,
    cache: Option<Cache>,
    modules: Vec<OpenModule>,
    names: Vec<Names>,
    unread: Unread,
    mapped: HashSet<ModuleId>,
}

impl Reader {
    /// Looks at the process's files.
    ///
    /// # Errors
    /// Why its tasks cannot be listed.
    pub fn open(process: &Process) -> Result<Self, WhyNot> {
        gone_or(process, Self::open_files(process))
    }

    fn open_files(process: &Process) -> Result<Self, WhyNot> {
        let mapped = modules::mapped(process)?;
        let cache = Cache::open();
        let (modules, unread) = modules::open(process, cache.as_ref())?;
        if let Some(why) = modules::why_none(&modules, &unread) {
            return Err(why);
        }
        Ok(Self {
            process: process.clone(),
            cache,
            names: modules.iter().map(|_| Names::default()).collect(),
            modules,
            unread,
            mapped,
        })
    }

    /// Whether the process has mapped the code of other files meanwhile: then
    /// a new reader is needed.
    pub fn is_outdated(&self) -> bool {
        modules::mapped(&self.process).is_ok_and(|mapped| mapped != self.mapped)
    }

    /// The tasks as they are now, and their types. Whether the current task's
    /// id can be read is not tried.
    ///
    /// # Errors
    /// Why there is none.
    pub fn read(&mut self) -> Result<Table, WhyNot> {
        let outcome = self.look(Depth::Lives);
        gone_or(&self.process, outcome)
    }

    fn look(&mut self, depth: Depth) -> Result<Table, WhyNot> {
        let (process, modules) = (&self.process, &self.modules);
        let heap = Heap::open(process)?;
        let vtables = modules.iter().enumerate().flat_map(|(index, module)| {
            let numbered = module.file.vtables.iter().enumerate();
            numbered.map(move |(vtable, found)| {
                let id = VtableId {
                    module: index,
                    vtable,
                };
                (module.bias.wrapping_add(found.address), id, found)
            })
        });
        let mut seen = Sightings::of(vtables);
        let mut table = Table {
            unread: self.unread.clone(),
            ..Table::default()
        };
        let start = Instant::now();
        for region in heap.regions() {
            let part = heap.scan(region, |start, bytes| seen.look(start, bytes))?;
            table.scanned.read += part.read;
            table.scanned.swapped += part.swapped;
            table.scanned.lost += part.lost;
        }
        table.scan_time = start.elapsed();
        for address in std::mem::take(&mut seen.torn) {
            for span in [cell::span, cell::least_span] {
                let mut bytes = vec![0; longest(modules, span, MAX_PIECE)];
                if let Some(part) = readable(&heap, address, &mut bytes) {
                    seen.look_at_cell(address, part);
                    break;
                }
            }
        }
        if !process.is_running() {
            return Err(WhyNot::Gone);
        }
        table.dropped = seen.dropped;
        let threads = Threads::find(process, &heap, &seen.blocks);
        table.threads = (threads.expected, threads.known.len());
        let cells = settled(seen.cells, modules, &threads);
        if cells.is_empty() && !modules.iter().any(OpenModule::is_certain) {
            // What looked like vtables were none.
            return Err(WhyNot::NoTokio);
        }
        self.fill(&mut table, &heap, &threads, &cells, depth);
        Ok(table)
    }

    fn fill(
        &mut self,
        table: &mut Table,
        heap: &Heap,
        threads: &Threads,
        cells: &[Sighting],
        depth: Depth,
    ) {
        let cache = self.cache.as_ref();
        for ((index, module), names) in self.modules.iter().enumerate().zip(&mut self.names) {
            let own: Vec<&Sighting> = cells
                .iter()
                .filter(|seen| seen.vtable.module == index)
                .collect();
            if own.is_empty() && !module.is_certain() {
                continue;
            }
            let (task_ids, running) = if depth == Depth::Lives {
                (TaskIds::Unconfirmed("it was not tried"), BTreeMap::new())
            } else {
                accepted(heap, &self.process, module, threads, &own)
            };
            table.modules.push(Module {
                path: module.path().to_owned(),
                build_id: module.build_id(),
                version: module.file.version.clone(),
                bias: module.bias,
                task_ids,
            });
            let own = Own {
                heap,
                module,
                aligned: is_aligned(Some(module), index, cells),
                cells: &own,
            };
            match depth {
                Depth::Modules => {}
                Depth::Whole => add_tasks(table, &own, &running, cache),
                Depth::Lives => names.add_tasks(table, &own, cache),
            }
        }
        table.tasks.sort_by_key(|task| (task.kind, task.id));
        table.cache_ignored = cache.map_or(0, Cache::ignored);
    }
}

/// Most bytes that any cell needs.
fn longest(modules: &[OpenModule], span: fn(&Vtable) -> u64, limit: usize) -> usize {
    let vtables = modules.iter().flat_map(|module| &module.file.vtables);
    let most = vtables.map(span).max().unwrap_or(0);
    (most as usize).min(limit)
}

/// As much as can be read from an address on: a small cell may end where its
/// mapping does.
fn readable<'bytes>(heap: &Heap, address: u64, bytes: &'bytes mut [u8]) -> Option<&'bytes [u8]> {
    let rest = heap.region(address)?.end - address;
    let size = bytes.len().min(usize::try_from(rest).ok()?);
    let bytes = bytes.get_mut(..size)?;
    heap.read(address, bytes).ok()?;
    Some(bytes)
}

/// The cells that are tasks: aligned, not on a stack, each id once.
fn settled(mut cells: Vec<Sighting>, modules: &[OpenModule], threads: &Threads) -> Vec<Sighting> {
    let aligned: HashSet<usize> = (0..modules.len())
        .filter(|module| is_aligned(modules.get(*module), *module, &cells))
        .collect();
    cells.retain(|seen| {
        let misplaced = aligned.contains(&seen.vtable.module) && seen.address % ALIGN != 0;
        !misplaced && !threads.is_on_stack(seen.address)
    });
    // Of two with the same id one is a copy; a task is in its owner's list.
    cells.sort_by_key(|seen| {
        let id = (seen.vtable.module, seen.cell.id);
        (id, seen.cell.owner == 0, seen.address)
    });
    cells.dedup_by_key(|seen| (seen.vtable.module, seen.cell.id));
    cells
}

fn is_aligned(module: Option<&OpenModule>, index: usize, cells: &[Sighting]) -> bool {
    if let Some(minor) = module.and_then(OpenModule::minor) {
        return minor >= FIRST_ALIGNED;
    }
    let own = cells.iter().filter(|seen| seen.vtable.module == index);
    let (aligned, all) = own.fold((0, 0), |(aligned, all), seen| {
        (aligned + usize::from(seen.address % ALIGN == 0), all + 1)
    });
    aligned * 10 >= all * 8
}

/// Whether the recipes of a file hold in this process.
fn accepted(
    heap: &Heap,
    process: &Process,
    module: &OpenModule,
    threads: &Threads,
    cells: &[&Sighting],
) -> (TaskIds, BTreeMap<u32, u64>) {
    let recipes = match &module.file.recipes {
        Ok(recipes) => recipes,
        Err(why) => return (TaskIds::Unknown(why.to_string()), BTreeMap::new()),
    };
    let known: BTreeMap<u64, Known> = cells
        .iter()
        .filter_map(|seen| {
            let vtable = module.file.vtables.get(seen.vtable.vtable)?;
            let place = Known {
                cell: seen.address,
                id: seen.address.checked_add(vtable.id)?,
            };
            Some((seen.cell.id, place))
        })
        .collect();
    let module_id = module.module_id(process.pid);
    match acceptance::accept(heap, &threads.known, recipes, module_id, &known) {
        Outcome::Confirmed { recipe, running } => {
            let ids = match recipe.for_kernel(module_id) {
                Some(for_kernel) => TaskIds::Confirmed {
                    source: recipe.source,
                    threads: running.len(),
                    recipe: for_kernel,
                },
                None => TaskIds::Unknown("its module id makes no sense".to_owned()),
            };
            (ids, running)
        }
        Outcome::Silent if threads.known.is_empty() => (
            TaskIds::Unconfirmed("no thread's local storage was found"),
            BTreeMap::new(),
        ),
        Outcome::Silent => (
            TaskIds::Unconfirmed("no thread polled a task while it was watched"),
            BTreeMap::new(),
        ),
        Outcome::Ambiguous => (
            TaskIds::Unconfirmed("several places look like it"),
            BTreeMap::new(),
        ),
        Outcome::Refuted => (
            TaskIds::Unknown("what was read were no ids of running tasks".to_owned()),
            BTreeMap::new(),
        ),
    }
}

#[cfg(test)]
mod tests;
