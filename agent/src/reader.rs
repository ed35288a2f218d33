//! Reads files that targets choose: ELF, unwind tables, symbols, debug
//! information and what Tokio leaves in a program.
//!
//! None of that is parsed in this process, which holds capabilities and
//! probes. It is done by a child that runs the same program
//! ([`SUBCOMMAND`]), is started when it is first needed and kept, and has
//! locked itself in before it reads anything (`sandbox`): it can map what it
//! is handed, compute, and answer. Its death, hang or growth costs the file
//! that was asked about. What it answers is checked like any input
//! ([`question`]).

pub mod bounded;
mod client;
mod code;
mod names;
mod process;
pub mod question;
mod sandbox;
pub mod serve;
mod wire;

use std::{
    collections::BTreeMap,
    fs::File,
    path::PathBuf,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use agent_ebpf::abi::stack::Row;

pub use self::client::{Reader, Unread};
use self::question::{Answer, At, Code, Linking, Question, Tasks};
use crate::{
    host::module::Stamp,
    tokio_rt::file::{Answers, Questions},
};

/// The hidden subcommand that runs [`serve::run`].
pub const SUBCOMMAND: &str = "__reader";

/// Most heap of the reader.
const MAX_HEAP: u64 = 128 << 20;

/// What a reader says when it has locked itself in. It is the same file that
/// runs, so another version is one that somebody else has started.
const HELLO: &str = concat!("lingerscope ", env!("CARGO_PKG_VERSION"), " reads");

/// The one reader of this process.
static READER: LazyLock<Mutex<Reader>> =
    LazyLock::new(|| Mutex::new(Reader::new(PathBuf::from("/proc/self/exe"), ARGUMENTS)));

#[cfg(not(test))]
const ARGUMENTS: &[&str] = &[SUBCOMMAND];
/// A program of unit tests takes no subcommand: the reader is one of its
/// tests.
#[cfg(test)]
const ARGUMENTS: &[&str] = &[
    "--exact",
    "reader::tests::the_reader_of_other_tests",
    "--ignored",
    "--nocapture",
    "--test-threads=1",
];

/// Whether this process was started to be a reader.
pub fn is_asked_for() -> bool {
    std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == SUBCOMMAND)
}

fn reader() -> MutexGuard<'static, Reader> {
    // A panic elsewhere leaves it as usable as a failed question does.
    READER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the reader, so that the first question need not wait for it.
///
/// # Errors
/// Why it cannot be started.
pub fn start() -> Result<(), Unread> {
    reader().start()
}

/// Ends the reader, which gives its memory back; the next question starts
/// another one.
pub fn end() {
    reader().end();
}

/// Process id of the reader, if one runs.
pub fn id() -> Option<u32> {
    reader().id()
}

/// Bytes of the reader's memory.
pub fn memory() -> u64 {
    reader().memory()
}

/// What was not read since this program began, by cause.
pub fn lost() -> BTreeMap<&'static str, u64> {
    reader().lost().clone()
}

fn ask(question: &Question, files: &[&File]) -> Result<(Answer, Vec<u8>), Unread> {
    reader().ask(question, files)
}

/// An answer of another kind does not get here.
fn another() -> Unread {
    Unread::Failed("the reader's answer makes no sense".to_owned())
}

/// A file's build id in hexadecimal digits, if it has one.
///
/// # Errors
/// Why it was not read.
pub fn build_id(file: &File) -> Result<Option<String>, Unread> {
    match ask(&Question::BuildId, &[file])?.0 {
        Answer::BuildId(id) => Ok(id),
        _ => Err(another()),
    }
}

/// All that following allocations takes, and the unwind rows.
///
/// # Errors
/// Why it was not read.
pub fn code(file: &File) -> Result<(Box<Code>, Vec<Row>), Unread> {
    match ask(&Question::Code, &[file])? {
        (Answer::Code(code), rows) => Ok((code, question::unpacked(&rows).ok_or_else(another)?)),
        _ => Err(another()),
    }
}

/// The unwind rows of a file.
///
/// # Errors
/// Why they were not read.
pub fn rows(file: &File) -> Result<Vec<Row>, Unread> {
    match ask(&Question::Rows, &[file])? {
        (Answer::Rows, rows) => question::unpacked(&rows).ok_or_else(another),
        _ => Err(another()),
    }
}

/// Functions at linked addresses, as many as were answered, at least one; a
/// second file may hold the debug information. Without `debug`, from symbols
/// alone.
///
/// # Errors
/// Why they were not read.
pub fn names(
    file: &File,
    separate: Option<&File>,
    debug: bool,
    addresses: &[u64],
) -> Result<Vec<At>, Unread> {
    let key = Stamp::of(file).map(|stamp| stamp.words());
    let addresses = addresses
        .get(..question::MAX_ADDRESSES)
        .unwrap_or(addresses);
    let question = Question::Names {
        key: key.unwrap_or_default(),
        debug,
        addresses: addresses.to_vec(),
    };
    let files: Vec<&File> = std::iter::once(file).chain(separate).collect();
    match ask(&question, &files)?.0 {
        Answer::Names(names) => Ok(names.0),
        _ => Err(another()),
    }
}

/// The Tokio in a file that is mapped at `mapping` (start, file offset).
///
/// # Errors
/// Why it was not read.
pub fn tasks(file: &File, analyse: Option<bool>, mapping: (u64, u64)) -> Result<Tasks, Unread> {
    match ask(&Question::Tasks { analyse, mapping }, &[file])?.0 {
        Answer::Tasks(tasks) => Ok(*tasks),
        _ => Err(another()),
    }
}

/// Names of a file's futures.
///
/// # Errors
/// Why they were not read.
pub fn task_names(file: &File, questions: &Questions) -> Result<Answers, Unread> {
    match ask(&Question::TaskNames(questions.clone()), &[file])?.0 {
        Answer::TaskNames(names) => Ok((*names).into()),
        _ => Err(another()),
    }
}

/// What the dynamic linker loads for a file.
///
/// # Errors
/// Why it was not read.
pub fn linking(file: &File) -> Result<Linking, Unread> {
    match ask(&Question::Linking, &[file])?.0 {
        Answer::Linking(linking) => Ok(linking),
        _ => Err(another()),
    }
}

/// Paths of a library in the dynamic linker's cache.
///
/// # Errors
/// Why it was not read.
pub fn cached_library(cache: &File, name: &[u8]) -> Result<Vec<Vec<u8>>, Unread> {
    match ask(&Question::CachedLibrary(name.to_vec()), &[cache])?.0 {
        Answer::CachedLibrary(paths) => Ok(paths.0),
        _ => Err(another()),
    }
}

#[cfg(test)]
mod tests;
