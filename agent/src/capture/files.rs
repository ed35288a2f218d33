//! Files that targets have mapped: opened and compiled once, shared by all
//! targets, known by device and inode.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use agent_ebpf::abi::stack::Row;
use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    object::Object,
    probes::FamilyProbes,
    tables::{Piece, Tables},
};
use crate::{
    finding::Text,
    host::{
        mapping::Mapping,
        memory::{MAX_PIECE, Memory},
        module::{Module, ModuleId, sealed},
    },
    reader::{self, Unread, question::Code},
    tokio_rt::current_task::FileRecipes,
};

/// Files kept open at most: a host's programs and their libraries.
const MAX_FILES: usize = 4096;
/// So many are kept when nobody maps them any more, for those that will.
const KEPT_FILES: usize = 512;
/// The same by the chunks of rows: 16 MiB of kernel memory.
const KEPT_CHUNKS: usize = 32;

/// A part of a file that the loader maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u64,
    /// Address as linked.
    pub address: u64,
    /// Bytes in the file.
    pub size: u64,
    /// Holds code.
    pub executable: bool,
}

/// What is known of one file.
#[derive(Debug)]
pub struct CodeFile {
    /// The opened file; `None` for the vDSO, which has none.
    pub module: Option<Module>,
    /// Its loaded parts.
    pub segments: Vec<Segment>,
    /// Its unwind rows.
    pub pieces: Vec<Piece>,
    /// Allocator functions in it.
    pub families: Vec<FamilyProbes>,
    /// It holds the Go runtime.
    pub is_go: bool,
    /// How to read Tokio's current task id; `None` for a file without Tokio.
    pub task_ids: Option<FileRecipes>,
    /// Symbols that could not be looked at, if any.
    pub not_read: Option<&'static str>,
    /// The file with its debug information, by `.gnu_debuglink`.
    pub debug_link: Option<String>,
}

impl CodeFile {
    /// Address in the process minus address as linked, for a mapping of this
    /// file; `None` when no segment fits.
    pub fn bias(&self, mapping: &Mapping) -> Option<u64> {
        let segment = self
            .segments
            .iter()
            .filter(|segment| {
                segment.offset & !0xfff <= mapping.offset
                    && mapping.offset < segment.offset + segment.size
            })
            .max_by_key(|segment| (segment.executable == mapping.executable, segment.offset))?;
        let linked = segment
            .address
            .wrapping_add(mapping.offset.wrapping_sub(segment.offset));
        Some(mapping.start.wrapping_sub(linked))
    }
}

/// All files seen so far.
#[derive(Default)]
pub struct Files {
    known: HashMap<ModuleId, Result<Arc<CodeFile>, String>>,
    vdso: Option<Arc<CodeFile>>,
    tables: Tables,
}

impl Files {
    /// The file behind an executable mapping.
    ///
    /// # Errors
    /// Why it cannot be read; the answer is remembered.
    pub fn of(
        &mut self,
        object: &Object,
        pid: u32,
        mapping: &Mapping,
    ) -> Result<Arc<CodeFile>, String> {
        let id = ModuleId {
            device: mapping.device,
            inode: mapping.inode,
        };
        if let Some(known) = self.known.get(&id) {
            return known.clone();
        }
        if self.known.len() >= MAX_FILES {
            return Err(format!("more than {MAX_FILES} files"));
        }
        let file = Module::open(pid, mapping).map_err(|error| format!("{error:#}"));
        self.remember(object, id, file)
    }

