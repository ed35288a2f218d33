//! Which symbol names are allocator functions, and what their arguments mean.

use agent_ebpf::abi::heap::FunctionKind::{
    self, AlignedAlloc, Calloc, CallocAligned, Free, Malloc, MallocAligned, PosixMemalign, Realloc,
    ReallocAligned, Reallocarray,
};

/// Functions that belong together because they share a naming scheme.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Scheme {
    /// `malloc`, `free` and the rest of the C library's names.
    Plain,
    /// `operator new` and `operator delete`.
    Cxx,
    /// `mi_*`.
    Mimalloc,
    /// `tc_*`.
    Tcmalloc,
    /// `sn_*`.
    Snmalloc,
    /// jemalloc's names behind a prefix that is not empty.
    Jemalloc(Vec<u8>),
}

/// What a name says about a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It can be probed.
    Probe(FunctionKind),
    /// It hands out, moves or takes back blocks, but its arguments have a form
    /// that the kernel program cannot read.
    Inexpressible,
}

use Meaning::{Inexpressible, Probe};

/// A name and its meaning.
type Known = (&'static [u8], Meaning);

/// The C library's functions, which every general allocator offers under the
/// same names, with or without a prefix.
const C: &[Known] = &[
    (b"malloc", Probe(Malloc)),
    (b"calloc", Probe(Calloc)),
    (b"realloc", Probe(Realloc)),
    (b"reallocarray", Probe(Reallocarray)),
    (b"aligned_alloc", Probe(AlignedAlloc)),
    (b"memalign", Probe(AlignedAlloc)),
    (b"posix_memalign", Probe(PosixMemalign)),
    (b"valloc", Probe(Malloc)),
    (b"pvalloc", Probe(Malloc)),
    (b"free", Probe(Free)),
    (b"free_sized", Probe(Free)),
    (b"free_aligned_sized", Probe(Free)),
    (b"cfree", Probe(Free)),
];

/// Further plain names: BSD forms, and the second names of glibc.
const PLAIN: &[Known] = &[
    (b"reallocf", Probe(Realloc)),
    (b"reallocarr", Inexpressible),
    (b"vfree", Probe(Free)),
    (b"_aligned_malloc", Probe(MallocAligned)),
    (b"__posix_memalign", Probe(PosixMemalign)),
    (b"__libc_malloc", Probe(Malloc)),
    (b"__libc_calloc", Probe(Calloc)),
    (b"__libc_realloc", Probe(Realloc)),
    (b"__libc_reallocarray", Probe(Reallocarray)),
    (b"__libc_memalign", Probe(AlignedAlloc)),
    (b"__libc_valloc", Probe(Malloc)),
    (b"__libc_pvalloc", Probe(Malloc)),
    (b"__libc_free", Probe(Free)),
    (b"__libc_cfree", Probe(Free)),
];

/// jemalloc's own functions (`jemalloc(3)`).
///
/// `xallocx` is missing on purpose: it resizes a block where it is and answers
/// with a size. The block keeps its address, its site and its age; only its
/// recorded size is that of the allocation until it is freed.
const JEMALLOC: &[Known] = &[
    (b"mallocx", Probe(Malloc)),
    (b"rallocx", Probe(Realloc)),
    (b"dallocx", Probe(Free)),
    (b"sdallocx", Probe(Free)),
];

/// mimalloc (`mimalloc.h`). `mi_expand` is missing for the reason given at
/// [`JEMALLOC`]. The heap functions carry the heap in front: with one size
/// behind it that is the shape of `aligned_alloc`. Version 3 offers them under
/// `theap_` too.
const MIMALLOC: &[Known] = &[
    (b"malloc_small", Probe(Malloc)),
    (b"zalloc", Probe(Malloc)),
    (b"zalloc_small", Probe(Malloc)),
    (b"mallocn", Probe(Calloc)),
    (b"reallocn", Probe(Reallocarray)),
    (b"reallocf", Probe(Realloc)),
    (b"rezalloc", Probe(Realloc)),
    (b"recalloc", Probe(Reallocarray)),
    (b"reallocarr", Inexpressible),
    (b"malloc_aligned", Probe(MallocAligned)),
    (b"malloc_aligned_at", Probe(MallocAligned)),
    (b"zalloc_aligned", Probe(MallocAligned)),
    (b"zalloc_aligned_at", Probe(MallocAligned)),
    (b"calloc_aligned", Probe(CallocAligned)),
    (b"calloc_aligned_at", Probe(CallocAligned)),
    (b"realloc_aligned", Probe(ReallocAligned)),
    (b"realloc_aligned_at", Probe(ReallocAligned)),
    (b"rezalloc_aligned", Probe(ReallocAligned)),
    (b"rezalloc_aligned_at", Probe(ReallocAligned)),
    (b"recalloc_aligned", Probe(Reallocarray)),
    (b"recalloc_aligned_at", Probe(Reallocarray)),
    (b"aligned_recalloc", Probe(Reallocarray)),
    (b"aligned_offset_recalloc", Probe(Reallocarray)),
    (b"umalloc", Probe(Malloc)),
    (b"umalloc_small", Probe(Malloc)),
    (b"uzalloc", Probe(Malloc)),
    (b"uzalloc_small", Probe(Malloc)),
    (b"ucalloc", Probe(Calloc)),
    (b"urealloc", Probe(Realloc)),
    (b"umalloc_aligned", Probe(MallocAligned)),
    (b"uzalloc_aligned", Probe(MallocAligned)),
    (b"ufree", Probe(Free)),
    (b"free_small", Probe(Free)),
    (b"free_size", Probe(Free)),
    (b"free_aligned", Probe(Free)),
    (b"free_size_aligned", Probe(Free)),
    (b"new", Probe(Malloc)),
    (b"new_nothrow", Probe(Malloc)),
    (b"new_aligned", Probe(MallocAligned)),
    (b"new_aligned_nothrow", Probe(MallocAligned)),
    (b"new_n", Probe(Calloc)),
    (b"new_realloc", Probe(Realloc)),
    (b"new_reallocn", Probe(Reallocarray)),
    (b"heap_malloc", Probe(AlignedAlloc)),
    (b"heap_malloc_small", Probe(AlignedAlloc)),
    (b"heap_zalloc", Probe(AlignedAlloc)),
    (b"heap_zalloc_small", Probe(AlignedAlloc)),
    (b"heap_malloc_aligned", Probe(AlignedAlloc)),
    (b"heap_malloc_aligned_at", Probe(AlignedAlloc)),
    (b"heap_zalloc_aligned", Probe(AlignedAlloc)),
    (b"heap_zalloc_aligned_at", Probe(AlignedAlloc)),
    (b"heap_alloc_new", Probe(AlignedAlloc)),
    (b"heap_alloc_new_n", Inexpressible),
    (b"heap_calloc", Inexpressible),
    (b"heap_mallocn", Inexpressible),
    (b"heap_calloc_aligned", Inexpressible),
    (b"heap_calloc_aligned_at", Inexpressible),
    (b"heap_realloc", Inexpressible),
    (b"heap_reallocn", Inexpressible),
    (b"heap_reallocf", Inexpressible),
    (b"heap_rezalloc", Inexpressible),
    (b"heap_recalloc", Inexpressible),
    (b"heap_realloc_aligned", Inexpressible),
    (b"heap_realloc_aligned_at", Inexpressible),
    (b"heap_rezalloc_aligned", Inexpressible),
    (b"heap_rezalloc_aligned_at", Inexpressible),
    (b"heap_recalloc_aligned", Inexpressible),
    (b"heap_recalloc_aligned_at", Inexpressible),
];

/// gperftools (`gperftools/tcmalloc.h`).
const TCMALLOC: &[Known] = &[
    (b"malloc_skip_new_handler", Probe(Malloc)),
    (b"new", Probe(Malloc)),
    (b"new_nothrow", Probe(Malloc)),
    (b"newarray", Probe(Malloc)),
    (b"newarray_nothrow", Probe(Malloc)),
    (b"new_aligned", Probe(MallocAligned)),
    (b"new_aligned_nothrow", Probe(MallocAligned)),
    (b"newarray_aligned", Probe(MallocAligned)),
    (b"newarray_aligned_nothrow", Probe(MallocAligned)),
    (b"delete", Probe(Free)),
    (b"delete_sized", Probe(Free)),
    (b"delete_nothrow", Probe(Free)),
    (b"delete_aligned", Probe(Free)),
    (b"delete_sized_aligned", Probe(Free)),
    (b"delete_aligned_nothrow", Probe(Free)),
    (b"deletearray", Probe(Free)),
    (b"deletearray_sized", Probe(Free)),
    (b"deletearray_nothrow", Probe(Free)),
    (b"deletearray_aligned", Probe(Free)),
    (b"deletearray_sized_aligned", Probe(Free)),
    (b"deletearray_aligned_nothrow", Probe(Free)),
];

/// snmalloc's Rust entry points: `alloc(alignment, size)`,
/// `dealloc(block, alignment, size)`, `realloc(block, alignment, old, new)`.
const SNMALLOC: &[Known] = &[
    (b"rust_alloc", Probe(AlignedAlloc)),
    (b"rust_alloc_zeroed", Probe(AlignedAlloc)),
    (b"rust_dealloc", Probe(Free)),
    (b"rust_realloc", Inexpressible),
];

/// Suffixes of mangled `operator new(unsigned long…)` and `new[]`.
const NEW: &[(&[u8], FunctionKind)] = &[
    (b"", Malloc),
    (b"RKSt9nothrow_t", Malloc),
    (b"12__hot_cold_t", Malloc),
    (b"RKSt9nothrow_t12__hot_cold_t", Malloc),
    (b"St11align_val_t", MallocAligned),
    (b"St11align_val_tRKSt9nothrow_t", MallocAligned),
    (b"St11align_val_t12__hot_cold_t", MallocAligned),
    (
        b"St11align_val_tRKSt9nothrow_t12__hot_cold_t",
        MallocAligned,
    ),
];

/// Suffixes of mangled `operator delete(void*…)` and `delete[]`.
const DELETE: &[&[u8]] = &[
    b"",
    b"m",
    b"RKSt9nothrow_t",
    b"St11align_val_t",
    b"mSt11align_val_t",
    b"St11align_val_tRKSt9nothrow_t",
];

fn look_up(tables: &[&[Known]], name: &[u8]) -> Option<Meaning> {
    tables
        .iter()
        .flat_map(|table| table.iter())
        .find(|(known, _)| *known == name)
        .map(|(_, meaning)| *meaning)
}

/// What the function of this name does, if it is an allocator's. `prefixes`
/// are those of the jemalloc copies in the file.
pub(super) fn classify(name: &[u8], prefixes: &[Vec<u8>]) -> Option<(Scheme, Meaning)> {
    if let Some(rest) = name.strip_prefix(b"_Zn") {
        let rest = rest
            .strip_prefix(b"wm")
            .or_else(|| rest.strip_prefix(b"am"))?;
        return NEW
            .iter()
            .find(|(suffix, _)| *suffix == rest)
            .map(|(_, kind)| (Scheme::Cxx, Probe(*kind)));
    }
    if let Some(rest) = name.strip_prefix(b"_Zd") {
        let rest = rest
            .strip_prefix(b"lPv")
            .or_else(|| rest.strip_prefix(b"aPv"))?;
        return DELETE.contains(&rest).then_some((Scheme::Cxx, Probe(Free)));
    }
    if let Some(meaning) = look_up(&[C, PLAIN, JEMALLOC], name) {
        return Some((Scheme::Plain, meaning));
    }
    if let Some(rest) = name.strip_prefix(b"mi_") {
        let rest = if rest.starts_with(b"theap_") {
            rest.get(1..).unwrap_or_default()
        } else {
            rest
        };
        return look_up(&[C, MIMALLOC], rest).map(|meaning| (Scheme::Mimalloc, meaning));
    }
    if let Some(rest) = name.strip_prefix(b"tc_") {
        return look_up(&[C, TCMALLOC], rest).map(|meaning| (Scheme::Tcmalloc, meaning));
    }
    if let Some(rest) = name.strip_prefix(b"sn_") {
        return look_up(&[C, SNMALLOC], rest).map(|meaning| (Scheme::Snmalloc, meaning));
    }
    prefixes.iter().find_map(|prefix| {
        let rest = name.strip_prefix(prefix.as_slice())?;
        look_up(&[C, JEMALLOC], rest).map(|meaning| (Scheme::Jemalloc(prefix.clone()), meaning))
    })
}

/// The prefix of a jemalloc copy, and the number of the mark, if this is one of
/// the names that only jemalloc has. The prefix is empty for an unprefixed one.
pub(super) fn jemalloc_mark(name: &[u8]) -> Option<(&[u8], u8)> {
    const MARKS: [&[u8]; 6] = [
        b"sdallocx",
        b"dallocx",
        b"mallocx",
        b"rallocx",
        b"xallocx",
        b"nallocx",
    ];
    let (prefix, mark) = (0..)
        .zip(MARKS)
        .find_map(|(number, mark)| Some((name.strip_suffix(mark)?, number)))?;
    let plain = prefix.len() <= 32
        && prefix
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    (plain && !prefix.starts_with(b"_Z")).then_some((prefix, mark))
}

/// Whether the function returns its first argument (C11, 7.24), as a copy or
/// fill at the end of an allocator function does for it.
pub(super) fn gives_back(name: &[u8]) -> bool {
    matches!(name, b"memset" | b"memcpy" | b"memmove")
}

/// Functions that never come back to their caller.
pub(super) fn never_returns(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 12] = [
        b"abort",
        b"_exit",
        b"__assert_fail",
        b"__stack_chk_fail",
        b"__cxa_throw",
        b"__cxa_rethrow",
        b"__cxa_throw_bad_array_new_length",
        b"_Unwind_Resume",
        b"_ZSt9terminatev",
        b"_ZSt17__throw_bad_allocv",
        b"__clang_call_terminate",
        b"__chk_fail",
    ];
    NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(name: &str) -> Option<Meaning> {
        classify(name.as_bytes(), &[b"_rjem_".to_vec()]).map(|(_, meaning)| meaning)
    }

    #[test]
    fn names_carry_their_argument_form() {
        assert_eq!(meaning("malloc"), Some(Probe(Malloc)));
        assert_eq!(meaning("_rjem_sdallocx"), Some(Probe(Free)));
        assert_eq!(meaning("_rjem_rallocx"), Some(Probe(Realloc)));
        assert_eq!(meaning("mi_zalloc_aligned"), Some(Probe(MallocAligned)));
        assert_eq!(meaning("mi_heap_malloc"), Some(Probe(AlignedAlloc)));
        assert_eq!(meaning("mi_theap_malloc"), Some(Probe(AlignedAlloc)));
        assert_eq!(meaning("mi_heap_realloc"), Some(Inexpressible));
        assert_eq!(
            meaning("_ZnamSt11align_val_tRKSt9nothrow_t"),
            Some(Probe(MallocAligned))
        );
        assert_eq!(meaning("_ZdaPvm"), Some(Probe(Free)));
    }

    #[test]
    fn other_names_are_nobodys() {
        for name in [
            "xallocx",
            "_rjem_xallocx",
            "mallocx2",
            "_ZdlPvS_",
            "_ZN3FoonwEm",
            "mi_malloc_size",
            "free_wbackup_area",
            "je_malloc",
            "",
        ] {
            assert_eq!(meaning(name), None, "{name}");
        }
    }

    #[test]
    fn prefixes_of_jemalloc() {
        assert_eq!(
            jemalloc_mark(b"_rjem_sdallocx"),
            Some((b"_rjem_".as_slice(), 0))
        );
        assert_eq!(jemalloc_mark(b"mallocx"), Some((b"".as_slice(), 2)));
        assert_eq!(jemalloc_mark(b"_ZN4test7mallocx"), None);
        assert_eq!(jemalloc_mark(b"malloc"), None);
    }
}
