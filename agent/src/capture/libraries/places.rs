//! Where the dynamic linkers look for a library.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _, Seek as _},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    rc::Rc,
};

use super::Files;
use crate::reader::{self, question::Linking};

/// Directories of one search path.
const MAX_DIRECTORIES: usize = 128;
/// Files that load each other with `DT_RPATH`.
const MAX_CHAIN: usize = 32;
/// Largest configuration file.
const MAX_CONFIGURATION: u64 = 64 << 10;

/// Which dynamic linker does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linker {
    Glibc,
    Musl,
}

impl Linker {
    /// Tells it by the program interpreter's name.
    pub(super) fn of(interpreter: &Path) -> Self {
        let name = interpreter.file_name().unwrap_or_default();
        if name.as_bytes().starts_with(b"ld-musl") {
            Self::Musl
        } else {
            Self::Glibc
        }
    }

    /// Whether the name means the linker itself: musl is its own C library,
    /// whatever part of it is asked for.
    pub(super) fn is_own_name(self, name: &[u8]) -> bool {
        const PARTS: [&[u8]; 7] = [
            b"libc",
            b"libpthread",
            b"librt",
            b"libm",
            b"libdl",
            b"libutil",
            b"libxnet",
        ];
        let part = name.split(|byte| *byte == b'.').next().unwrap_or_default();
        self == Self::Musl && PARTS.contains(&part) && part.len() < name.len()
    }
}

/// The search paths that a file brings along.
#[derive(Clone, Debug, Default)]
pub(super) struct Paths {
    /// Before `LD_LIBRARY_PATH`: `DT_RPATH` of the file and of those that
    /// loaded it. Empty for a file with `DT_RUNPATH`.
    before: Vec<Rc<[PathBuf]>>,
    /// After it: `DT_RUNPATH`.
    after: Rc<[PathBuf]>,
    /// What the libraries of this file inherit.
    inherited: Vec<Rc<[PathBuf]>>,
}

impl Paths {
    /// Those of a file, which was found at `path` and loaded by a file with
    /// `loader`'s.
    pub(super) fn of(file: &Linking, path: &Path, linker: Linker, loader: Option<&Self>) -> Self {
        let directories = |texts: &[Vec<u8>]| -> Rc<[PathBuf]> {
            let origin = path.parent().unwrap_or(Path::new("."));
            texts
                .iter()
                .flat_map(|text| {
                    split(text, b":").flat_map(|directory| expanded(&directory, origin))
                })
                .take(MAX_DIRECTORIES)
                .collect()
        };
        let (old, new) = (directories(&file.rpath), directories(&file.runpath));
        let from_loader = loader
            .map(|loader| loader.inherited.clone())
            .unwrap_or_default();
        let chain = |own: Option<&Rc<[PathBuf]>>| -> Vec<_> {
            own.into_iter()
                .cloned()
                .chain(from_loader)
                .take(MAX_CHAIN)
                .collect()
        };
        let has_new = !new.is_empty();
        if linker == Linker::Musl {
            // musl makes no difference between the two, and looks in them last.
            let inherited = chain(Some(if has_new { &new } else { &old }));
            let after = inherited
                .iter()
                .flat_map(|paths| paths.iter().cloned())
                .collect();
            return Self {
                before: Vec::new(),
                after,
                inherited,
            };
        }
        let inherited = chain((!has_new).then_some(&old));
        Self {
            before: if has_new {
                Vec::new()
            } else {
                inherited.clone()
            },
            after: new,
            inherited,
        }
    }
}

/// The parts of a list of directories or names.
pub(super) fn split(text: &[u8], separators: &'static [u8]) -> impl Iterator<Item = PathBuf> {
    text.split(|byte| separators.contains(byte))
        .filter(|part| !part.is_empty())
        .map(|part| PathBuf::from(OsStr::from_bytes(part)))
        .take(MAX_DIRECTORIES)
}

/// Replaces the variables of `ld.so(8)`. `$LIB` stands for one of several
/// names, depending on the distribution.
fn expanded(directory: &Path, origin: &Path) -> Vec<PathBuf> {
    let Some(text) = directory.to_str().filter(|text| text.contains('$')) else {
        return vec![directory.to_owned()];
    };
    let replaced = |name: &str, text: &str, value: &str| {
        text.replace(&format!("${{{name}}}"), value)
            .replace(&format!("${name}"), value)
    };
    let text = replaced("ORIGIN", text, &origin.to_string_lossy());
    let text = replaced("PLATFORM", &text, "x86_64");
    if text.contains("LIB") && text.contains('$') {
        return ["lib/x86_64-linux-gnu", "lib64", "lib"]
            .iter()
            .map(|lib| PathBuf::from(replaced("LIB", &text, lib)))
            .collect();
    }
    vec![PathBuf::from(text)]
}

/// Whether the file is a 64-bit x86 ELF file; the linkers pass over others.
pub(super) fn is_x86_64(file: &File) -> bool {
    let mut header = [0; 20];
    let mut read = || -> io::Result<()> {
        let mut file = file;
        file.rewind()?;
        file.read_exact(&mut header)
    };
    read().is_ok() && header.starts_with(b"\x7fELF\x02\x01") && header.ends_with(&[62, 0])
}

