//! A process's files that may have Tokio in them.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{FIRST_READABLE, WhyNot, mapping};
use crate::{
    finding::Text,
    host::{
        cache::Cache,
        mapping::Mapping,
        memory::Memory,
        module::{Module, ModuleId},
        process::{self, Process},
    },
    reader,
    tokio_rt::{
        cell::STAGE_WORDS,
        file::{Answers, Questions, TaskFile},
        record::Record,
        sighting::Sighting,
        tls::{self, Block, Recipe, Source},
    },
};

/// Files that are looked at.
const MAX_FILES: usize = 1024;
/// An analysis that took less is not worth a file.
const WORTH: Duration = Duration::from_millis(2);

/// A file with Tokio in it.
pub(super) struct OpenModule {
    module: Module,
    pub(super) file: TaskFile,
    /// What is remembered of it from one run to the next.
    record: Option<Record>,
    /// Address in the process minus address as linked.
    pub(super) bias: u64,
}

impl OpenModule {
    pub(super) fn path(&self) -> &Path {
        &self.module.path
    }

    pub(super) fn build_id(&self) -> Option<String> {
        self.module.build_id.clone()
    }

    /// The second number of Tokio's version, if it is known.
    pub(super) fn minor(&self) -> Option<u32> {
        self.file.version.as_deref().and_then(tls::minor)
    }

    /// Whether something besides the vtables' shape says that Tokio is there.
    pub(super) fn is_certain(&self) -> bool {
        let by_symbol = |recipe: &Recipe| recipe.source != Source::Trial;
        self.file.version.is_some()
            || matches!(&self.file.recipes, Ok(recipes) if recipes.iter().any(by_symbol))
    }

    /// Names futures, from memory if all of them are remembered.
    pub(super) fn name(&self, cache: Option<&Cache>, questions: &Questions) -> Answers {
        if let Some(answers) = self
            .record
            .as_ref()
            .and_then(|record| record.answers(questions))
        {
            return answers;
        }
        let start = Instant::now();
        let answers = match reader::task_names(&self.module.file, questions) {
            Ok(answers) => answers,
            Err(why) => {
                let path = Text::name(self.path().as_os_str().as_encoded_bytes());
                tracing::warn!("names of futures in {path} could not be read: {why}");
                return Answers::default();
            }
        };
        if let (Some(cache), Some(record)) = (cache, &self.record)
            && start.elapsed() >= WORTH
        {
            let mut record = record.clone();
            record.learn(questions, &answers);
            record.write(cache);
        }
        answers
    }

    /// The id that the dynamic linker has given a library.
    pub(super) fn module_id(&self, pid: u32) -> Option<u64> {
        let recipe = self.file.recipes.as_ref().ok()?.first()?;
        let Block::ModuleIdAt(address) = recipe.block else {
            return None;
        };
        let mappings = mapping::of(pid).ok()?;
        let word = Memory::open(pid)
            .ok()?
            .word(&mappings, self.bias.wrapping_add(address));
        word.ok().filter(|id| (1..1 << 16).contains(id))
    }

    /// The first words of a cell's future as linked addresses of this file's
    /// constants; 0 for those that are none.
    pub(super) fn linked(&self, seen: &Sighting) -> [u64; STAGE_WORDS] {
        seen.cell.stage.map(|word| {
            let linked = word.wrapping_sub(self.bias);
            let inside = self.file.data.iter().any(|range| range.contains(&linked));
            if inside { linked } else { 0 }
        })
    }
}

/// Files that could not be looked at, each with the reason.
pub(super) type Unread = Vec<(PathBuf, String)>;

/// The files whose code a process has mapped.
pub(super) fn mapped(process: &Process) -> io::Result<HashSet<ModuleId>> {
    let mappings = mapping::of(process.pid)?;
    let code = mappings
        .iter()
        .filter(|mapping| mapping.executable && mapping.is_file());
    Ok(code
        .map(|mapping| ModuleId {
            device: mapping.device,
            inode: mapping.inode,
        })
        .take(MAX_FILES)
        .collect())
}

/// Opens a process's files and keeps those with Tokio.
pub(super) fn open(
    process: &Process,
    cache: Option<&Cache>,
) -> io::Result<(Vec<OpenModule>, Unread)> {
    let exe = process::exe_path(process);
    let mut known = HashSet::new();
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    for mapping in mapping::of(process.pid)? {
        let id = ModuleId {
            device: mapping.device,
            inode: mapping.inode,
        };
        if !mapping.executable || !mapping.is_file() || known.len() >= MAX_FILES {
            continue;
        }
        if !known.insert(id) {
            continue;
        }
        match look(process, &mapping, &exe, cache) {
            Ok(module) => found.extend(module),
            Err((path, why)) => unread.push((path, why)),
        }
    }
    Ok((found, unread))
}

fn look(
    process: &Process,
    mapping: &Mapping,
    exe: &Path,
    cache: Option<&Cache>,
) -> Result<Option<OpenModule>, (PathBuf, String)> {
    let mut module = Module::open(process.pid, mapping).map_err(|error| {
        use std::os::unix::ffi::OsStrExt as _;
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&mapping.path));
        (path, format!("{error:#}"))
    })?;
    let path = module.path.clone();
    let unread = |why: reader::Unread| (path.clone(), why.to_string());
    module.build_id = reader::build_id(&module.file).map_err(unread)?;
    let is_main = path == exe;
    let start = Instant::now();
    let remembered = cache.and_then(|cache| Record::read(cache, &module, is_main));
    let analyse = remembered.is_none().then_some(is_main);
    let place = (mapping.start, mapping.offset);
    let found = reader::tasks(&module.file, analyse, place).map_err(unread)?;
    let file = match &remembered {
        Some(record) => record.file(),
        None => found.file.map(TaskFile::from),
    };
    let record = remembered.or_else(|| {
        let record = Record::new(&module, is_main, file.as_ref())?;
        if let Some(cache) = cache
            && start.elapsed() >= WORTH
        {
            record.write(cache);
        }
        Some(record)
    });
    match (file, found.bias) {
        (Some(file), Some(bias)) => Ok(Some(OpenModule {
            module,
            file,
            record,
            bias,
        })),
        (Some(_), None) => Err((path, "it is not mapped as its headers say".to_owned())),
        (None, _) => Ok(None),
    }
}

/// Why there can be no table at all.
pub(super) fn why_none(modules: &[OpenModule], unread: &Unread) -> Option<WhyNot> {
    if modules.iter().any(|module| !module.file.vtables.is_empty()) {
        return None;
    }
    let told = modules.iter().find_map(|module| {
        let version = module.file.version.clone()?;
        Some((module, version))
    });
    let shown = |path: &Path| path.display().to_string();
    Some(match (told, unread.first()) {
        (Some((module, version)), _) => {
            let path = shown(module.path());
            if module.minor().is_some_and(|minor| minor < FIRST_READABLE) {
                WhyNot::TooOld { path, version }
            } else {
                WhyNot::NoVtables { path, version }
            }
        }
        (None, Some((path, why))) => WhyNot::Unread {
            path: shown(path),
            why: why.clone(),
        },
        (None, None) => WhyNot::NoTokio,
    })
}