    /// Reads an opened file, unless it is known, and remembers the outcome
    /// where asking again would make no sense.
    fn remember(
        &mut self,
        object: &Object,
        id: ModuleId,
        module: Result<Module, String>,
    ) -> Result<Arc<CodeFile>, String> {
        let file = match module {
            Ok(module) => {
                let path = module.path.clone();
                let told = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
                match reader::code(&module.file) {
                    Ok(read) => self
                        .known_by(object, Some(module), read)
                        .map(Arc::new)
                        .map_err(|error| told(&format_args!("{error:#}"))),
                    Err(why) => {
                        if !matches!(why, Unread::Unfit(_)) {
                            let name = Text::name(path.as_os_str().as_encoded_bytes());
                            tracing::warn!("{name} could not be read: {why}");
                        }
                        if !why.is_lasting() {
                            return Err(told(&why));
                        }
                        Err(told(&why))
                    }
                }
            }
            Err(why) => Err(why),
        };
        self.known.insert(id, file.clone());
        file
    }

    /// The kernel's own library, the same in every process.
    ///
    /// # Errors
    /// When it cannot be read from the process.
    pub fn vdso(&mut self, object: &Object, pid: u32, mapping: &Mapping) -> Result<Arc<CodeFile>> {
        if let Some(known) = &self.vdso {
            return Ok(Arc::clone(known));
        }
        let mut image = vec![0u8; (mapping.end - mapping.start).min(MAX_PIECE as u64) as usize];
        Memory::open(pid)?.read(mapping, mapping.start, &mut image)?;
        let (mut code, rows) = reader::code(&sealed(&image)?)?;
        // A process's memory is no place for probes.
        (code.families, code.task_ids) = (Vec::new(), None);
        let file = Arc::new(self.known_by(object, None, (code, rows))?);
        self.vdso = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Makes the rows of new files visible to the kernel.
    pub fn flush(&mut self, object: &Object) -> Result<()> {
        self.tables.flush(object)
    }

    /// Lets go of files that no target maps any more, when there are many;
    /// to be called about once a second.
    pub fn tidy(&mut self, object: &Object) {
        if self.known.len() <= KEPT_FILES && self.tables.chunks() <= KEPT_CHUNKS {
            return;
        }
        self.known
            .retain(|_, file| file.as_ref().is_ok_and(|file| Arc::strong_count(file) > 1));
        let used: HashSet<u32> = self
            .known
            .values()
            .flatten()
            .chain(&self.vdso)
            .flat_map(|file| &file.pieces)
            .map(|piece| piece.chunk)
            .collect();
        if let Err(error) = self.tables.free_one(object, &used) {
            tracing::debug!(error = %format_args!("{error:#}"), "unwind tables stay that nobody uses");
        }
    }

    fn add_rows(&mut self, object: &Object, rows: &[Row]) -> Result<Vec<Piece>> {
        self.tables.add(object, rows)
    }

    /// A file of our own namespace that a process is about to map.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn at_path(&mut self, object: &Object, path: &Path) -> Result<Arc<CodeFile>, String> {
        let module = Module::open_path(path).map_err(|error| format!("{error:#}"))?;
        if let Some(known) = self.known.get(&module.id) {
            return known.clone();
        }
        self.remember(object, module.id, Ok(module))
    }

    /// What the reader has told of a file.
    fn known_by(
        &mut self,
        object: &Object,
        module: Option<Module>,
        (code, rows): (Box<Code>, Vec<Row>),
    ) -> Result<CodeFile> {
        let path = module.as_ref().map(|module| module.path.display());
        if let Some(why) = &code.no_rows {
            tracing::debug!(
                file = path.as_ref().map(tracing::field::display),
                why,
                "no unwind rows"
            );
        }
        tracing::debug!(
            file = path.as_ref().map(tracing::field::display),
            rows = rows.len(),
            unsupported = code.unsupported,
            "unwind rows"
        );
        let pieces = self.add_rows(object, &rows)?;
        let code = *code;
        let build_id = code.build_id;
        let module = module.map(|module| Module { build_id, ..module });
        Ok(CodeFile {
            module,
            segments: code.segments,
            pieces,
            families: code.families,
            is_go: code.is_go,
            task_ids: code.task_ids,
            not_read: code.not_read,
            debug_link: code.debug_link,
        })
    }
}
