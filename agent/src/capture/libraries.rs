//! Which shared libraries a command will load, before it runs: so that its
//! first allocation can be traced.
//!
//! Follows the dynamic linkers of glibc (`ld.so(8)`) and musl. Where the choice
//! depends on the processor, all candidates are named: a probe on a file that
//! is not loaded does nothing. Libraries that the program opens later are not
//! known here.

mod cache;
mod places;

use std::{
    collections::{HashSet, VecDeque},
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use self::places::{Linker, Paths, Places};
use crate::reader::{self, question::Linking};

/// Files named at most.
pub const MAX_FILES: usize = 512;
/// Names that one file may need.
const MAX_NEEDS: usize = 256;
/// Scripts that run each other.
const MAX_SCRIPTS: usize = 5;
/// Bytes of the first line of a script (`BINPRM_BUF_SIZE`).
const MAX_LINE: u64 = 256;

/// Opens files for reading. The production one does it safely; a test has its
/// own root.
pub trait Files {
    /// Opens a regular file.
    fn open(&self, path: &Path) -> io::Result<File>;
}

/// What a command will map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// Executables, dynamic linkers and libraries, each file once, the program
    /// first.
    pub files: Vec<PathBuf>,
    /// Libraries that were not found.
    pub missing: Vec<String>,
    /// There were more than [`MAX_FILES`].
    pub truncated: bool,
}

/// Why a command cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is not in `PATH`.
    #[error("{0}: command not found in PATH")]
    NotFound(String),
    /// It cannot be opened.
    #[error("{0}: {1}")]
    Unreadable(PathBuf, #[source] io::Error),
    /// It is neither a 64-bit x86 ELF file nor a script.
    #[error("{0}: neither a 64-bit x86 program nor a script")]
    Foreign(PathBuf),
    /// Scripts that name each other as interpreters.
    #[error("{0}: too many scripts run each other")]
    TooDeep(PathBuf),
}

/// Finds the files that `command`, a path or a name in `PATH`, will map when it
/// is run with this environment.
pub fn images(
    files: &dyn Files,
    command: &OsStr,
    environment: &[(OsString, OsString)],
) -> Result<Images, Problem> {
    let mut search = Search {
        files,
        environment,
        seen: HashSet::new(),
        images: Images::default(),
    };
    let program = search.command(command)?;
    search.run(&program, MAX_SCRIPTS)?;
    Ok(search.images)
}

/// A library that something needs.
struct Need {
    name: Vec<u8>,
    /// Search paths of what needs it.
    paths: Paths,
}

struct Search<'a> {
    files: &'a dyn Files,
    environment: &'a [(OsString, OsString)],
    /// Device and inode.
    seen: HashSet<(u64, u64)>,
    images: Images,
}

