//! The task table as a document: JSON, schema 1 of its own.
//!
//! As in [`crate::finding`]: fields may be added, everything that a target
//! controls is a [`Text`], what is unknown is null. Fields that need
//! allocations to be followed, or the process to be watched for a while, are
//! there and null.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    finding::Text,
    host::{
        kernel,
        process::{self, Process},
    },
    tokio_rt::{
        future_name::{FutureName, Kind},
        table::{FutureType, Module, Table, Task, TaskIds},
        tls::Source,
    },
};

/// Version of the document's shape.
const SCHEMA: u32 = 1;

/// The tasks of one process at one moment.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    /// [`SCHEMA`].
    schema: u32,
    /// Version of the program that wrote the document.
    lingerscope: &'static str,
    /// Host name.
    host: Option<Text>,
    /// Kernel release.
    kernel: Option<Text>,
    /// When the reading began, RFC 3339.
    taken: String,
    /// How long it took in seconds; the process ran on meanwhile.
    pub(super) duration_s: f64,
    /// The process.
    pub(super) process: Who,
    /// Why there is no table.
    pub(super) why_not: Option<Text>,
    /// Numbers of tasks.
    pub(super) counts: Counts,
    /// Files with Tokio in them.
    pub(super) modules: Vec<ModuleEntry>,
    /// Types of futures, the most numerous first; each with its tasks.
    pub(super) types: Vec<TypeEntry>,
    /// What was read, and what not.
    pub(super) read: Reading,
}

/// The process.
#[derive(Debug, Default, Serialize)]
pub(super) struct Who {
    pub(super) pid: u32,
    start_time: Option<u64>,
    uid: Option<u32>,
    pub(super) comm: Option<Text>,
    exe: Option<Text>,
    unit: Option<Text>,
    container_id: Option<Text>,
}

/// Numbers of tasks. Tokio's own are not among them.
#[derive(Debug, Default, Serialize)]
pub(super) struct Counts {
    /// All.
    pub(super) tasks: usize,
    /// By state: running, scheduled, idle, complete.
    pub(super) states: BTreeMap<&'static str, usize>,
    /// Runtimes and `LocalSet`s that own tasks.
    pub(super) owners: usize,
    /// Tokio's own work on its blocking pool: its workers.
    pub(super) runtime_tasks: usize,
}

/// A file with Tokio in it.
#[derive(Debug, Serialize)]
pub(super) struct ModuleEntry {
    pub(super) path: Text,
    build_id: Option<String>,
    /// Tokio's version.
    pub(super) tokio: Option<Text>,
    /// Whether the current task's id can be read of a thread: `confirmed`,
    /// `unconfirmed` or `unknown`.
    pub(super) task_id: &'static str,
    /// What told its place: `debug-information`, `guard`, `task-code`, `trial`.
    pub(super) task_id_source: Option<&'static str>,
    /// Threads on which it was seen to be a running task's.
    pub(super) task_id_threads: usize,
    /// Why it is not confirmed.
    pub(super) why_not: Option<Text>,
}

/// A type of future.
#[derive(Debug, Serialize)]
pub(super) struct TypeEntry {
    /// The function or type that a person would look for.
    pub(super) future: Option<Text>,
    /// Its type in full.
    r#type: Option<Text>,
    /// What it may be, where the compiler has merged functions and nothing
    /// tells which.
    pub(super) alternatives: Vec<Text>,
    /// `file:line:column` of its code, as far as the file tells.
    pub(super) location: Option<Text>,
    /// `future`, `blocking` or `runtime`.
    pub(super) kind: &'static str,
    /// It is in a box, whose own type says nothing.
    pub(super) boxed: bool,
    /// Index in `modules`.
    module: usize,
    /// Bytes of a cell, with header and trailer.
    pub(super) cell_bytes: u64,
    /// Bytes of the future, or of its output if that is larger.
    pub(super) future_bytes: u64,
    /// Number of tasks.
    pub(super) count: usize,
    /// The tasks, by id.
    pub(super) tasks: Vec<TaskEntry>,
}

