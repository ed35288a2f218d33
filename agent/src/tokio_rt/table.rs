//! All Tokio tasks of a process at one moment, read from its memory while it
//! runs on.
//!
//! Every task is one heap block that points at the vtable of its type. The
//! vtables are found in the files, the blocks by looking through the process's
//! private memory for pointers at them. A thread's stack holds copies of
//! cells that are being made, so stacks are left out.

mod modules;
mod suspension;
mod threads;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_ebpf::abi::heap::TaskIdRecipe;

use self::{modules::OpenModule, suspension::Suspensions, threads::Threads};
use super::{
    acceptance::{self, Known, Outcome},
    await_point::SourceLine,
    cell::{self, State},
    file::{self, Answers, Questions},
    future_name::{FutureName, Kind},
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
    read_all(process, true)
}

/// Only the files with Tokio in them, and whether the current task's id can
/// be read: what naming takes is saved.
///
/// # Errors
/// As [`read`].
pub fn modules(process: &Process) -> Result<Vec<Module>, WhyNot> {
    read_all(process, false).map(|table| table.modules)
}

fn read_all(process: &Process, with_tasks: bool) -> Result<Table, WhyNot> {
    match read_running(process, with_tasks) {
        Err(WhyNot::Unreadable(error))
            if error.kind() == io::ErrorKind::NotFound || !process.is_running() =>
        {
            Err(WhyNot::Gone)
        }
        outcome => outcome,
    }
}

fn read_running(process: &Process, with_tasks: bool) -> Result<Table, WhyNot> {
    let cache = Cache::open();
    let (modules, unread) = modules::open(process, cache.as_ref())?;
    if let Some(why) = modules::why_none(&modules, &unread) {
        return Err(why);
    }
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
        unread,
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
        let mut bytes = vec![0; longest(&modules, MAX_PIECE)];
        if let Some(part) = readable(&heap, address, &mut bytes) {
            seen.look_at_cell(address, part);
        }
    }
    if !process.is_running() {
        return Err(WhyNot::Gone);
    }
    table.dropped = seen.dropped;
    let threads = Threads::find(process, &heap, &seen.blocks);
    table.threads = (threads.expected, threads.known.len());
    let cells = settled(seen.cells, &modules, &threads);
    if cells.is_empty() && !modules.iter().any(OpenModule::is_certain) {
        // What looked like vtables were none.
        return Err(WhyNot::NoTokio);
    }
    for (index, module) in modules.iter().enumerate() {
        let own: Vec<&Sighting> = cells
            .iter()
            .filter(|seen| seen.vtable.module == index)
            .collect();
        if own.is_empty() && !module.is_certain() {
            continue;
        }
        let (task_ids, running) = accepted(&heap, process, module, &threads, &own);
        table.modules.push(Module {
            path: module.path().to_owned(),
            build_id: module.build_id(),
            version: module.file.version.clone(),
            task_ids,
        });
        if with_tasks {
            let aligned = is_aligned(Some(module), index, &cells);
            let own = Own {
                heap: &heap,
                module,
                aligned,
                cells: &own,
            };
            add_tasks(&mut table, &own, &running, cache.as_ref());
        }
    }
    table.tasks.sort_by_key(|task| (task.kind, task.id));
    table.cache_ignored = cache.as_ref().map_or(0, Cache::ignored);
    Ok(table)
}

/// Most bytes that any cell needs.
fn longest(modules: &[OpenModule], limit: usize) -> usize {
    let vtables = modules.iter().flat_map(|module| &module.file.vtables);
    let most = vtables.map(cell::span).max().unwrap_or(0);
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

/// Bytes of a cell.
fn cell_bytes(vtable: &Vtable, minor: Option<u32>, aligned: bool) -> u64 {
    let trailer = if minor.is_none_or(|minor| minor >= FIRST_WITH_HOOKS) {
        48
    } else {
        32
    };
    let align = if aligned { ALIGN } else { 8 };
    (vtable.trailer + trailer).next_multiple_of(align)
}

/// A module's own cells.
#[derive(Clone, Copy)]
struct Own<'a> {
    heap: &'a Heap,
    module: &'a OpenModule,
    /// Its cells are aligned as those of later versions are.
    aligned: bool,
    cells: &'a [&'a Sighting],
}

