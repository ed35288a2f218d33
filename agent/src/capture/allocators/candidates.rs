//! The symbols of a file, sorted into allocator functions and signs of whose
//! they are.

use std::collections::{BTreeMap, HashSet};

use agent_ebpf::abi::heap::FunctionKind;
use object::read::ReadRef;

use super::names::{self, Meaning, Scheme};
use crate::elf::{self, Elf, Symbol, SymbolKind};

/// Functions of one file that are considered.
const MAX_FUNCTIONS: usize = 1024;
/// Prefixes in one file that could be those of jemalloc copies.
const MAX_PREFIXES: usize = 16;
/// Longest name that is kept.
const MAX_NAME: usize = 256;

/// What the names of a file give away about whose allocator it holds.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// Prefixes of jemalloc copies, the empty one not among them.
    pub(super) prefixes: Vec<Vec<u8>>,
    /// Prefixes of jemalloc's own names, with a bit for each name seen.
    marks: Vec<(Vec<u8>, u8)>,
    /// Kind of the plain names, by the strongest sign seen.
    strongest: Option<(u8, &'static str)>,
    /// The data of the dynamic linker.
    linker: bool,
    /// The C library's start of a program.
    start: bool,
    /// Functions that never return.
    pub(super) dead_ends: HashSet<u64>,
    /// Functions, or what chooses one when the file is loaded, that return
    /// their first argument.
    pub(super) givers_back: HashSet<u64>,
}

impl Signs {
    /// Takes note of one symbol.
    pub(super) fn look_at(&mut self, symbol: &Symbol<'_>) {
        if names::gives_back(symbol.name) && self.givers_back.len() < MAX_FUNCTIONS {
            self.givers_back.insert(symbol.address);
        }
        if symbol.kind != SymbolKind::Function {
            self.linker |= symbol.name == b"_rtld_global";
            return;
        }
        if let Some((prefix, mark)) = names::jemalloc_mark(symbol.name) {
            self.mark(prefix, 1 << mark);
        }
        if names::never_returns(symbol.name) && self.dead_ends.len() < MAX_FUNCTIONS {
            self.dead_ends.insert(symbol.address);
        }
        match symbol.name {
            b"__libc_malloc_impl"
            | b"__malloc_donate"
            | b"__init_libc"
            | b"__dls3"
            | b"__expand_heap" => self.note(4, "musl"),
            b"TCMallocInternalMalloc" => self.note(1, "tcmalloc"),
            b"__asan_init" | b"__tsan_init" | b"__msan_init" => self.note(2, "sanitizer"),
            b"gnu_get_libc_version" | b"_int_malloc" => self.note(5, "glibc"),
            b"__libc_start_main" => self.start = true,
            name if name.starts_with(b"_ZN8snmalloc") => self.note(3, "snmalloc"),
            name if name.starts_with(b"_ZN5scudo") => self.note(3, "scudo"),
            name if name.starts_with(b"_ZN8tcmalloc") => self.note(3, "tcmalloc"),
            _ => {}
        }
    }

    /// One such name can be anything (jemalloc itself has a `do_rallocx`), two
    /// with the same prefix are a copy.
    fn mark(&mut self, prefix: &[u8], mark: u8) {
        let Some((_, marks)) = self.marks.iter_mut().find(|(known, _)| known == prefix) else {
            if self.marks.len() < MAX_PREFIXES {
                self.marks.push((prefix.to_vec(), mark));
            }
            return;
        };
        let one_before = marks.is_power_of_two();
        *marks |= mark;
        if one_before && !marks.is_power_of_two() {
            if prefix.is_empty() {
                self.note(0, "jemalloc");
            } else {
                self.prefixes.push(prefix.to_vec());
            }
        }
    }

    fn note(&mut self, rank: u8, kind: &'static str) {
        if self.strongest.is_none_or(|(known, _)| rank < known) {
            self.strongest = Some((rank, kind));
        }
    }

    /// Whose the plain names are, unless they are second names of another
    /// allocator's.
    pub(super) fn plain_kind(&self) -> &'static str {
        self.strongest.map_or("unknown", |(_, kind)| kind)
    }

    fn is_musl(&self) -> bool {
        self.plain_kind() == "musl"
    }

    /// The dynamic linker of older glibc offers a minimal malloc for its own
    /// start. musl's is the C library itself.
    pub(super) fn is_dynamic_linker<'data, R: ReadRef<'data>>(&self, elf: &Elf<'data, R>) -> bool {
        let soname = elf::soname(elf);
        [b"ld-linux".as_slice(), b"ld64.so", b"ld.so"]
            .iter()
            .any(|start| soname.starts_with(start))
            || (self.linker && !self.start && !self.is_musl())
    }
}

/// An allocator function of the file.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) kind: FunctionKind,
    pub(super) size: u64,
    /// All naming schemes under which it is known.
    pub(super) schemes: Vec<Scheme>,
    rank: u8,
}

/// An allocator function that cannot be probed.
#[derive(Debug)]
pub(super) struct Uncovered {
    pub(super) name: String,
    pub(super) scheme: Scheme,
    /// It is chosen at load time, and takes blocks back.
    pub(super) frees: bool,
}

/// The allocator functions of a file, by address.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pub(super) functions: BTreeMap<u64, Candidate>,
    pub(super) uncovered: Vec<Uncovered>,
}

impl Candidates {
    /// Takes the symbol in if it is an allocator function.
    pub(super) fn look_at<'data, R: ReadRef<'data>>(
        &mut self,
        elf: &Elf<'data, R>,
        symbol: &Symbol<'_>,
        signs: &Signs,
    ) {
        if symbol.kind == SymbolKind::Tls || symbol.name.len() > MAX_NAME {
            return;
        }
        // musl's `__libc_malloc` and its kin serve the library alone; their
        // blocks never meet `free`.
        if signs.is_musl() && symbol.name.starts_with(b"__libc_") {
            return;
        }
        let Some((scheme, meaning)) = names::classify(symbol.name, &signs.prefixes) else {
            return;
        };
        let name = String::from_utf8_lossy(symbol.name).into_owned();
        let kind = match meaning {
            Meaning::Probe(kind) if symbol.kind == SymbolKind::Function => kind,
            Meaning::Probe(kind) => {
                return self.cover_not(name, scheme, kind == FunctionKind::Free);
            }
            Meaning::Inexpressible => return self.cover_not(name, scheme, false),
        };
        if elf::code_offset(elf, symbol.address).is_none() {
            return;
        }
        // Of several names at one address, the one that programs use.
        let rank = match &scheme {
            Scheme::Plain if !name.starts_with('_') => 0,
            Scheme::Plain => 2,
            Scheme::Cxx => 3,
            _ => 1,
        };
        if let Some(known) = self.functions.get_mut(&symbol.address) {
            if !known.schemes.contains(&scheme) {
                known.schemes.push(scheme);
            }
            known.size = known.size.max(symbol.size);
            if rank < known.rank {
                (known.name, known.kind, known.rank) = (name, kind, rank);
            }
        } else if self.functions.len() < MAX_FUNCTIONS {
            self.functions.insert(
                symbol.address,
                Candidate {
                    name,
                    kind,
                    size: symbol.size,
                    schemes: vec![scheme],
                    rank,
                },
            );
        }
    }

    fn cover_not(&mut self, name: String, scheme: Scheme, frees: bool) {
        if self.uncovered.len() < MAX_FUNCTIONS
            && !self.uncovered.iter().any(|known| known.name == name)
        {
            self.uncovered.push(Uncovered {
                name,
                scheme,
                frees,
            });
        }
    }
}