/// A task.
#[derive(Clone, Debug, Serialize)]
pub(super) struct TaskEntry {
    /// Tokio's id; a number as `tokio::task::id()` prints it.
    pub(super) id: u64,
    /// `running`, `scheduled`, `idle` or `complete`.
    pub(super) state: &'static str,
    /// References to the cell.
    pub(super) references: u64,
    /// Number of the runtime or `LocalSet`; null on the blocking pool.
    pub(super) owner: Option<u64>,
    /// A join handle is held.
    join_handle: bool,
    /// Somebody waits for its end.
    join_waker: bool,
    /// It was told to end.
    cancelled: bool,
    /// Address of its cell.
    cell: String,
    /// The thread that polls it.
    pub(super) thread: Option<u32>,
    /// Where it was spawned, in builds with `tokio_unstable`.
    spawned_at: Option<Text>,
    /// `file:line` of the `.await` that it is suspended at, in builds with
    /// debug information.
    pub(super) waits_at: Option<Text>,
    /// Seconds since it was spawned.
    age_s: Option<f64>,
    /// Seconds since it was last polled.
    idle_s: Option<f64>,
    /// Bytes that it has allocated and that are live.
    bytes: Option<u64>,
    /// Blocks, likewise.
    blocks: Option<u64>,
}

/// What was read.
#[derive(Debug, Default, Serialize)]
pub(super) struct Reading {
    /// Bytes of memory that were looked through.
    pub(super) bytes: u64,
    /// Bytes in swap, which are left there; tasks in them are missing.
    pub(super) swapped_bytes: u64,
    /// Bytes that went away meanwhile.
    lost_bytes: u64,
    /// Threads of the process.
    threads: usize,
    /// Those whose local storage was found.
    threads_found: usize,
    /// Tasks beyond what is kept.
    pub(super) dropped_tasks: u64,
    /// Remembered analyses that were damaged or not ours.
    cache_ignored: u64,
    /// Files that could not be looked at.
    pub(super) unread_files: Vec<UnreadFile>,
}

/// A file that could not be looked at.
#[derive(Debug, Serialize)]
pub(super) struct UnreadFile {
    pub(super) path: Text,
    pub(super) why: Text,
}

impl Document {
    /// The document of a table, or of why there is none.
    pub(super) fn of(
        pid: u32,
        process: Option<&Process>,
        outcome: &Result<Table, String>,
        taken: SystemTime,
        took: Duration,
    ) -> Self {
        let empty = Table::default();
        let table = outcome.as_ref().unwrap_or(&empty);
        Self {
            schema: SCHEMA,
            lingerscope: env!("CARGO_PKG_VERSION"),
            host: nix::unistd::gethostname()
                .ok()
                .map(|name| Text::name(name.as_encoded_bytes())),
            kernel: Some(Text::name(kernel::release())),
            taken: jiff::Timestamp::try_from(taken)
                .map(|time| time.to_string())
                .unwrap_or_default(),
            duration_s: super::seconds(took),
            process: process.map_or_else(
                || Who {
                    pid,
                    ..Who::default()
                },
                who,
            ),
            why_not: outcome.as_ref().err().map(Text::sentence),
            counts: counts(table),
            modules: table.modules.iter().map(module).collect(),
            types: types(table),
            read: reading(table),
        }
    }
}

fn who(process: &Process) -> Who {
    let exe = process::exe_path(process);
    Who {
        pid: process.pid,
        start_time: Some(process.start_time),
        uid: Some(process.uid),
        comm: Some(Text::name(&process.comm)),
        exe: Some(Text::name(exe.as_os_str().as_encoded_bytes()))
            .filter(|exe| !exe.as_str().is_empty()),
        unit: process.unit().map(Text::name),
        container_id: process.container_id().map(Text::name),
    }
}

fn kind_of<'table>(table: &'table Table, task: &Task) -> Option<&'table FutureType> {
    table.types.get(task.kind)
}

fn counts(table: &Table) -> Counts {
    let mut counts = Counts::default();
    let mut owners = BTreeSet::new();
    for task in &table.tasks {
        let kind = kind_of(table, task);
        if kind.is_some_and(|kind| kind.name.kind == Kind::Runtime) {
            counts.runtime_tasks += 1;
            continue;
        }
        counts.tasks += 1;
        *counts.states.entry(task.state.name()).or_default() += 1;
        if task.owner != 0 {
            owners.insert((kind.map(|kind| kind.module), task.owner));
        }
    }
    counts.owners = owners.len();
    counts
}