/// Adds the types and tasks of the module that was added last. `running` tells
/// which thread polls which task.
fn add_tasks(
    table: &mut Table,
    own: &Own<'_>,
    running: &BTreeMap<u32, u64>,
    cache: Option<&Cache>,
) {
    let Own {
        heap,
        module,
        aligned,
        cells,
    } = *own;
    let polled_by: HashMap<u64, u32> = running
        .iter()
        .map(|(thread, task)| (*task, *thread))
        .collect();
    let (questions, order) = questions(module, cells);
    let answers = module.name(cache, &questions);
    let shown = table.modules.len().saturating_sub(1);
    let mut suspensions = Suspensions::of(&questions, &answers);
    let mut kinds: BTreeMap<(usize, Option<u64>), usize> = BTreeMap::new();
    for seen in cells {
        let Some(place) = order.get(&seen.vtable.vtable).copied() else {
            continue;
        };
        let object = object(module, &answers, place, &questions, seen);
        let kind = *kinds.entry((place, object)).or_insert_with(|| {
            let mut kind = future_type(
                (shown, aligned, module.minor()),
                &questions,
                &answers,
                (place, object),
            );
            // A future is in its owner's list from the moment it is spawned;
            // work of the blocking pool never is.
            if kind.name.is_unknown() && seen.cell.owner == 0 {
                kind.name.kind = Kind::Blocking;
            }
            table.types.push(kind);
            table.types.len() - 1
        });
        let spawned_at = seen.cell.spawn_location.and_then(|address| {
            let linked = address.wrapping_sub(module.bias);
            answers.spawn_locations.get(&linked).cloned()
        });
        table.tasks.push(Task {
            kind,
            id: seen.cell.id,
            state: seen.cell.state,
            owner: seen.cell.owner,
            address: seen.address,
            thread: polled_by.get(&seen.cell.id).copied(),
            spawned_at,
            waits_at: suspensions.at(heap, place, seen),
        });
    }
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

/// What to ask the file, and where in the questions each vtable is.
fn questions(module: &OpenModule, cells: &[&Sighting]) -> (Questions, HashMap<usize, usize>) {
    let mut questions = Questions {
        all: module.file.vtables.clone(),
        ..Questions::default()
    };
    let mut order: HashMap<usize, usize> = HashMap::new();
    let used: BTreeSet<usize> = cells.iter().map(|seen| seen.vtable.vtable).collect();
    for index in used {
        if let Some(vtable) = module.file.vtables.get(index) {
            order.insert(index, questions.vtables.len());
            questions.vtables.push(vtable.clone());
            questions.stages.push(BTreeSet::new());
        }
    }
    for seen in cells {
        let place = order.get(&seen.vtable.vtable);
        let stages = place.and_then(|place| questions.stages.get_mut(*place));
        if let Some(stages) = stages.filter(|stages| stages.len() < file::MAX_STAGES) {
            stages.insert(module.linked(seen));
        }
        let spawned = seen.cell.spawn_location;
        questions
            .spawn_locations
            .extend(spawned.map(|address| address.wrapping_sub(module.bias)));
    }
    (questions, order)
}

/// The trait object that a cell holds, if its future is a boxed one with a
/// name.
fn object(
    module: &OpenModule,
    answers: &Answers,
    place: usize,
    questions: &Questions,
    seen: &Sighting,
) -> Option<u64> {
    let (name, vtable) = (answers.names.get(place)?, questions.vtables.get(place)?);
    if !file::may_be_boxed(name, vtable) || seen.cell.state.is_complete() {
        return None;
    }
    file::objects(&module.linked(seen)).find(|object| answers.objects.contains_key(object))
}

fn future_type(
    (module, aligned, minor): (usize, bool, Option<u32>),
    questions: &Questions,
    answers: &Answers,
    (place, object): (usize, Option<u64>),
) -> FutureType {
    let vtable = questions.vtables.get(place);
    FutureType {
        module,
        name: answers.names.get(place).cloned().unwrap_or_default(),
        boxed: object.and_then(|object| answers.objects.get(&object).cloned()),
        cell_bytes: vtable.map_or(0, |vtable| cell_bytes(vtable, minor, aligned)),
        future_bytes: vtable.map_or(0, |vtable| vtable.trailer.saturating_sub(vtable.stage())),
    }
}

#[cfg(test)]
mod tests;
