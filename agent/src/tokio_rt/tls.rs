//! How to read Tokio's current task id of a thread: a recipe per ELF file.
//!
//! Tokio keeps the id in a thread-local `tokio::runtime::context::CONTEXT`.
//! The variable's place in the module's thread-local block is in the symbol
//! table, the block's place is fixed by the ABI, and the id's place in the
//! variable is told by debug information or by the code that exchanges it.
//! A recipe is a claim: it is tried on the running process before it is
//! believed ([`super::acceptance`]).

mod access;
mod dwarf;
mod slot;
mod stripped;

use std::ops::Range;

use agent_ebpf::abi::heap::TaskIdRecipe;
use object::{
    LittleEndian,
    elf::PT_TLS,
    read::{ReadRef, elf::ProgramHeader as _},
};

use serde::{Deserialize, Deserializer, Serialize};

pub use self::stripped::candidates;
use self::{access::Addressing, slot::Slot};
use crate::{
    elf::{self, Elf, Symbol, SymbolKind, Table},
    reader::bounded::{Label, label},
};

/// How to find the id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Where the module's thread-local block is.
    pub block: Block,
    /// Byte offset of the id's word in the block.
    pub slot: u64,
    /// The word before it is a tag, 0 for none (Tokio 1.22 to 1.39).
    pub has_tag: bool,
    /// What told the slot.
    pub source: Source,
}

/// Where a module's thread-local block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Block {
    /// So many bytes below the thread pointer: the main executable's, with
    /// glibc and musl.
    BelowThreadPointer(u64),
    /// In the dynamic thread vector, under the module's id; the id is in the
    /// word at this linked address once the module is loaded.
    ModuleIdAt(u64),
}

/// What told the id's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Debug information.
    DebugInformation,
    /// The code of Tokio's `TaskIdGuard`.
    Guard,
    /// Tokio's task code, into which the guard was inlined.
    TaskCode,
    /// The running process, out of what the code of a stripped file allows.
    Trial,
}

/// Why a file has no recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum WhyNot {
    /// Nothing of Tokio in it.
    #[error("no Tokio in it")]
    NoTokio,
    /// There is Tokio, but no symbol table.
    #[error("Tokio{} is in it, but its symbols are stripped", version(.0.as_deref()))]
    Stripped(Option<String>),
    /// Tokio keeps no task id in a thread-local.
    #[error("Tokio{} keeps no current task id; it does from 1.22 on", version(.0.as_deref()))]
    TooOld(Option<String>),
    /// The symbol table, the thread-local segment or the relocations cannot be
    /// used.
    #[error("its {0}")]
    Damaged(#[serde(deserialize_with = "damage")] Label),
    /// Neither debug information nor code told the id's place.
    #[error("neither debug information nor code shows where Tokio{} keeps the id", version(.0.as_deref()))]
    NotFound(Option<String>),
}

const TOO_SMALL: Label = "thread-local segment is too small";
const MISSING: Label = "thread-local segment is missing";
const MISALIGNED: Label = "thread-local segment is misaligned";
const NO_MODULE_ID: Label = "relocations name no module id";
const NO_SYMBOLS: Label = "symbol table is too large or damaged";

fn damage<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Label, D::Error> {
    let known = [TOO_SMALL, MISSING, MISALIGNED, NO_MODULE_ID, NO_SYMBOLS];
    label(deserializer, &known)
}

impl WhyNot {
    /// Whether it keeps to the bounds.
    pub fn is_sound(&self) -> bool {
        match self {
            Self::Stripped(version) | Self::TooOld(version) | Self::NotFound(version) => {
                version.as_ref().is_none_or(|version| version.len() <= 32)
            }
            Self::NoTokio | Self::Damaged(_) => true,
        }
    }
}

fn version(version: Option<&str>) -> String {
    version
        .map(|version| format!(" {version}"))
        .unwrap_or_default()
}

/// Largest thread-local block, and distance from the thread pointer.
const MAX_BLOCK: u64 = 1 << 30;

