//! `quarantine`: the builds that are not probed because one died.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::EXIT_NOTHING;
use crate::{
    finding::Text,
    host::quarantine::{Entry, Quarantine, Which},
    output::json,
};

/// Version of the shape of the JSON documents here.
const SCHEMA: u32 = 1;
/// Entries that an error message names.
const MAX_NAMED: usize = 8;

/// Arguments of `quarantine`.
#[derive(Debug, Args)]
pub(super) struct QuarantineArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the files, with user, signal and time (what `quarantine` alone does)
    List,
    /// Allow files to be probed again
    Clear(ClearArgs),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct ClearArgs {
    /// Build id or path, as listed
    #[arg(value_name = "BUILD_ID|EXE")]
    name: Option<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    file: Text,
    entries: Vec<&'a Entry>,
}

/// Runs `quarantine`; the exit code.
///
/// # Errors
/// When the list cannot be read or written, or does not hold what is to be
/// cleared.
pub(super) fn run(args: &QuarantineArgs) -> Result<u8> {
    let path = Quarantine::place();
    check_access(&path)?;
    let mut list = Quarantine::open(&path);
    match &args.action {
        None | Some(Action::List) => {
            let entries: Vec<&Entry> = list.entries().collect();
            if args.json {
                return print_json(&path, entries);
            }
            let mut text: String = entries.iter().map(|entry| described(entry)).collect();
            if entries.is_empty() {
                "Nothing is in quarantine.\n".clone_into(&mut text);
            }
            print(text.as_bytes())
        }
        Some(Action::Clear(clear)) => {
            let known: Vec<Entry> = list.entries().cloned().collect();
            let which = clear.name.as_deref().map_or(Which::All, Which::Named);
            let cleared = list.clear(which)?;
            if let (Some(name), true) = (&clear.name, cleared.is_empty()) {
                bail!(unknown(name, &known));
            }
            if args.json {
                return print_json(&path, cleared.iter().collect());
            }
            let allowed = |entry: &Entry| {
                format!(
                    "{} may be probed again for user {}.\n",
                    entry.exe, entry.uid
                )
            };
            let mut text: String = cleared.iter().map(allowed).collect();
            if cleared.is_empty() {
                "Nothing is in quarantine.\n".clone_into(&mut text);
            }
            print(text.as_bytes())
        }
    }
}

/// The list is root's.
fn check_access(path: &Path) -> Result<()> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(error).with_context(|| {
                format!(
                    "cannot read {}: run it as root, for example by sudo",
                    path.display()
                )
            })
        }
        _ => Ok(()),
    }
}

fn described(entry: &Entry) -> String {
    let build = entry.build.build_id.as_deref().map_or_else(
        || "without a build id".to_owned(),
        |id| format!("build {id}"),
    );
    format!(
        "{} ({build}, inode {}), user {}\n  died of signal {} at {:.0}, not probed until {:.0}\n  {}\n",
        entry.exe,
        entry.build.inode,
        entry.uid,
        entry.signal,
        entry.when,
        entry.until,
        entry.mend()
    )
}

fn unknown(name: &str, known: &[Entry]) -> String {
    let name = Text::name(name);
    if known.is_empty() {
        return format!("nothing called {name} is in quarantine: it is empty");
    }
    let names: Vec<String> = known
        .iter()
        .take(MAX_NAMED)
        .map(|entry| match &entry.build.build_id {
            Some(id) => format!("{id} ({})", entry.exe),
            None => entry.exe.clone(),
        })
        .collect();
    let more = match known.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "nothing called {name} is in quarantine; there are {}{more}",
        names.join(", ")
    )
}

fn print_json(path: &Path, entries: Vec<&Entry>) -> Result<u8> {
    let mut out = Vec::new();
    json::write(
        &Document {
            schema: SCHEMA,
            file: Text::name(path.as_os_str().as_encoded_bytes()),
            entries,
        },
        &mut out,
    )?;
    print(&out)
}

fn print(bytes: &[u8]) -> Result<u8> {
    match io::stdout().write_all(bytes) {
        // The reader had enough, as `head` has.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(EXIT_NOTHING),
        written => written
            .map(|()| EXIT_NOTHING)
            .context("cannot write to standard output"),
    }
}