fn module(module: &Module) -> ModuleEntry {
    let (task_id, source, threads, why_not) = match &module.task_ids {
        TaskIds::Confirmed {
            source, threads, ..
        } => ("confirmed", Some(*source), *threads, None),
        TaskIds::Unconfirmed(why) => ("unconfirmed", None, 0, Some(Text::sentence(why))),
        TaskIds::Unknown(why) => ("unknown", None, 0, Some(Text::sentence(why))),
    };
    ModuleEntry {
        path: Text::name(module.path.as_os_str().as_encoded_bytes()),
        build_id: module.build_id.clone(),
        tokio: module.version.as_ref().map(Text::name),
        task_id,
        task_id_source: source.map(|source| match source {
            Source::DebugInformation => "debug-information",
            Source::Guard => "guard",
            Source::TaskCode => "task-code",
            Source::Trial => "trial",
        }),
        task_id_threads: threads,
        why_not,
    }
}

fn types(table: &Table) -> Vec<TypeEntry> {
    let mut types: Vec<TypeEntry> = table.types.iter().map(type_entry).collect();
    for task in &table.tasks {
        if let Some(entry) = types.get_mut(task.kind) {
            entry.count += 1;
            entry.tasks.push(task_entry(task));
        }
    }
    // Tokio's own tasks are of least interest, however many.
    types.sort_by_key(|entry| (entry.kind == "runtime", std::cmp::Reverse(entry.count)));
    types
}

fn type_entry(kind: &FutureType) -> TypeEntry {
    let inner = kind.boxed.as_ref();
    // What is in the box is more telling than the box.
    let told =
        |get: &dyn Fn(&FutureName) -> Option<Text>| inner.and_then(get).or_else(|| get(&kind.name));
    TypeEntry {
        future: told(&|name| name.short.as_ref().map(Text::symbol)),
        r#type: told(&|name| name.full.as_ref().map(Text::symbol)),
        alternatives: kind.name.alternatives.iter().map(Text::symbol).collect(),
        location: told(&|name| {
            let location = name.location.as_ref()?;
            Some(Text::name(location.to_string()))
        }),
        kind: match kind.name.kind {
            Kind::Future => "future",
            Kind::Blocking => "blocking",
            Kind::Runtime => "runtime",
        },
        boxed: inner.is_some() || kind.name.is_boxed(),
        module: kind.module,
        cell_bytes: kind.cell_bytes,
        future_bytes: kind.future_bytes,
        count: 0,
        tasks: Vec::new(),
    }
}

fn task_entry(task: &Task) -> TaskEntry {
    TaskEntry {
        id: task.id,
        state: task.state.name(),
        references: task.state.references(),
        owner: (task.owner != 0).then_some(task.owner),
        join_handle: task.state.has_join_handle(),
        join_waker: task.state.has_join_waker(),
        cancelled: task.state.is_cancelled(),
        cell: format!("{:#x}", task.address),
        thread: task.thread,
        spawned_at: task
            .spawned_at
            .as_ref()
            .map(|location| Text::name(location.to_string())),
        waits_at: task
            .waits_at
            .as_ref()
            .map(|line| Text::name(line.to_string())),
        age_s: None,
        idle_s: None,
        bytes: None,
        blocks: None,
    }
}