impl Recipe {
    /// Whether its numbers are such as [`recipe`] finds.
    pub fn is_sound(&self) -> bool {
        let near = match self.block {
            Block::BelowThreadPointer(below) => below <= 2 * MAX_BLOCK,
            Block::ModuleIdAt(_) => true,
        };
        near && self.slot < MAX_BLOCK
    }

    /// The form that the kernel programs take. `module_id` is what the word
    /// named by [`Block::ModuleIdAt`] holds in the process; glibc's dynamic
    /// thread vector has sixteen bytes per module.
    pub fn for_kernel(&self, module_id: Option<u64>) -> Option<TaskIdRecipe> {
        let (kind, block) = match self.block {
            Block::BelowThreadPointer(below) => (TaskIdRecipe::KIND_STATIC, below),
            Block::ModuleIdAt(_) => {
                let id = module_id.filter(|id| (1..1 << 16).contains(id))?;
                (TaskIdRecipe::KIND_DTV, id * 16)
            }
        };
        Some(TaskIdRecipe {
            kind,
            has_tag: u32::from(self.has_tag),
            block,
            slot: self.slot,
        })
    }
}

/// Derives the recipe of a file.
pub fn recipe<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    is_main_executable: bool,
) -> Result<Recipe, WhyNot> {
    let Some(context) = Context::of(elf)? else {
        return Err(absent(elf));
    };
    let segment = Segment::of(elf, is_main_executable)?;
    if context.variable.end as u64 > segment.size {
        return Err(WhyNot::Damaged(TOO_SMALL));
    }
    let (slot, source) = context
        .slot(elf, &segment.addressing)
        .ok_or_else(|| WhyNot::NotFound(tokio_version(elf)))?;
    Ok(Recipe {
        block: segment.block,
        slot: slot.value,
        has_tag: slot.has_tag,
        source,
    })
}

/// A file's thread-local segment.
struct Segment {
    size: u64,
    block: Block,
    addressing: Addressing,
}

impl Segment {
    fn of<'data, R: ReadRef<'data>>(
        elf: &Elf<'data, R>,
        is_main_executable: bool,
    ) -> Result<Self, WhyNot> {
        let (size, align, address) = elf
            .elf_program_headers()
            .iter()
            .find(|segment| segment.p_type(LittleEndian) == PT_TLS)
            .map(|segment| {
                (
                    segment.p_memsz(LittleEndian),
                    segment.p_align(LittleEndian),
                    segment.p_vaddr(LittleEndian),
                )
            })
            .ok_or(WhyNot::Damaged(MISSING))?;
        let below =
            below_thread_pointer(address, size, align).ok_or(WhyNot::Damaged(MISALIGNED))?;
        let addressing = Addressing::of(elf, is_main_executable.then_some(below), size);
        let block = if is_main_executable {
            Block::BelowThreadPointer(below)
        } else {
            Block::ModuleIdAt(
                addressing
                    .module_id_at
                    .ok_or(WhyNot::Damaged(NO_MODULE_ID))?,
            )
        };
        Ok(Self {
            size,
            block,
            addressing,
        })
    }
}

/// How far below the thread pointer the main executable's block starts (ELF
/// Handling For Thread-Local Storage, variant II, as glibc and musl compute
/// it).
fn below_thread_pointer(address: u64, size: u64, align: u64) -> Option<u64> {
    let align = align.max(1);
    if !align.is_power_of_two() || align > 1 << 20 || size > MAX_BLOCK {
        return None;
    }
    let first = address.wrapping_neg() & (align - 1);
    let rest = size.checked_sub(first)?;
    rest.checked_next_multiple_of(align)?.checked_add(first)
}

/// Tokio's context as the symbols describe it.
struct Context<'data> {
    /// Where the thread-local variable is in the block.
    variable: Range<i64>,
    guards: Vec<Symbol<'data>>,
    task_code: Vec<Symbol<'data>>,
}

/// Functions of one file that are read.
const MAX_GUARDS: usize = 16;
const MAX_TASK_CODE: usize = 1024;
/// Bytes of a function that are read.
const MAX_BODY: u64 = 32 << 10;

