//! Layout rules that no compiler checks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{rust_code::code_only, shell};

/// What may lie at the top, besides dot-files and build output.
const TOP: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "agent",
    "agent-ebpf",
    "config",
    "systemd",
    "target",
    "xtask",
];

/// Names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &[
    "mod", "utils", "util", "common", "helpers", "helper", "core", "misc",
];

/// Lines from which a source file says why.
const LONG: usize = 600;
/// Lines that none may have.
const TOO_LONG: usize = 1000;
/// Starts the reason.
const REASON: &str = "// long because";

/// Rooms of agent/src and the words that their code must not contain.
const LAYERS: &[(&[&str], &[&str])] = &[
    (
        &["ledger", "analysis", "explain", "finding", "alert"],
        &[
            "aya::",
            "tokio::",
            "std::fs",
            "std::io",
            "std::net",
            "std::process",
            "std::thread",
            "Instant",
            "SystemTime",
        ],
    ),
    (&["host", "capture"], &["crate::analysis"]),
];

/// Rooms that may parse bytes which a target chooses: the reader process, and
/// what it is made of.
const READERS: &[&str] = &["reader", "elf", "unwind"];
/// How that begins; in other rooms only tests may.
const PARSING: &[&str] = &[
    "Elf::parse",
    "Loaded::parse",
    "ElfFile64",
    "ReadCache",
    "unwind::compile",
    "allocators::discover",
    "probes::families",
    "file::analyse",
    "file::name",
];

/// Prints every breach, and fails if there is one.
pub(crate) fn run() -> Result<()> {
    let mut breaches = top_level()?;
    for directory in ["agent", "agent-ebpf", "xtask"] {
        let mut files = Vec::new();
        collect(&shell::root().join(directory), &mut files)?;
        for file in files {
            let path = file.strip_prefix(shell::root()).unwrap_or(&file);
            // Only text has lines; what is no text is not ours to judge.
            if let Ok(text) = fs::read_to_string(&file) {
                breaches.extend(
                    examine(path, &text)
                        .into_iter()
                        .map(|breach| format!("{}: {breach}", path.display())),
                );
            }
        }
    }
    if breaches.is_empty() {
        return Ok(());
    }
    bail!(
        "layout rules (CONTRIBUTING.md) are broken:\n  {}",
        breaches.join("\n  ")
    );
}

