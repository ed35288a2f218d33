//! What a process has mapped of code: its executable mappings, and how often
//! it maps each part of its files. Read line by line, so that a list of any
//! length takes bounded memory.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    time::{Duration, Instant},
};

use thiserror::Error;

use super::Mapping;
use crate::host::module::ModuleId;

/// Executable mappings that are kept; a browser or a just-in-time compiler has
/// some hundreds. With paths of the usual length they take 4 MB.
const MAX_CODE: usize = 16_384;
/// Of a part of a file that is mapped more often, further executable mappings
/// are only counted: no process is probed that maps its allocator so often.
const MAX_SAME: u64 = 256;
/// Parts of files that are told apart, 48 bytes each. A database that maps its
/// segments has some ten thousands.
const MAX_VIEWS: usize = 65_536;
/// A list that takes longer is given up. A million mappings (many systems'
/// `vm.max_map_count`), 49 MB, take 0.4 s, an ordinary process 30 µs. The
/// kernel prints a page of the list at a time, in 34 µs, and holds the
/// process's lock no longer than that.
const PATIENCE: Duration = Duration::from_secs(3);
/// A longer line is none of the kernel's: a path has 4096 bytes at most, of
/// which each may be printed as four.
const MAX_LINE: u64 = 32 << 10;
/// The clock is looked at once in so many lines.
const CLOCK_LINES: u64 = 4096;

/// A list of mappings that is not read to its end.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TooMany {
    /// It takes too long.
    #[error("it has more than {0} mappings, which take longer to read than {PATIENCE:?}")]
    Mappings(u64),
    /// There is no room for so many.
    #[error("it has more than {MAX_CODE} executable mappings")]
    Executable,
    /// There is no room for so many.
    #[error("it maps more than {MAX_VIEWS} different parts of files")]
    Parts,
}

impl TooMany {
    /// What [`of`] says by an error of its own.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// A part of a file, and how often it is mapped in such a way that the kernel
/// puts breakpoints into the mapping: private and not writable, executable or
/// not (`valid_vma` in kernel/events/uprobes.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The file.
    pub file: ModuleId,
    /// Offset of the first byte.
    pub offset: u64,
    /// Offset of the first byte behind.
    pub end: u64,
    /// How often.
    pub count: u64,
}

/// The code that a process has mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code {
    /// Its executable mappings, sorted by address.
    pub executable: Vec<Mapping>,
    /// The views of the files of which it has executable mappings, sorted.
    pub views: Vec<View>,
    /// Executable mappings that are not kept, as they show what others show.
    pub left_out: usize,
}

/// Reads what a process has mapped of code; nothing of one that has ended.
///
/// # Errors
/// What `/proc` answers, or [`TooMany`] inside an [`io::Error`].
pub fn of(pid: u32) -> io::Result<Code> {
    read(File::open(format!("/proc/{pid}/maps"))?, PATIENCE)
}

fn read(list: impl io::Read, patience: Duration) -> io::Result<Code> {
    let began = Instant::now();
    let mut list = BufReader::with_capacity(64 << 10, list);
    let (mut executable, mut left_out) = (Vec::new(), 0);
    let mut views: HashMap<(ModuleId, u64, u64), u64> = HashMap::new();
    let mut line = Vec::new();
    let mut lines = 0;
    loop {
        line.clear();
        if (&mut list).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        lines += 1;
        if lines % CLOCK_LINES == 0 && began.elapsed() > patience {
            return Err(too_many(TooMany::Mappings(lines)));
        }
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        // Almost all lines of a long list are of other memory.
        if !is_of_interest(line) {
            continue;
        }
        let Some(mapping) = super::parse(line) else {
            continue;
        };
        if mapping.is_file() && !mapping.writable && !mapping.shared {
            let end = mapping.offset.saturating_add(mapping.end - mapping.start);
            let key = (ModuleId::of(&mapping), mapping.offset, end);
            if views.len() >= MAX_VIEWS && !views.contains_key(&key) {
                return Err(too_many(TooMany::Parts));
            }
            let same = views.entry(key).or_default();
            *same += 1;
            if mapping.executable && *same > MAX_SAME {
                left_out += 1;
                continue;
            }
        }
        if mapping.executable {
            if executable.len() >= MAX_CODE {
                return Err(too_many(TooMany::Executable));
            }
            executable.push(mapping);
        }
    }
    Ok(Code {
        views: of_code(views, &executable),
        executable,
        left_out,
    })
}

