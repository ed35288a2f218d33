//! What the reader is asked, and what it answers. An answer is input like any
//! other: a reader may be in a target's hands, so everything in it is held to
//! bounds before it is used.

use std::{collections::BTreeMap, ops::Range};

use agent_ebpf::abi::stack::Row;
use serde::{Deserialize, Serialize};

use super::{
    bounded::{Label, label, list, map},
    wire::Limits,
};
use crate::{
    capture::{
        files::Segment,
        probes::{FamilyProbes, MAX_FAMILIES},
    },
    tokio_rt::{
        await_point::AwaitPoints,
        current_task::FileRecipes,
        file::{Answers, Questions, TaskFile},
        future_name::FutureName,
        source_location::SourceLocation,
        tls::{Recipe, WhyNot},
        vtable::{MAX_VTABLES, Vtable},
    },
    unwind,
};

/// Addresses that are asked for at once.
pub const MAX_ADDRESSES: usize = 512;
/// Functions at one address: inlined ones, and the one that holds them.
pub(super) const MAX_DEPTH: usize = 64;
/// Longest name and path; more than reports show.
pub(super) const MAX_TEXT: usize = 2048;
/// Segments of one file: linkers make a handful.
pub(super) const MAX_SEGMENTS: usize = 256;
/// Longest build id in hexadecimal digits; linkers make 40.
const MAX_BUILD_ID: usize = 128;
/// Libraries and directories that one file names.
const MAX_STRINGS: usize = 256;
/// Longest path that the kernel takes.
const MAX_PATH: usize = 4096;
/// Names and objects of one file.
const MAX_NAMES: usize = 1 << 14;
/// Pieces of data of one file, and its recipes.
const MAX_PIECES: usize = 4096;
/// Longest sentence.
const MAX_SENTENCE: usize = 1024;

/// Bytes of a row, as it travels.
const ROW: usize = 8;

/// What is asked about one file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Question {
    /// Its build id.
    BuildId,
    /// All that following allocations takes: [`Code`], and its unwind rows.
    Code,
    /// Its unwind rows alone.
    Rows,
    /// Functions, files and lines at linked addresses. With `debug`, from
    /// debug information too; a second file may hold it.
    Names {
        /// Tells this state of the file from every other.
        key: [u64; 5],
        /// Whether debug information is read.
        debug: bool,
        /// At most [`MAX_ADDRESSES`].
        addresses: Vec<u64>,
    },
    /// The Tokio in it, as the main executable or a library, and how it is
    /// placed.
    Tasks {
        /// Its role; `None` when the Tokio in it is known already.
        analyse: Option<bool>,
        /// Start and file offset of its mapping.
        mapping: (u64, u64),
    },
    /// Names of its futures.
    TaskNames(Questions),
    /// What the dynamic linker loads for it.
    Linking,
    /// Where the dynamic linker's cache, the file, has the library of a name.
    CachedLibrary(Vec<u8>),
}

