//! Files that targets have mapped: opened and compiled once, shared by all
//! targets, known by device and inode.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use agent_ebpf::abi::stack::Row;
use anyhow::Result;
use object::{
    LittleEndian, Object as _,
    elf::{PF_X, PT_LOAD},
    read::elf::{ElfFile64, ProgramHeader as _},
};

use super::{
    allocators,
    object::Object,
    probes::{self, FamilyProbes},
    tables::{Piece, Tables},
};
use crate::{
    host::{
        mapping::Mapping,
        memory::Memory,
        module::{Elf, Module, ModuleId},
    },
    tokio_rt::{
        current_task::FileRecipes,
        tls::{self, WhyNot},
    },
    unwind,
};

/// Files kept open at most: a host's programs and their libraries.
const MAX_FILES: usize = 4096;
/// So many are kept when nobody maps them any more, for those that will.
const KEPT_FILES: usize = 512;
/// The same by the chunks of rows: 16 MiB of kernel memory.
const KEPT_CHUNKS: usize = 32;

/// A part of a file that the loader maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        let file = Module::open(pid, mapping)
            .and_then(|module| self.read(object, module))
            .map(Arc::new)
            .map_err(|error| format!("{error:#}"));
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
        let mut image = vec![
            0u8;
            (mapping.end - mapping.start).min(crate::host::memory::MAX_PIECE as u64)
                as usize
        ];
        Memory::open(pid)?.read(mapping, mapping.start, &mut image)?;
        let elf = ElfFile64::<LittleEndian>::parse(&*image)?;
        let table = unwind::compile(&elf)?;
        let pieces = self.add_rows(object, &table.rows)?;
        let file = Arc::new(CodeFile {
            module: None,
            segments: segments(elf.elf_program_headers()),
            pieces,
            families: Vec::new(),
            is_go: false,
            task_ids: None,
            not_read: None,
        });
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
        let id = module.id;
        let file = self
            .read(object, module)
            .map(Arc::new)
            .map_err(|error| format!("{error:#}"));
        self.known.insert(id, file.clone());
        file
    }

    fn read(&mut self, object: &Object, module: Module) -> Result<CodeFile> {
        let (segments, table, families, is_go, task_ids, not_read) = module.with_elf(|elf| {
            let discovery = allocators::discover(elf);
            let not_read = discovery.not_read;
            let table = unwind::compile(elf).unwrap_or_else(|error| {
                tracing::debug!(file = %module.path.display(), error = %format_args!("{error:#}"), "no unwind rows");
                unwind::Table::default()
            });
            let is_go = elf.section_by_name(".gopclntab").is_some();
            let families = probes::families(elf, discovery);
            let segments = segments(elf.elf_program_headers());
            Ok((segments, table, families, is_go, task_recipes(elf), not_read))
        })?;
        let pieces = self.add_rows(object, &table.rows)?;
        tracing::debug!(file = %module.path.display(), rows = table.rows.len(), unsupported = table.unsupported, "unwind rows");
        Ok(CodeFile {
            module: Some(module),
            segments,
            pieces,
            families,
            is_go,
            task_ids,
            not_read,
        })
    }
}

fn segments(headers: &[object::elf::ProgramHeader64<LittleEndian>]) -> Vec<Segment> {
    headers
        .iter()
        .filter(|header| header.p_type(LittleEndian) == PT_LOAD)
        .map(|header| Segment {
            offset: header.p_offset(LittleEndian),
            address: header.p_vaddr(LittleEndian),
            size: header.p_filesz(LittleEndian),
            executable: header.p_flags(LittleEndian) & PF_X != 0,
        })
        .collect()
}

/// Tokio's recipes; `None` where there is no Tokio, as in almost every file.
fn task_recipes(elf: &Elf<'_>) -> Option<FileRecipes> {
    let as_main = tls::recipe(elf, true);
    if as_main == Err(WhyNot::NoTokio) {
        return None;
    }
    Some(FileRecipes {
        as_main,
        as_library: tls::recipe(elf, false),
    })
}
