//! What belongs to allocators and runtimes, by name of file and function.

use super::{
    Frame,
    owner::{first_segment, owner},
};

pub(super) fn is_allocator_frame(frame: &Frame) -> bool {
    frame
        .module
        .as_ref()
        .is_some_and(|module| starts_with_any(module.basename(), ALLOCATOR_MODULES))
        || frame
            .function
            .as_ref()
            .is_some_and(|function| is_allocator_function(function.as_str()))
}

/// Libraries that are allocators and nothing else.
const ALLOCATOR_MODULES: &[&str] = &[
    "libjemalloc",
    "libmimalloc",
    "libtcmalloc",
    "libsnmalloc",
    "libhoard",
    "librpmalloc",
    "[uprobes]",
];

/// Libraries of language runtimes.
const RUNTIME_MODULES: &[&str] = &[
    "libc.so",
    "libc-",
    "ld-linux",
    "ld-musl",
    "ld-2.",
    "ld.so",
    "libpthread",
    "libdl.so",
    "libdl-",
    "librt.so",
    "librt-",
    "libm.so",
    "libm-",
    "libstdc++",
    "libc++",
    "libgcc_s",
    "libunwind.so",
    "libsupc++",
    "libstd-",
    "[vdso]",
    "[vsyscall]",
    "linux-vdso",
    "linux-gate",
];

pub(super) fn is_runtime_module(basename: &str) -> bool {
    starts_with_any(basename, RUNTIME_MODULES)
}

fn starts_with_any(text: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| text.starts_with(prefix))
}

/// Plain function names of allocators; `__libc_`, `_rjem_`, `je_` … prefixes
/// are taken off before the look-up.
const ALLOCATOR_NAMES: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "aligned_alloc",
    "memalign",
    "posix_memalign",
    "valloc",
    "pvalloc",
    "free",
    "cfree",
    "free_sized",
    "free_aligned_sized",
    "mallocx",
    "rallocx",
    "xallocx",
    "dallocx",
    "sdallocx",
    "strdup",
    "strndup",
    "wcsdup",
    "asprintf",
    "vasprintf",
    "_int_malloc",
    "_int_realloc",
    "_int_memalign",
    "_mid_memalign",
    "sysmalloc",
    "malloc_consolidate",
    "malloc_default",
    "arena_malloc",
    "aligned_alloc_internal",
    "tc_new",
    "tc_newarray",
    "tc_new_nothrow",
    "tc_newarray_nothrow",
    "tc_delete",
    "tc_deletearray",
];

/// What allocators put before the standard names.
const ALLOCATOR_PREFIXES: &[&str] = &[
    "__libc_",
    "__GI___libc_",
    "__GI_",
    "_rjem_je_",
    "_rjem_",
    "je_",
    "_mi_",
    "mi_",
    "tc_",
    "sn_",
    "rp",
    "__wrap_",
    "__interceptor_",
    "__",
];

/// Rust crates that are allocators or bind one.
const ALLOCATOR_CRATES: &[&str] = &[
    "tikv_jemallocator",
    "tikv_jemalloc_sys",
    "jemallocator",
    "jemalloc_sys",
    "mimalloc",
    "libmimalloc_sys",
    "snmalloc_rs",
    "tcmalloc",
    "tcmalloc_better",
    "rpmalloc",
];

fn is_allocator_function(name: &str) -> bool {
    let plain = name
        .split(['(', '@', '<'])
        .next()
        .unwrap_or(name)
        .trim_end();
    let plain = plain.strip_suffix(".cold").unwrap_or(plain);
    if !plain.contains("::") && !plain.contains(' ') {
        if ALLOCATOR_NAMES.contains(&plain)
            || starts_with_any(
                plain,
                &[
                    "mi_",
                    "_mi_",
                    "_rjem_",
                    "je_",
                    "__rust_alloc",
                    "__rust_realloc",
                    "__rdl_",
                    "__rg_",
                ],
            )
        {
            return true;
        }
        if ALLOCATOR_PREFIXES
            .iter()
            .filter_map(|prefix| plain.strip_prefix(prefix))
            .any(|rest| ALLOCATOR_NAMES.contains(&rest))
        {
            return true;
        }
    }
    // `__rustc[…]::__rust_alloc` since 1.87
    if name.starts_with("__rustc") && name.contains("::__r") {
        return true;
    }
    if starts_with_any(
        name,
        &[
            "operator new",
            "operator delete",
            "void* operator new",
            "tcmalloc::",
            "(anonymous namespace)::do_malloc",
            "do_malloc",
        ],
    ) {
        return true;
    }
    let owner = owner(name);
    ALLOCATOR_CRATES.contains(&first_segment(owner))
        || starts_with_any(
            owner,
            &[
                "alloc::alloc::",
                "std::alloc::",
                "core::alloc::",
                "std::allocator<",
                "std::allocator_traits<",
                "std::__new_allocator<",
                "__gnu_cxx::new_allocator<",
                "__gnu_cxx::__alloc_traits<",
            ],
        )
}