impl Question {
    /// Tells kinds of questions apart: a file may ruin the answer to one.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::BuildId => "build id",
            Self::Code => "code",
            Self::Rows => "unwind rows",
            Self::Names { debug: true, .. } => "debug information",
            Self::Names { debug: false, .. } => "symbols",
            Self::Tasks { .. } => "tasks",
            Self::TaskNames(_) => "futures",
            Self::Linking => "libraries",
            Self::CachedLibrary(_) => "the linker's cache",
        }
    }

    /// Largest answer that is taken.
    pub(super) fn limits(&self) -> Limits {
        let rows = ROW * unwind::MAX_ROWS;
        let (body, payload) = match self {
            Self::BuildId => (4 << 10, 0),
            Self::Code => (256 << 10, rows),
            Self::Rows => (4 << 10, rows),
            Self::Names { .. } => (4 << 20, 0),
            Self::Tasks { .. } | Self::TaskNames(_) => (8 << 20, 0),
            Self::Linking => (2 << 20, 0),
            Self::CachedLibrary(_) => (64 << 10, 0),
        };
        Limits { body, payload }
    }
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Question::BuildId`]: in hexadecimal digits, if there is one.
    BuildId(Option<String>),
    /// To [`Question::Code`]; the rows are the payload.
    Code(Box<Code>),
    /// To [`Question::Rows`].
    Rows,
    /// To [`Question::Names`], in its order; those at the end may be missing
    /// and are to be asked for again.
    Names(Names),
    /// To [`Question::Tasks`].
    Tasks(Box<Tasks>),
    /// To [`Question::TaskNames`].
    TaskNames(Box<TaskNames>),
    /// To [`Question::Linking`].
    Linking(Linking),
    /// To [`Question::CachedLibrary`].
    CachedLibrary(Paths),
    /// Why the file tells nothing.
    Nothing(String),
}

/// What following allocations takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Code {
    /// In hexadecimal digits.
    pub build_id: Option<String>,
    /// The loaded parts.
    #[serde(deserialize_with = "list::<_, _, MAX_SEGMENTS>")]
    pub segments: Vec<Segment>,
    /// Allocators.
    #[serde(deserialize_with = "list::<_, _, MAX_FAMILIES>")]
    pub families: Vec<FamilyProbes>,
    /// It holds the Go runtime.
    pub is_go: bool,
    /// How to read Tokio's current task id.
    pub task_ids: Option<FileRecipes>,
    /// Symbols that could not be looked at, if any.
    #[serde(deserialize_with = "not_read")]
    pub not_read: Option<Label>,
    /// Rows without a rule that stand for code with one that cannot be
    /// followed.
    pub unsupported: u64,
    /// Why there are no rows.
    pub no_rows: Option<String>,
    /// The file with its debug information, by `.gnu_debuglink`.
    pub debug_link: Option<String>,
}

/// Names at addresses.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Names(#[serde(deserialize_with = "list::<_, _, MAX_ADDRESSES>")] pub Vec<At>);

/// What is at one address, innermost first; empty where nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct At(#[serde(deserialize_with = "list::<_, _, MAX_DEPTH>")] pub Vec<Name>);

/// A function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// Demangled.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// From 1.
    pub line: Option<u32>,
    /// Inlined into the next one.
    pub inlined: bool,
}

/// The Tokio in a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tasks {
    /// If it was looked for and there is one.
    pub file: Option<FoundTokio>,
    /// Address in the process minus address as linked.
    pub bias: Option<u64>,
}

/// As [`TaskFile`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FoundTokio {
    #[serde(deserialize_with = "list::<_, _, MAX_VTABLES>")]
    vtables: Vec<Vtable>,
    version: Option<String>,
    recipes: Result<Vec<Recipe>, WhyNot>,
    #[serde(deserialize_with = "list::<_, _, MAX_PIECES>")]
    data: Vec<Range<u64>>,
}

impl From<TaskFile> for FoundTokio {
    fn from(file: TaskFile) -> Self {
        Self {
            vtables: file.vtables,
            version: file.version,
            recipes: file.recipes,
            data: file.data,
        }
    }
}

impl From<FoundTokio> for TaskFile {
    fn from(found: FoundTokio) -> Self {
        Self {
            vtables: found.vtables,
            version: found.version,
            recipes: found.recipes,
            data: found.data,
        }
    }
}

/// As [`Answers`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskNames {
    #[serde(deserialize_with = "list::<_, _, MAX_VTABLES>")]
    names: Vec<FutureName>,
    #[serde(deserialize_with = "map::<_, _, _, MAX_NAMES>")]
    objects: BTreeMap<u64, FutureName>,
    #[serde(deserialize_with = "map::<_, _, _, MAX_NAMES>")]
    spawn_locations: BTreeMap<u64, SourceLocation>,
    #[serde(deserialize_with = "map::<_, _, _, MAX_NAMES>")]
    await_points: BTreeMap<u64, AwaitPoints>,
}

impl From<Answers> for TaskNames {
    fn from(answers: Answers) -> Self {
        Self {
            names: answers.names,
            objects: answers.objects,
            spawn_locations: answers.spawn_locations,
            await_points: answers.await_points,
        }
    }
}

impl From<TaskNames> for Answers {
    fn from(names: TaskNames) -> Self {
        Self {
            names: names.names,
            objects: names.objects,
            spawn_locations: names.spawn_locations,
            await_points: names.await_points,
        }
    }
}

/// What the dynamic linker loads for a program or library.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linking {
    /// The program interpreter.
    pub interpreter: Option<Vec<u8>>,
    /// `DT_NEEDED`.
    #[serde(deserialize_with = "list::<_, _, MAX_STRINGS>")]
    pub needed: Vec<Vec<u8>>,
    /// `DT_RPATH`.
    #[serde(deserialize_with = "list::<_, _, MAX_STRINGS>")]
    pub rpath: Vec<Vec<u8>>,
    /// `DT_RUNPATH`.
    #[serde(deserialize_with = "list::<_, _, MAX_STRINGS>")]
    pub runpath: Vec<Vec<u8>>,
}

/// Absolute paths.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Paths(#[serde(deserialize_with = "list::<_, _, MAX_STRINGS>")] pub Vec<Vec<u8>>);

/// Why symbols were not read.
pub const NOT_READ: [Label; 2] = [
    "its symbol table is too large or damaged",
    "its .gnu_debugdata symbols are damaged or too large",
];

fn not_read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Label>, D::Error> {
    struct Known(Label);
    impl<'de> Deserialize<'de> for Known {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            label(deserializer, &NOT_READ).map(Self)
        }
    }
    Ok(Option::<Known>::deserialize(deserializer)?.map(|known| known.0))
}

fn is_build_id(text: &str) -> bool {
    (1..=MAX_BUILD_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_short(text: Option<&String>, most: usize) -> bool {
    text.is_none_or(|text| text.len() <= most)
}

impl Answer {
    /// Whether it answers the question and keeps to the bounds. `size` are the
    /// file's bytes.
    pub fn fits(&self, question: &Question, size: u64) -> bool {
        match (question, self) {
            (_, Self::Nothing(why)) => why.len() <= MAX_SENTENCE,
            (Question::BuildId, Self::BuildId(id)) => id.as_deref().is_none_or(is_build_id),
            (Question::Code, Self::Code(code)) => code.is_sound(size),
            (Question::Rows, Self::Rows) => true,
            (Question::Names { addresses, .. }, Self::Names(names)) => {
                let texts = |name: &Name| {
                    is_short(name.function.as_ref(), MAX_TEXT)
                        && is_short(name.file.as_ref(), MAX_TEXT)
                };
                // One that answers nothing would be asked without end.
                (1..=addresses.len()).contains(&names.0.len())
                    && names.0.iter().flat_map(|at| &at.0).all(texts)
            }
            (Question::Tasks { .. }, Self::Tasks(tasks)) => {
                tasks.file.as_ref().is_none_or(FoundTokio::is_sound)
            }
            (Question::TaskNames(questions), Self::TaskNames(names)) => names.is_sound(questions),
            (Question::Linking, Self::Linking(linking)) => {
                let strings = [&linking.needed, &linking.rpath, &linking.runpath];
                let all = strings.into_iter().flatten().chain(&linking.interpreter);
                all.into_iter().all(|text| text.len() <= MAX_PATH)
            }
            (Question::CachedLibrary(_), Self::CachedLibrary(paths)) => paths
                .0
                .iter()
                .all(|path| path.starts_with(b"/") && path.len() <= MAX_PATH),
            _ => false,
        }
    }
}

impl Code {
    fn is_sound(&self, size: u64) -> bool {
        let inside = |segment: &Segment| {
            let end = segment.offset.checked_add(segment.size);
            end.is_some_and(|end| i64::try_from(end).is_ok())
        };
        let is_code = |offset: u64| {
            offset < size
                && self.segments.iter().any(|segment| {
                    segment.executable
                        && (segment.offset..segment.offset + segment.size).contains(&offset)
                })
        };
        self.build_id.as_deref().is_none_or(is_build_id)
            && self.segments.iter().all(inside)
            && self.families.iter().all(|family| family.is_sound(is_code))
            && self.task_ids.as_ref().is_none_or(FileRecipes::is_sound)
            && is_short(self.no_rows.as_ref(), MAX_SENTENCE)
            // A name, not a path that leads elsewhere.
            && self.debug_link.as_ref().is_none_or(|name| {
                (1..=255).contains(&name.len()) && !name.contains(['/', '\0']) && name != ".."
            })
    }
}

impl FoundTokio {
    fn is_sound(&self) -> bool {
        self.vtables.iter().all(Vtable::is_sound)
            && is_short(self.version.as_ref(), 32)
            && self.data.iter().all(|range| range.start <= range.end)
            && match &self.recipes {
                Ok(recipes) => recipes.len() <= MAX_PIECES && recipes.iter().all(Recipe::is_sound),
                Err(why) => why.is_sound(),
            }
    }
}

impl TaskNames {
    fn is_sound(&self, questions: &Questions) -> bool {
        self.names.len() == questions.vtables.len()
            && self
                .names
                .iter()
                .chain(self.objects.values())
                .all(FutureName::is_bounded)
            && self
                .spawn_locations
                .values()
                .all(SourceLocation::is_bounded)
            && self.await_points.values().all(AwaitPoints::is_bounded)
    }
}

/// Rows as they travel.
pub(super) fn packed(rows: &[Row]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows.len() * ROW);
    for row in rows {
        bytes.extend(row.pc.to_le_bytes());
        bytes.extend(row.cfa_offset.to_le_bytes());
        bytes.extend([row.rbp_offset as u8, row.kind]);
    }
    bytes
}

/// The rows that have travelled; `None` when they are no sound table.
pub(super) fn unpacked(bytes: &[u8]) -> Option<Vec<Row>> {
    let (rows, rest) = bytes.as_chunks::<ROW>();
    let row = |bytes: &[u8; ROW]| {
        let word = u64::from_le_bytes(*bytes);
        Row {
            pc: word as u32,
            cfa_offset: (word >> 32) as u16,
            rbp_offset: (word >> 48) as i8,
            kind: (word >> 56) as u8,
        }
    };
    let rows: Vec<Row> = rows.iter().map(row).collect();
    let rising = rows.is_sorted_by(|row, next| row.pc < next.pc);
    let known = rows.iter().all(|row| row.kind <= Row::SIGNAL);
    (rest.is_empty() && rising && known).then_some(rows)
}
