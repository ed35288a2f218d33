//! Files that targets have mapped: opened and compiled once, shared by all
//! targets, known by device and inode.

use std::{collections::HashMap, sync::Arc};

use agent_ebpf::abi::{heap::FunctionKind, stack::Row};
use anyhow::Result;
use object::{
    LittleEndian, Object as _,
    elf::{PF_X, PT_LOAD},
    read::elf::{ElfFile64, ProgramHeader as _},
};

use super::{
    allocators,
    object::Object,
    probe_point,
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

/// An allocator function with the instruction to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionProbe {
    /// What it does with its arguments.
    pub kind: FunctionKind,
    /// It may call another probed function.
    pub may_nest: bool,
    /// The probed instruction, as an offset in the file.
    pub offset: u64,
}

/// An allocator family, ready to be probed as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyProbes {
    /// `glibc`, `jemalloc` …
    pub kind: &'static str,
    /// Its functions.
    pub functions: Vec<FunctionProbe>,
    /// Functions that deal in blocks and cannot be followed.
    pub uncovered: Vec<String>,
    /// Why it cannot be probed.
    pub why_not: Option<String>,
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
        let file = self
            .read(object, pid, mapping)
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
        });
        self.vdso = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Makes the rows of new files visible to the kernel.
    pub fn flush(&mut self, object: &Object) -> Result<()> {
        self.tables.flush(object)
    }

    fn add_rows(&mut self, object: &Object, rows: &[Row]) -> Result<Vec<Piece>> {
        self.tables.add(object, rows)
    }

    fn read(&mut self, object: &Object, pid: u32, mapping: &Mapping) -> Result<CodeFile> {
        let module = Module::open(pid, mapping)?;
        let (segments, table, families, is_go, task_ids) = module.with_elf(|elf| {
            let table = unwind::compile(elf).unwrap_or_else(|error| {
                tracing::debug!(file = %module.path.display(), error = %format_args!("{error:#}"), "no unwind rows");
                unwind::Table::default()
            });
            let is_go = elf.section_by_name(".gopclntab").is_some();
            Ok((segments(elf.elf_program_headers()), table, families(elf), is_go, task_recipes(elf)))
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

/// The allocator families of a file with the instruction to probe in each
/// function. A family is probed as a whole or not at all.
fn families(elf: &Elf<'_>) -> Vec<FamilyProbes> {
    let discovery = allocators::discover(elf);
    discovery
        .families
        .into_iter()
        .map(|family| {
            let mut why_not = family.why_not;
            let mut functions = Vec::new();
            for function in &family.functions {
                let code = allocators::body(elf, function);
                let rows = probe_point::cfa_rows(elf, function.address, function.size);
                let wants_return = function.kind != FunctionKind::Free;
                match probe_point::choose(
                    code,
                    function.address,
                    &rows,
                    wants_return,
                    function.kind,
                ) {
                    Ok(point) => {
                        if let Some(reason) = point.stepped_because {
                            tracing::debug!(
                                function = function.name,
                                reason,
                                "the probe is single-stepped"
                            );
                        }
                        functions.push(FunctionProbe {
                            kind: function.kind,
                            may_nest: function.may_nest,
                            offset: function.file_offset + point.offset,
                        });
                    }
                    Err(refusal) => {
                        why_not = why_not.or_else(|| Some(format!("{}: {refusal}", function.name)))
                    }
                }
            }
            FamilyProbes {
                kind: family.kind,
                functions,
                uncovered: family.uncovered,
                why_not,
            }
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