/// What is the same for all libraries of one process.
pub(super) struct Places<'a> {
    files: &'a dyn Files,
    linker: Linker,
    environment: Vec<PathBuf>,
    cache: Option<File>,
    standard: Vec<PathBuf>,
}

impl<'a> Places<'a> {
    pub(super) fn of(
        files: &'a dyn Files,
        linker: Linker,
        interpreter: &Path,
        library_path: &[u8],
    ) -> Self {
        let environment = split(library_path, b":;")
            .flat_map(|directory| expanded(&directory, Path::new(".")))
            .take(MAX_DIRECTORIES)
            .collect();
        let (cache, standard) = match linker {
            Linker::Glibc => {
                let cache = files.open(Path::new("/etc/ld.so.cache")).ok();
                let standard = [
                    "/lib/x86_64-linux-gnu",
                    "/usr/lib/x86_64-linux-gnu",
                    "/lib64",
                    "/usr/lib64",
                    "/lib",
                    "/usr/lib",
                ];
                (cache, standard.map(PathBuf::from).to_vec())
            }
            Linker::Musl => {
                // `ld-musl-x86_64.so.1` reads `ld-musl-x86_64.path`, in /etc of
                // the prefix that it is installed in.
                let name = interpreter
                    .file_stem()
                    .map(Path::new)
                    .and_then(Path::file_stem)
                    .unwrap_or_default();
                let name = Path::new("/etc").join(name).with_added_extension("path");
                let configured: Vec<PathBuf> =
                    split(&contents(files, &name, MAX_CONFIGURATION), b":\n").collect();
                let standard = ["/lib", "/usr/local/lib", "/usr/lib"]
                    .map(PathBuf::from)
                    .to_vec();
                (
                    None,
                    if configured.is_empty() {
                        standard
                    } else {
                        configured
                    },
                )
            }
        };
        Self {
            files,
            linker,
            environment,
            cache,
            standard,
        }
    }

    /// Libraries that are loaded before all others.
    pub(super) fn preloaded(&self, variable: &[u8]) -> Vec<Vec<u8>> {
        let file = match self.linker {
            Linker::Glibc => contents(
                self.files,
                Path::new("/etc/ld.so.preload"),
                MAX_CONFIGURATION,
            ),
            Linker::Musl => Vec::new(),
        };
        let names = split(variable, b": ").chain(split(&file, b": \t\n"));
        names
            .flat_map(|name| expanded(&name, Path::new(".")))
            .map(|name| name.as_os_str().as_bytes().to_vec())
            .collect()
    }

    /// The library of this name, with the variants for certain processors that
    /// lie beside it. Empty when there is none.
    pub(super) fn find(&self, name: &[u8], paths: &Paths) -> Vec<(PathBuf, File)> {
        let name = Path::new(OsStr::from_bytes(name));
        if name.as_os_str().as_bytes().contains(&b'/') {
            return self.opened(name.to_owned()).into_iter().collect();
        }
        let before = paths
            .before
            .iter()
            .flat_map(|paths| paths.iter())
            .chain(&self.environment)
            .chain(paths.after.iter());
        if let Some(found) = before
            .map(|directory| self.variants(directory, name))
            .find(|found| !found.is_empty())
        {
            return found;
        }
        let cached: Vec<_> = self
            .cached(name)
            .into_iter()
            .filter_map(|path| self.opened(PathBuf::from(OsString::from_vec(path))))
            .collect();
        if !cached.is_empty() {
            return cached;
        }
        self.standard
            .iter()
            .map(|directory| self.variants(directory, name))
            .find(|found| !found.is_empty())
            .unwrap_or_default()
    }

    /// Where the linker's cache has it.
    fn cached(&self, name: &Path) -> Vec<Vec<u8>> {
        let name = name.as_os_str().as_bytes();
        self.cache
            .as_ref()
            .and_then(|cache| reader::cached_library(cache, name).ok())
            .unwrap_or_default()
    }

    fn variants(&self, directory: &Path, name: &Path) -> Vec<(PathBuf, File)> {
        let levels = [
            "glibc-hwcaps/x86-64-v4",
            "glibc-hwcaps/x86-64-v3",
            "glibc-hwcaps/x86-64-v2",
        ];
        let levels = if self.linker == Linker::Glibc {
            levels.as_slice()
        } else {
            &[]
        };
        let special = levels.iter().map(|level| directory.join(level).join(name));
        special
            .chain([directory.join(name)])
            .filter_map(|path| self.opened(path))
            .collect()
    }

    fn opened(&self, path: PathBuf) -> Option<(PathBuf, File)> {
        let file = self.files.open(&path).ok().filter(is_x86_64)?;
        Some((path, file))
    }
}

/// A small file's contents; empty when it cannot be read.
fn contents(files: &dyn Files, path: &Path, limit: u64) -> Vec<u8> {
    let mut data = Vec::new();
    let read = files
        .open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut data));
    if read.is_ok() { data } else { Vec::new() }
}