fn top_level() -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    for entry in fs::read_dir(shell::root()).context("cannot list the top of the repository")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !name.starts_with("LICENSE-") && !TOP.contains(&name.as_str())
        {
            breaches.push(format!("{name}: has no place at the top of the repository"));
        }
    }
    Ok(breaches)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?
    {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.') || name == "target");
        if path.is_dir() && !path.is_symlink() && !hidden {
            collect(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// The rules that one file breaks.
fn examine(path: &Path, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    if !path.extension().is_some_and(|extension| {
        ["rs", "c", "cc", "cpp", "h", "sh", "py"]
            .iter()
            .any(|e| extension == *e)
    }) {
        return breaches;
    }
    for part in path
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
    {
        if EMPTY_NAMES.contains(&part.as_str()) {
            breaches.push(format!(
                "the name `{part}` says nothing; name what is inside"
            ));
        }
    }
    let lines = text.lines().count();
    if lines > TOO_LONG {
        breaches.push(format!("{lines} lines, more than {TOO_LONG}: split it"));
    } else if lines > LONG
        && !text
            .lines()
            .any(|line| line.trim_start().starts_with(REASON))
    {
        breaches.push(format!(
            "{lines} lines, more than {LONG}: split it, or write `{REASON} …`"
        ));
    }
    breaches.extend(layer(path, text));
    breaches
}

/// Breaches of the order of the rooms.
fn layer(path: &Path, text: &str) -> Vec<String> {
    let Some(inside) = path
        .strip_prefix("agent/src")
        .ok()
        .and_then(|path| path.iter().next())
    else {
        return Vec::new();
    };
    let room = Path::new(inside).with_extension("");
    let code = ungrouped(&code_only(text));
    let mut breaches = Vec::new();
    let is_reader = READERS.iter().any(|name| room == Path::new(name));
    if !is_reader && !path.ends_with("tests.rs") {
        for (number, line) in code.lines().enumerate() {
            for word in PARSING.iter().filter(|word| has_word(line, word)) {
                breaches.push(format!(
                    "line {}: `{word}` belongs into the reader process: ask it",
                    number + 1
                ));
            }
        }
    }
    for (_, words) in LAYERS
        .iter()
        .filter(|(rooms, _)| rooms.iter().any(|name| room == Path::new(name)))
    {
        for (number, line) in code.lines().enumerate() {
            for word in words.iter().filter(|word| has_word(line, word)) {
                breaches.push(format!(
                    "line {}: `{word}` does not belong into {}",
                    number + 1,
                    room.display()
                ));
            }
        }
    }
    breaches
}

/// Writes the first level of `std::{…}` out, on the same lines.
fn ungrouped(code: &str) -> String {
    const GROUP: &str = "std::{";
    let mut pieces = code.split(GROUP);
    let mut flat = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let mut depth = 1;
        let mut in_group = true;
        let mut new_item = true;
        flat.push('{');
        for c in piece.chars() {
            if in_group && depth == 1 && new_item && c.is_alphabetic() {
                flat.push_str("std::");
            }
            match c {
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    // What follows the group is none of it.
                    in_group &= depth > 0;
                }
                _ => {}
            }
            new_item = c == ',' || (new_item && c.is_whitespace());
            flat.push(c);
        }
    }
    flat
}

/// Whether `word` stands in the line, not as a part of longer names.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let open_end = word.ends_with(part_of_name);
    line.match_indices(word).any(|(at, _)| {
        let goes_on = open_end && line[at + word.len()..].starts_with(part_of_name);
        !goes_on && !line[..at].ends_with(part_of_name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(path: &str, text: &str) -> usize {
        examine(Path::new(path), text).len()
    }

    #[test]
    fn long_files_need_a_reason() {
        let long = "x\n".repeat(LONG + 1);
        assert_eq!(breaches("agent/src/a.rs", &"x\n".repeat(LONG)), 0);
        assert_eq!(breaches("agent/src/a.rs", &long), 1);
        assert_eq!(
            breaches(
                "agent/src/a.rs",
                &format!("// long because it is a table\n{long}")
            ),
            0
        );
        assert_eq!(
            breaches(
                "agent/src/a.rs",
                &format!("// long because\n{}", "x\n".repeat(TOO_LONG))
            ),
            1
        );
        assert_eq!(
            breaches("agent/tests/data/history.json", &"x\n".repeat(TOO_LONG + 1)),
            0
        );
    }

    #[test]
    fn empty_names_are_refused() {
        assert_eq!(breaches("agent/src/host/mod.rs", ""), 1);
        assert_eq!(breaches("agent/src/utils/elf.rs", ""), 1);
        assert_eq!(breaches("agent/src/host/score.rs", ""), 0);
    }

    #[test]
    fn files_of_targets_are_parsed_by_the_reader() {
        let code = "fn f() { let elf = Elf::parse(data); }";
        assert_eq!(breaches("agent/src/capture/files.rs", code), 1);
        assert_eq!(breaches("agent/src/reader/code.rs", code), 0);
        assert_eq!(breaches("agent/src/elf/image.rs", code), 0);
        assert_eq!(breaches("agent/src/capture/allocators/tests.rs", code), 0);
        assert_eq!(
            breaches("agent/src/symbols.rs", "let table = unwind::compile(&elf);"),
            1
        );
    }

    #[test]
    fn pure_rooms_know_no_world() {
        assert_eq!(breaches("agent/src/finding.rs", "tokio: Option<Tokio>"), 0);
        assert_eq!(breaches("agent/src/ledger.rs", "use std::fs;"), 1);
        assert_eq!(
            breaches(
                "agent/src/analysis/growth.rs",
                "fn f(at: std::time::Instant) {}"
            ),
            1
        );
        assert_eq!(
            breaches("agent/src/finding.rs", "use aya::Ebpf;\nuse tokio::time;"),
            2
        );
        assert_eq!(
            breaches(
                "agent/src/finding.rs",
                "// aya\nlet s = \"tokio::spawn\"; crate::tokio_rt::x();"
            ),
            0
        );
        assert_eq!(
            breaches(
                "agent/src/finding.rs",
                "use std::{fmt, mem};\nfn f(a: u8, process: u8) { g(a, process); }"
            ),
            0
        );
        assert_eq!(
            breaches("agent/src/finding.rs", "use std::{fmt, process};"),
            1
        );
        assert_eq!(
            breaches(
                "agent/src/capture/maps.rs",
                "use aya::maps;\nuse crate::analysis::Verdict;"
            ),
            1
        );
        assert_eq!(
            breaches(
                "agent/src/inspect.rs",
                "use crate::analysis; use tokio::time;"
            ),
            0
        );
    }
}
