//! Allocator discovery: which functions of an ELF file hand out heap blocks
//! and take them back.
//!
//! Families are found by name, in `.dynsym`, `.symtab` and `.gnu_debugdata`, and then checked
//! against the code: a function that does nothing but hand over to another
//! probed one is left out, and one that may call another is marked, so that
//! the kernel program counts the outermost call once.

mod candidates;
mod flow;
mod names;
mod results;

use std::collections::BTreeMap;

use agent_ebpf::abi::heap::FunctionKind;
use iced_x86::{Decoder, DecoderOptions};
use object::read::ReadRef;

pub use self::results::ResultPoint;
use self::{
    candidates::{Candidate, Candidates, Signs, Uncovered},
    flow::{Ending, Flow, Role},
    names::Scheme,
};
use crate::{
    elf::{self, Elf, Table},
    reader::question::NOT_READ,
};

/// Allocator functions of one file that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// `glibc`, `musl`, `jemalloc`, `mimalloc`, `tcmalloc`, `snmalloc`,
    /// `scudo`, `sanitizer`, `c++` or `unknown`.
    pub kind: &'static str,
    /// To be probed, by address; empty when the family cannot be attached.
    pub functions: Vec<Function>,
    /// Where their results can be read, by address.
    pub results: Vec<ResultPoint>,
    /// Left out because they only hand over to another probed function.
    pub handed_over: Vec<String>,
    /// Functions that deal in blocks and cannot be followed.
    pub uncovered: Vec<String>,
    /// Why nothing of the family is to be probed.
    pub why_not: Option<String>,
}

impl Family {
    /// Whether it is no allocator of its own: all its functions hand over to
    /// another one, where their calls are seen. So are the operators of
    /// libstdc++ and libc++.
    pub fn only_hands_over(&self) -> bool {
        self.why_not.as_deref() == Some(HANDS_OVER) && self.uncovered.is_empty()
    }
}

/// What families are called.
pub const KINDS: [&str; 10] = [
    "c++",
    "glibc",
    "jemalloc",
    "mimalloc",
    "musl",
    "sanitizer",
    "scudo",
    "snmalloc",
    "tcmalloc",
    "unknown",
];

/// Why a family is not probed that has no function of its own.
const HANDS_OVER: &str = "its functions only hand over to another allocator";

/// One allocator function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Symbol name, mangled; of several at one address the best known.
    pub name: String,
    /// What it does with its arguments.
    pub kind: FunctionKind,
    /// It may call another probed function.
    pub may_nest: bool,
    /// Linked virtual address.
    pub address: u64,
    /// Bytes of its body, 0 when the file does not tell.
    pub size: u64,
    /// Where its first byte is in the file.
    pub file_offset: u64,
}

/// What a file offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// One per kind.
    pub families: Vec<Family>,
    /// Symbols that could not be looked at, if any.
    pub not_read: Option<&'static str>,
}

/// Bytes of a function that are looked at.
pub const MAX_BODY: u64 = 64 << 10;

/// The bytes of a function. Of one whose end is unknown or too far away, only
/// the first instruction: enough to probe the entry, and nothing else of it
/// could be chosen safely.
pub fn body<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, function: &Function) -> &'data [u8] {
    if (1..=MAX_BODY).contains(&function.size) {
        return elf::code_at(elf, function.address, function.size);
    }
    let code = elf::code_at(elf, function.address, 15);
    let first = Decoder::new(64, code, DecoderOptions::NONE).decode();
    code.get(..first.len()).unwrap_or_default()
}

/// Finds the allocator families of a file.
pub fn discover<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Discovery {
    let mut not_read = None;
    let mut signs = Signs::default();
    let mut found = Candidates::default();
    for table in [Table::Dynamic, Table::Full] {
        match elf::symbols(elf, table) {
            Some(symbols) => symbols.for_each(|symbol| signs.look_at(&symbol)),
            None => not_read = Some(NOT_READ[0]),
        }
    }
    let image = if elf::has_full_symbols(elf) {
        None
    } else {
        elf::mini::image(elf)
    };
    let mini = image
        .as_deref()
        .and_then(|image| Elf::<&[u8]>::parse(image).ok());
    let mini_symbols = || {
        let symbols = mini
            .as_ref()
            .and_then(|mini| elf::symbols(mini, Table::Full));
        symbols.into_iter().flatten()
    };
    mini_symbols().for_each(|symbol| signs.look_at(&symbol));
    if signs.is_dynamic_linker(elf) {
        return Discovery {
            families: Vec::new(),
            not_read,
        };
    }
    for table in [Table::Dynamic, Table::Full] {
        for symbol in elf::symbols(elf, table).into_iter().flatten() {
            found.look_at(elf, &symbol, &signs);
        }
    }
    mini_symbols().for_each(|symbol| found.look_at(elf, &symbol, &signs));
    let unread = !elf::has_full_symbols(elf) && elf::mini::is_present(elf) && mini.is_none();
    if not_read.is_none() && unread {
        not_read = Some(NOT_READ[1]);
    }
    if found.functions.is_empty() && found.uncovered.is_empty() {
        return Discovery {
            families: Vec::new(),
            not_read,
        };
    }

    let kinds = Kinds::of(&found, &signs);
    let flow = Flow::of(elf, &found, &signs);
    let mut families = BTreeMap::new();
    for (address, candidate) in &found.functions {
        let kind = kinds.kind(&candidate.schemes);
        families
            .entry(kind)
            .or_insert_with(|| Draft::new(kind))
            .take(*address, candidate, &flow);
    }
    for uncovered in found.uncovered {
        let kind = kinds.kind(std::slice::from_ref(&uncovered.scheme));
        families
            .entry(kind)
            .or_insert_with(|| Draft::new(kind))
            .uncovered
            .push(uncovered);
    }
    Discovery {
        families: families
            .into_values()
            .map(|draft| draft.judged(&flow))
            .collect(),
        not_read,
    }
}