fn contains_all(name: &[u8], parts: &[&[u8]]) -> bool {
    parts
        .iter()
        .all(|part| name.windows(part.len()).any(|window| window == *part))
}

impl<'data> Context<'data> {
    fn of<R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<Option<Self>, WhyNot> {
        let symbols = elf::symbols(elf, Table::Full).ok_or(WhyNot::Damaged(NO_SYMBOLS))?;
        let (mut variable, mut guards, mut task_code) = (None, Vec::new(), Vec::new());
        for symbol in symbols {
            match symbol.kind {
                // The tail of the name changes with the standard library.
                SymbolKind::Tls
                    if contains_all(
                        symbol.name,
                        &[b"tokio", b"runtime", b"context", b"CONTEXT"],
                    ) =>
                {
                    let start = symbol.address as i64;
                    let range = start..start.saturating_add(symbol.size.min(1 << 16) as i64);
                    // Older standard libraries keep a state beside it.
                    if variable.as_ref().is_none_or(|known: &Range<i64>| {
                        range.end - range.start > known.end - known.start
                    }) {
                        variable = Some(range);
                    }
                }
                SymbolKind::Function
                    if guards.len() < MAX_GUARDS
                        && contains_all(symbol.name, &[b"tokio", b"TaskIdGuard"]) =>
                {
                    guards.push(symbol);
                }
                SymbolKind::Function
                    if task_code.len() < MAX_TASK_CODE
                        && contains_all(symbol.name, &[b"tokio", b"runtime", b"task"]) =>
                {
                    task_code.push(symbol);
                }
                _ => {}
            }
        }
        Ok(variable
            .filter(|range| range.start >= 0 && range.end > range.start)
            .map(|variable| Self {
                variable,
                guards,
                task_code,
            }))
    }

    fn slot<R: ReadRef<'data>>(
        &self,
        elf: &Elf<'data, R>,
        addressing: &Addressing,
    ) -> Option<(Slot, Source)> {
        let accesses = |function: &Symbol<'data>| {
            let code = elf::code_at(elf, function.address, function.size.min(MAX_BODY));
            access::accesses(elf, addressing, code, function.address)
        };
        let mut told: Vec<Slot> = self
            .guards
            .iter()
            .filter_map(|guard| slot::written(&accesses(guard), &self.variable))
            .collect();
        told.dedup();
        if let [slot] = told.as_slice() {
            return Some((*slot, Source::Guard));
        }
        if let Some(slot) = dwarf::slot(elf) {
            let value = slot.value.checked_add(self.variable.start as u64)?;
            return self
                .variable
                .contains(&(value as i64))
                .then_some((Slot { value, ..slot }, Source::DebugInformation));
        }
        let votes: Vec<Slot> = self
            .task_code
            .iter()
            .filter_map(|function| slot::exchanged(&accesses(function), &self.variable))
            .collect();
        slot::elected(&votes).map(|slot| (slot, Source::TaskCode))
    }
}

/// Why a file has no context symbol.
fn absent<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> WhyNot {
    let version = tokio_version(elf);
    if !elf::has_full_symbols(elf) {
        return version.map_or(WhyNot::NoTokio, |version| WhyNot::Stripped(Some(version)));
    }
    match version {
        Some(version) if minor(&version).is_some_and(|minor| minor < 22) => {
            WhyNot::TooOld(Some(version))
        }
        // Without the context only those parts of Tokio that have no tasks.
        _ => WhyNot::NoTokio,
    }
}

/// The second number of a version such as `1.54.1`.
pub fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

/// Tokio's version, from the source paths in its panic messages. Unknown for
/// builds that have none, or not from a registry.
pub fn tokio_version<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Option<String> {
    const MARK: &[u8] = b"/tokio-1.";
    let data = elf::section_data(elf, ".rodata")?;
    let at = data.windows(MARK.len()).position(|window| window == MARK)?;
    let rest = data.get(at + b"/tokio-".len()..)?;
    let text: Vec<u8> = rest
        .iter()
        .copied()
        .take(16)
        .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
        .collect();
    String::from_utf8(text)
        .ok()
        .filter(|version| minor(version).is_some())
}

#[cfg(test)]
mod tests;