/// The views of files that have executable mappings: no other is probed.
fn of_code(views: HashMap<(ModuleId, u64, u64), u64>, executable: &[Mapping]) -> Vec<View> {
    let files: std::collections::HashSet<ModuleId> = executable.iter().map(ModuleId::of).collect();
    let mut kept: Vec<View> = views
        .into_iter()
        .filter(|((file, ..), _)| files.contains(file))
        .map(|((file, offset, end), count)| View {
            file,
            offset,
            end,
            count,
        })
        .collect();
    kept.sort_unstable_by_key(|view| (view.file, view.offset, view.end));
    kept
}

/// Executable, or of a file and not writable, by the letters of its
/// permissions: `START-END rwxp …`.
fn is_of_interest(line: &[u8]) -> bool {
    let Some(space) = line.iter().take(40).position(|byte| *byte == b' ') else {
        return false;
    };
    match line.get(space + 1..space + 5) {
        Some([_, _, b'x', _]) => true,
        Some([_, b'-', _, b'p']) => line.contains(&b'/'),
        _ => false,
    }
}

fn too_many(why: TooMany) -> io::Error {
    io::Error::other(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_text(text: &str) -> io::Result<Code> {
        read(text.as_bytes(), PATIENCE)
    }

    fn why(outcome: io::Result<Code>) -> TooMany {
        TooMany::of(&outcome.unwrap_err()).unwrap()
    }

    #[test]
    fn keeps_code_and_counts_the_views_of_its_files() {
        let code = of_text(
            "1000-2000 r--p 00000000 fe:01 7 /lib/a\n\
             2000-4000 r-xp 00001000 fe:01 7 /lib/a\n\
             4000-5000 rw-p 00003000 fe:01 7 /lib/a\n\
             5000-6000 r--s 00001000 fe:01 7 /lib/a\n\
             6000-7000 r--p 00000000 fe:01 9 /data/b\n\
             7000-8000 rw-p 00000000 00:00 0 \n\
             8000-9000 r--p 00001000 fe:01 7 /lib/a\n\
             9000-a000 r--p 00001000 fe:01 7 /lib/a\n\
             a000-b000 r-xp 00000000 00:00 0 [vdso]\n",
        )
        .unwrap();
        let starts: Vec<u64> = code.executable.iter().map(|m| m.start).collect();
        assert_eq!(starts, [0x2000, 0xa000]);
        let views: Vec<(u64, u64, u64)> = code
            .views
            .iter()
            .map(|view| (view.offset, view.end, view.count))
            .collect();
        assert_eq!(
            views,
            [(0, 0x1000, 1), (0x1000, 0x2000, 2), (0x1000, 0x3000, 1)]
        );
        assert!(code.views.iter().all(|view| view.file.inode == 7));
    }

    #[test]
    fn finds_its_own_code() {
        let code = of(std::process::id()).unwrap();
        let all = super::super::of(std::process::id()).unwrap();
        let executable = all.iter().filter(|mapping| mapping.executable);
        assert_eq!(code.executable.len(), executable.count());
        assert!(!code.views.is_empty());
    }

    /// A million mappings, and the one that matters at their end.
    #[test]
    fn a_long_list_takes_no_memory() {
        let others = (1..1_000_000u64).map(|number| {
            let permissions = if number % 2 == 0 { "rw-p" } else { "r--p" };
            let start = number << 12;
            format!(
                "{start:x}-{:x} {permissions} 00000000 00:00 0 \n",
                start + 0x1000
            )
        });
        let text: String = others
            .chain(["f000000000000-f000000001000 r-xp 00000000 fe:01 7 /lib/a\n".to_owned()])
            .collect();
        assert!(text.len() > 2 * super::super::MAX_BYTES as usize);
        let code = of_text(&text).unwrap();
        assert_eq!((code.executable.len(), code.views.len()), (1, 1));
        let late = read(text.as_bytes(), Duration::ZERO);
        assert_eq!(why(late), TooMany::Mappings(CLOCK_LINES));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let same = "1000-2000 r-xp 00000000 fe:01 7 /lib/a\n".repeat(20_000);
        let code = of_text(&same).unwrap();
        assert_eq!(code.executable.len(), MAX_SAME as usize);
        assert_eq!(code.executable.len() + code.left_out, 20_000);
        assert_eq!(code.views[0].count, 20_000);
        let code = "1000-2000 r-xp 00000000 00:00 0 \n".repeat(MAX_CODE + 1);
        assert_eq!(why(of_text(&code)), TooMany::Executable);
        let part = |number: usize| format!("1000-2000 r--p {:08x} fe:01 7 /data\n", number << 12);
        let parts = (0..=MAX_VIEWS).map(part).collect::<Vec<_>>().concat();
        assert_eq!(why(of_text(&parts)), TooMany::Parts);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let _ = read(&*text, PATIENCE);
        }
    }
}