/// Whose the naming schemes of a file are.
struct Kinds {
    plain: &'static str,
    cxx: &'static str,
}

impl Kinds {
    fn of(found: &Candidates, signs: &Signs) -> Self {
        let malloc = found
            .functions
            .values()
            .find(|candidate| candidate.name == "malloc");
        let second_name = malloc.and_then(|malloc| malloc.schemes.iter().find_map(own_kind));
        let plain = second_name.unwrap_or_else(|| signs.plain_kind());
        Self {
            plain,
            cxx: if malloc.is_some() { plain } else { "c++" },
        }
    }

    fn kind(&self, schemes: &[Scheme]) -> &'static str {
        schemes
            .iter()
            .find_map(own_kind)
            .unwrap_or(if schemes.contains(&Scheme::Plain) {
                self.plain
            } else {
                self.cxx
            })
    }
}

/// The allocator that a scheme belongs to by itself.
fn own_kind(scheme: &Scheme) -> Option<&'static str> {
    match scheme {
        Scheme::Plain | Scheme::Cxx => None,
        Scheme::Mimalloc => Some("mimalloc"),
        Scheme::Tcmalloc => Some("tcmalloc"),
        Scheme::Snmalloc => Some("snmalloc"),
        Scheme::Jemalloc(_) => Some("jemalloc"),
    }
}

/// A family while it is put together.
struct Draft {
    family: Family,
    uncovered: Vec<Uncovered>,
    /// What the functions that were left out do.
    handed_over: Vec<Role>,
}

impl Draft {
    fn new(kind: &'static str) -> Self {
        let family = Family {
            kind,
            functions: Vec::new(),
            results: Vec::new(),
            handed_over: Vec::new(),
            uncovered: Vec::new(),
            why_not: None,
        };
        Self {
            family,
            uncovered: Vec::new(),
            handed_over: Vec::new(),
        }
    }

    fn take<'data, R: ReadRef<'data>>(
        &mut self,
        address: u64,
        candidate: &Candidate,
        flow: &Flow<'_, 'data, R>,
    ) {
        let role = role(candidate.kind);
        let cxx = candidate.schemes == [Scheme::Cxx];
        // A C function that calls another keeps its probe: its own entry is
        // where the stack is sure to be readable (musl has no unwind tables).
        let left_out = match flow.ending(address, candidate.size, role) {
            Ending::TailJump => true,
            Ending::PassesOn => cxx,
            Ending::Own => false,
        };
        if left_out {
            self.family.handed_over.push(candidate.name.clone());
            self.handed_over.push(role);
            return;
        }
        let Some(file_offset) = elf::code_offset(flow.elf, address) else {
            return;
        };
        self.family.functions.push(Function {
            name: candidate.name.clone(),
            kind: candidate.kind,
            may_nest: flow.may_nest(address, candidate.size),
            address,
            size: candidate.size,
            file_offset,
        });
    }

    /// Decides whether the family is whole.
    fn judged<'data, R: ReadRef<'data>>(mut self, flow: &Flow<'_, 'data, R>) -> Family {
        let probed = |wanted: Role| {
            self.family
                .functions
                .iter()
                .any(|function| role(function.kind) == wanted)
        };
        let has = |wanted: Role| probed(wanted) || self.handed_over.contains(&wanted);
        let indirect = self.uncovered.iter().find(|uncovered| uncovered.frees);
        let moves = self
            .uncovered
            .iter()
            .find(|uncovered| uncovered.name.contains("realloc"));
        self.family.why_not =
            if !probed(Role::Allocates) && self.handed_over.contains(&Role::Allocates) {
                Some(HANDS_OVER.to_owned())
            } else if !probed(Role::Allocates) {
                Some("no function that allocates was found".to_owned())
            } else if !has(Role::Frees) {
                Some("no function that frees was found".to_owned())
            } else if let Some(free) = indirect {
                Some(format!(
                    "{} is chosen when the program is loaded and cannot be followed",
                    free.name
                ))
            } else if let (Some(realloc), false) = (moves, has(Role::Resizes)) {
                Some(format!(
                    "{} moves blocks and cannot be followed",
                    realloc.name
                ))
            } else {
                None
            };
        if self.family.why_not.is_none() {
            match results::points(flow, &self.family.functions) {
                Ok(points) => self.family.results = points,
                Err(error) => self.family.why_not = Some(error.to_string()),
            }
        }
        if self.family.why_not.is_some() {
            self.family.functions.clear();
        }
        self.family.uncovered = self
            .uncovered
            .into_iter()
            .map(|uncovered| uncovered.name)
            .collect();
        self.family
    }
}

fn role(kind: FunctionKind) -> Role {
    match kind {
        FunctionKind::Free => Role::Frees,
        FunctionKind::Realloc | FunctionKind::Reallocarray | FunctionKind::ReallocAligned => {
            Role::Resizes
        }
        _ => Role::Allocates,
    }
}

#[cfg(test)]
mod tests;