fn reading(table: &Table) -> Reading {
    Reading {
        bytes: table.scanned.read,
        swapped_bytes: table.scanned.swapped,
        lost_bytes: table.scanned.lost,
        threads: table.threads.0,
        threads_found: table.threads.1,
        dropped_tasks: table.dropped,
        cache_ignored: table.cache_ignored,
        unread_files: table
            .unread
            .iter()
            .map(|(path, why)| UnreadFile {
                path: Text::name(path.as_os_str().as_encoded_bytes()),
                why: Text::sentence(why),
            })
            .collect(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tokio_rt::{cell::State, source_location::SourceLocation};

    /// Two types, three tasks and a worker of Tokio's own.
    pub(in crate::tasks) fn sample(name: &str) -> Document {
        let named = |short: Option<&str>, kind| FutureName {
            full: short.map(|short| format!("{short}::{{{{closure}}}}")),
            short: short.map(str::to_owned),
            alternatives: Vec::new(),
            location: Some(SourceLocation {
                file: format!("src/{name}.rs"),
                line: 7,
                column: 3,
            }),
            kind,
        };
        let of = |name: FutureName| FutureType {
            module: 0,
            name,
            boxed: None,
            cell_bytes: 256,
            future_bytes: 120,
            key: (0, None),
        };
        let task = |kind, id, state: u64, owner| Task {
            kind,
            id,
            state: State(state),
            owner,
            address: 0x7000 + id * 256,
            print: None,
            thread: (state & 1 != 0).then_some(99),
            spawned_at: None,
            waits_at: (kind == 1).then(|| {
                std::sync::Arc::new(crate::tokio_rt::await_point::SourceLine {
                    file: "src/main.rs".to_owned(),
                    line: 14,
                })
            }),
        };
        let table = Table {
            modules: vec![Module {
                path: format!("/bin/{name}").into(),
                build_id: Some("abcd".into()),
                version: Some("1.54.1".into()),
                bias: 0,
                task_ids: TaskIds::Confirmed {
                    source: Source::Guard,
                    threads: 2,
                    recipe: agent_ebpf::abi::heap::TaskIdRecipe::default(),
                },
            }],
            types: vec![
                of(named(None, Kind::Runtime)),
                of(named(Some(name), Kind::Future)),
                of(named(Some("app::load"), Kind::Blocking)),
            ],
            tasks: vec![
                task(0, 1, 2 << 6 | 1, 0),
                task(1, 17, 2 << 6, 1),
                task(1, 18, 3 << 6 | 1, 1),
                task(2, 19, 1 << 6 | 2, 0),
            ],
            ..Table::default()
        };
        let process = Process::of(std::process::id()).unwrap();
        Document::of(
            process.pid,
            Some(&process),
            &Ok(table),
            SystemTime::UNIX_EPOCH,
            Duration::from_millis(1234),
        )
    }

    #[test]
    fn counts_leave_tokios_own_tasks_out() {
        let document = sample("app::serve");
        let counts = &document.counts;
        assert_eq!(
            (counts.tasks, counts.owners, counts.runtime_tasks),
            (3, 1, 1)
        );
        assert_eq!(
            counts.states,
            BTreeMap::from([("complete", 1), ("idle", 1), ("running", 1)])
        );
        let order: Vec<_> = document.types.iter().map(|entry| entry.kind).collect();
        assert_eq!(order, ["future", "blocking", "runtime"]);
        assert_eq!(document.types[0].tasks[1].thread, Some(99));
    }

    #[test]
    fn the_shape_is_kept() {
        let value = serde_json::to_value(sample("app::serve")).unwrap();
        let keys = |value: &serde_json::Value| {
            let object = value.as_object().unwrap();
            object.keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            keys(&value),
            "counts duration_s host kernel lingerscope modules process read schema taken types why_not"
        );
        assert_eq!(
            keys(&value["types"][0]),
            "alternatives boxed cell_bytes count future future_bytes kind location module tasks type"
        );
        assert_eq!(
            keys(&value["types"][0]["tasks"][0]),
            "age_s blocks bytes cancelled cell id idle_s join_handle join_waker owner references \
             spawned_at state thread waits_at"
        );
        assert_eq!(
            keys(&value["modules"][0]),
            "build_id path task_id task_id_source task_id_threads tokio why_not"
        );
        assert_eq!(value["schema"], 1);
    }

    #[test]
    fn a_reason_takes_the_tables_place() {
        let why = Err("process 7: no Tokio is in it".to_owned());
        let document = Document::of(7, None, &why, SystemTime::UNIX_EPOCH, Duration::ZERO);
        assert_eq!(document.process.pid, 7);
        assert!(document.why_not.is_some() && document.types.is_empty());
    }
}