impl<'a> Search<'a> {
    fn variable(&self, name: &str) -> &'a [u8] {
        self.environment
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_bytes())
            .unwrap_or_default()
    }

    /// Where a command is.
    fn command(&self, command: &OsStr) -> Result<PathBuf, Problem> {
        if command.as_bytes().contains(&b'/') {
            return Ok(PathBuf::from(command));
        }
        places::split(self.variable("PATH"), b":")
            .map(|directory| directory.join(command))
            .find(|path| self.files.open(path).is_ok())
            .ok_or_else(|| Problem::NotFound(command.to_string_lossy().into_owned()))
    }

    /// Follows a program or script.
    fn run(&mut self, path: &Path, scripts_left: usize) -> Result<(), Problem> {
        let unreadable = |error| Problem::Unreadable(path.to_owned(), error);
        let file = self.files.open(path).map_err(unreadable)?;
        let mut start = Vec::new();
        (&file)
            .take(MAX_LINE)
            .read_to_end(&mut start)
            .map_err(unreadable)?;
        let Some(line) = start.strip_prefix(b"#!") else {
            return self.program(path, &file);
        };
        let left = scripts_left
            .checked_sub(1)
            .ok_or_else(|| Problem::TooDeep(path.to_owned()))?;
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line
            .split(|byte| matches!(byte, b' ' | b'\t'))
            .filter(|word| !word.is_empty())
            .map(OsStr::from_bytes);
        let interpreter = words
            .next()
            .map(Path::new)
            .ok_or_else(|| Problem::Foreign(path.to_owned()))?;
        self.run(interpreter, left)?;
        if interpreter.file_name() != Some(OsStr::new("env")) {
            return Ok(());
        }
        // `env` runs the first word that is neither an option nor a variable.
        let command = words
            .find(|word| !word.as_bytes().starts_with(b"-") && !word.as_bytes().contains(&b'='));
        command.map_or(Ok(()), |command| self.run(&self.command(command)?, left))
    }

    /// Follows an executable and all that it needs.
    fn program(&mut self, path: &Path, file: &File) -> Result<(), Problem> {
        let identity =
            identity(file).map_err(|error| Problem::Unreadable(path.to_owned(), error))?;
        let foreign = || Problem::Foreign(path.to_owned());
        if !places::is_x86_64(file) {
            return Err(foreign());
        }
        let program = reader::linking(file).map_err(|why| {
            tracing::debug!(file = %path.display(), %why, "its libraries are not known");
            foreign()
        })?;
        self.take(path, identity);
        let Some(interpreter) = program.interpreter.as_deref() else {
            return Ok(());
        };
        let interpreter = Path::new(OsStr::from_bytes(interpreter));
        match self
            .files
            .open(interpreter)
            .and_then(|file| self::identity(&file))
        {
            Ok(identity) => self.take(interpreter, identity),
            Err(_) => self.miss(interpreter.as_os_str().as_bytes()),
        }

        let linker = Linker::of(interpreter);
        let places = Places::of(
            self.files,
            linker,
            interpreter,
            self.variable("LD_LIBRARY_PATH"),
        );
        let paths = Paths::of(&program, path, linker, None);
        let mut open: VecDeque<Need> = VecDeque::new();
        let preloaded = places.preloaded(self.variable("LD_PRELOAD"));
        open.extend(preloaded.into_iter().map(|name| Need {
            name,
            paths: paths.clone(),
        }));
        open.extend(needs(&program, &paths));
        let mut names = HashSet::new();
        while let Some(need) = open.pop_front() {
            if !names.insert(need.name.clone()) || linker.is_own_name(&need.name) {
                continue;
            }
            let found = places.find(&need.name, &need.paths);
            if found.is_empty() {
                self.miss(&need.name);
            }
            for (path, file) in found {
                let Some(identity) = self::identity(&file)
                    .ok()
                    .filter(|identity| !self.seen.contains(identity))
                else {
                    continue;
                };
                let Ok(library) = reader::linking(&file) else {
                    continue;
                };
                self.take(&path, identity);
                let paths = Paths::of(&library, &path, linker, Some(&need.paths));
                open.extend(needs(&library, &paths));
            }
            if self.images.truncated {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, path: &Path, identity: (u64, u64)) {
        if self.images.files.len() >= MAX_FILES {
            self.images.truncated = true;
        } else if self.seen.insert(identity) {
            self.images.files.push(path.to_owned());
        }
    }

    fn miss(&mut self, name: &[u8]) {
        if self.images.missing.len() < MAX_FILES {
            self.images
                .missing
                .push(String::from_utf8_lossy(name).into_owned());
        }
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

fn needs(file: &Linking, paths: &Paths) -> Vec<Need> {
    let names = file.needed.iter().take(MAX_NEEDS);
    names
        .map(|name| Need {
            name: name.clone(),
            paths: paths.clone(),
        })
        .collect()
}

/// Paths of a library in the dynamic linker's cache; for the reader.
pub(crate) fn cached(cache: &[u8], name: &[u8]) -> Vec<Vec<u8>> {
    let paths = cache::paths(cache, name).into_iter();
    paths
        .map(|path| path.into_os_string().into_encoded_bytes())
        .collect()
}

#[cfg(test)]
mod tests;