/// Rust crates and C++ namespaces that only carry the program's own code:
/// language runtimes, async runtimes, containers and channels.
const RUNTIME_CRATES: &[&str] = &[
    "std",
    "core",
    "alloc",
    "proc_macro",
    "hashbrown",
    "indexmap",
    "smallvec",
    "arrayvec",
    "slab",
    "dashmap",
    "lru",
    "bytes",
    "once_cell",
    "lazy_static",
    "thread_local",
    "parking_lot",
    "parking_lot_core",
    "lock_api",
    "tokio",
    "tokio_util",
    "tokio_stream",
    "futures",
    "futures_core",
    "futures_util",
    "futures_channel",
    "futures_executor",
    "futures_io",
    "futures_lite",
    "futures_sink",
    "futures_task",
    "pin_project_lite",
    "pin_utils",
    "async_task",
    "async_executor",
    "async_std",
    "async_channel",
    "smol",
    "flume",
    "crossbeam_channel",
    "crossbeam_utils",
    "crossbeam_queue",
    "crossbeam_deque",
    "crossbeam_epoch",
    "rayon_core",
    "rayon",
    "async_trait",
    "gimli",
    "addr2line",
    "backtrace",
    "rustc_demangle",
    "__rustc",
    "__gnu_cxx",
    "__cxxabiv1",
    "__cxx11",
];

/// Functions of the C runtime that also occur in static executables.
const RUNTIME_NAMES: &[&str] = &[
    "_start",
    "__libc_start_main",
    "__libc_start_call_main",
    "__libc_start_main_impl",
    "__libc_start_main_stage2",
    "libc_start_main_stage2",
    "start_thread",
    "__clone",
    "__clone3",
    "clone3",
    "__restore_rt",
    "__rust_try",
    "__rust_begin_short_backtrace",
    "__rust_end_short_backtrace",
    "rust_begin_unwind",
    "_Unwind_Backtrace",
    "execute_native_thread_routine",
    "__pthread_once_slow",
    "pthread_once",
    "__pthread_create_2_1",
    "pthread_create",
    "getline",
    "getdelim",
    "fopen",
    "fopen64",
    "_IO_file_doallocate",
    "opendir",
    "_dl_allocate_tls",
    "allocate_dtv",
    "__tls_get_addr",
    "__cxa_allocate_exception",
    "__cxa_thread_atexit_impl",
    "_dl_init",
    "call_init",
    "syscall",
    "__syscall_cancel",
    "__clone_internal",
];

/// Beginnings of such names: what waits and wakes.
const RUNTIME_PREFIXES: &[&str] = &[
    "_dl_",
    "std::",
    "__libc_",
    "pthread_",
    "__pthread_",
    "___pthread_",
    "__lll_",
    "__futex_",
    "__timedwait",
];

pub(super) fn is_runtime_function(name: &str) -> bool {
    if RUNTIME_NAMES.contains(&name) || starts_with_any(name, RUNTIME_PREFIXES) {
        return true;
    }
    let owner = owner(name);
    let first = first_segment(owner);
    // A task that is run under a tracing span.
    RUNTIME_CRATES.contains(&first) || owner.starts_with("tracing::instrument::")
}

/// Whether a source file belongs to the standard library or to a runtime
/// crate. Debug information often names an inlined function without its path;
/// then only the file tells whose it is.
pub(super) fn is_runtime_source(file: &str) -> bool {
    if file.contains("/rustlib/src/rust/library/") || file.starts_with("/rustc/") {
        return true;
    }
    // …/registry/src/INDEX/NAME-VERSION/src/lib.rs
    let Some((_, rest)) = file.split_once("/registry/src/") else {
        return false;
    };
    let Some(folder) = rest.split('/').nth(1) else {
        return false;
    };
    let name = folder
        .match_indices('-')
        .find(|(at, _)| {
            folder
                .as_bytes()
                .get(at + 1)
                .is_some_and(u8::is_ascii_digit)
        })
        .map_or(folder, |(at, _)| folder.get(..at).unwrap_or(folder));
    RUNTIME_CRATES.contains(&name.replace('-', "_").as_str())
}

#[cfg(test)]
mod source_tests {
    use super::*;

    #[test]
    fn files_tell_whose_code_it_is() {
        for runtime in [
            "/rustc/59807616/library/core/src/ops/function.rs",
            "/root/.rustup/toolchains/x/lib/rustlib/src/rust/library/alloc/src/vec/mod.rs",
            "/root/.cargo/registry/src/index.crates.io-1949/tokio-1.54.1/src/runtime/task/raw.rs",
            "/c/registry/src/i/futures-util-0.3.31/src/lib.rs",
        ] {
            assert!(is_runtime_source(runtime), "{runtime}");
        }
        for user in [
            "/home/a/server/src/main.rs",
            "/c/registry/src/i/some-crate-1.0.0/src/lib.rs",
            "./malloc/malloc.c",
        ] {
            assert!(!is_runtime_source(user), "{user}");
        }
    }
}
