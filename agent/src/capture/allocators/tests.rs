use std::{fs, path::Path, process::Command};

use agent_ebpf::abi::heap::FunctionKind::{
    AlignedAlloc, Calloc, Free, Malloc, MallocAligned, PosixMemalign, Realloc,
};
use proptest::prelude::*;

use super::*;

const LIB: &str = "/usr/lib/x86_64-linux-gnu";

/// The families of an installed library; nothing, with a printed line, when it
/// is not installed.
fn families(path: &str) -> Option<Vec<Family>> {
    let Ok(data) = fs::read(Path::new(path)) else {
        println!("skipped: {path} is not installed");
        return None;
    };
    Some(discover(&Elf::parse(data.as_slice()).unwrap()).families)
}

fn function<'family>(family: &'family Family, name: &str) -> &'family Function {
    family
        .functions
        .iter()
        .find(|function| function.name == name)
        .unwrap_or_else(|| panic!("{name} is not in {family:?}"))
}

#[test]
fn glibc_is_found_whole() {
    let Some(families) = families(&format!("{LIB}/libc.so.6")) else {
        return;
    };
    let [glibc] = families.as_slice() else {
        panic!("{families:?}")
    };
    assert_eq!((glibc.kind, &glibc.why_not), ("glibc", &None));
    let kinds = [
        ("malloc", Malloc),
        ("calloc", Calloc),
        ("realloc", Realloc),
        ("memalign", AlignedAlloc),
        ("posix_memalign", PosixMemalign),
        ("free", Free),
    ];
    for (name, kind) in kinds {
        assert_eq!(function(glibc, name).kind, kind, "{name}");
    }
    assert!(!function(glibc, "malloc").may_nest);
    assert!(!function(glibc, "free").may_nest);
    assert!(
        function(glibc, "realloc").may_nest,
        "realloc(NULL) calls malloc"
    );
    let mut addresses: Vec<u64> = glibc
        .functions
        .iter()
        .map(|function| function.address)
        .collect();
    addresses.dedup();
    assert_eq!(
        addresses.len(),
        glibc.functions.len(),
        "second names are one probe"
    );
}

#[test]
fn the_dynamic_linker_is_left_alone() {
    assert_eq!(
        families("/lib64/ld-linux-x86-64.so.2").unwrap_or_default(),
        []
    );
}

#[test]
fn the_standard_library_of_cxx_hands_over() {
    let Some(families) = families(&format!("{LIB}/libstdc++.so.6")) else {
        return;
    };
    let [cxx] = families.as_slice() else {
        panic!("{families:?}")
    };
    assert_eq!((cxx.kind, cxx.functions.len()), ("c++", 0));
    assert!(cxx.only_hands_over(), "{cxx:?}");
    assert!(cxx.handed_over.len() >= 12, "{cxx:?}");
}

#[test]
fn jemalloc_has_its_own_operators() {
    let Some(families) = families(&format!("{LIB}/libjemalloc.so.2")) else {
        return;
    };
    let [jemalloc] = families.as_slice() else {
        panic!("{families:?}")
    };
    assert_eq!((jemalloc.kind, &jemalloc.why_not), ("jemalloc", &None));
    for name in [
        "malloc", "mallocx", "rallocx", "dallocx", "sdallocx", "_Znwm", "_ZdlPvm",
    ] {
        function(jemalloc, name);
    }
    assert!(
        jemalloc.handed_over.contains(&"_ZdlPv".to_owned()),
        "it is a jump to free"
    );
    assert!(
        function(jemalloc, "_ZdlPvmSt11align_val_t").may_nest,
        "it calls sdallocx"
    );
    assert!(
        !jemalloc
            .functions
            .iter()
            .any(|function| function.name == "xallocx")
    );
}

#[test]
fn mimalloc_is_one_family_under_all_its_names() {
    let Some(families) = families(&format!("{LIB}/libmimalloc.so.2")) else {
        return;
    };
    let [mimalloc] = families.as_slice() else {
        panic!("{families:?}")
    };
    assert_eq!((mimalloc.kind, &mimalloc.why_not), ("mimalloc", &None));
    assert_eq!(
        function(mimalloc, "mi_heap_malloc").kind,
        AlignedAlloc,
        "the heap is in front of the size"
    );
    assert_eq!(function(mimalloc, "mi_new_aligned").kind, MallocAligned);
    assert!(
        mimalloc
            .handed_over
            .contains(&"mi_malloc_aligned".to_owned()),
        "it jumps to mi_heap_malloc_aligned"
    );
    assert!(mimalloc.uncovered.contains(&"mi_heap_realloc".to_owned()));
}

#[test]
fn tcmalloc_is_found() {
    let Some(families) = families(&format!("{LIB}/libtcmalloc_minimal.so.4")) else {
        return;
    };
    let [tcmalloc] = families.as_slice() else {
        panic!("{families:?}")
    };
    assert_eq!((tcmalloc.kind, &tcmalloc.why_not), ("tcmalloc", &None));
    assert_eq!(
        function(tcmalloc, "tc_newarray_aligned").kind,
        MallocAligned
    );
    assert_eq!(function(tcmalloc, "free").kind, Free);
}

#[test]
fn musl_is_told_from_glibc() {
    let Some(families) = families("/lib/ld-musl-x86_64.so.1") else {
        return;
    };
    let [musl] = families.as_slice() else {
        panic!("{families:?}")
    };
    assert_eq!((musl.kind, &musl.why_not), ("musl", &None));
    assert!(function(musl, "calloc").may_nest, "it calls malloc");
    assert!(!function(musl, "malloc").may_nest);
}

/// Builds a small C program; nothing, with a printed line, when the compiler is
/// not installed.
fn build(compiler: &str, flag: &str) -> Option<Vec<u8>> {
    const PROGRAM: &str = "#include <stdlib.h>\nint main(int n, char **v) { void *p = realloc(malloc(n), 2 * n); free(p); free(calloc(n, n)); return 0; }";
    let directory = std::env::temp_dir().join(format!(
        "lingerscope-allocators-{}-{compiler}{flag}",
        std::process::id()
    ));
    fs::create_dir_all(&directory).unwrap();
    let (source, program) = (directory.join("a.c"), directory.join("a"));
    fs::write(&source, PROGRAM).unwrap();
    let built = Command::new(compiler)
        .args(["-O1", flag, "-o"])
        .args([&program, &source])
        .output()
        .is_ok_and(|output| output.status.success());
    let data = built.then(|| fs::read(&program).unwrap());
    fs::remove_dir_all(&directory).unwrap();
    if data.is_none() {
        println!("skipped: {compiler} {flag} does not work here");
    }
    data
}

#[test]
fn static_programs_offer_their_library() {
    for (compiler, flag, kind) in [
        ("gcc", "-static", "glibc"),
        ("gcc", "-static-pie", "glibc"),
        ("musl-gcc", "-static", "musl"),
    ] {
        let Some(data) = build(compiler, flag) else {
            continue;
        };
        let families = discover(&Elf::parse(data.as_slice()).unwrap()).families;
        let [family] = families.as_slice() else {
            panic!("{families:?}")
        };
        assert_eq!(
            (family.kind, &family.why_not),
            (kind, &None),
            "{compiler} {flag}"
        );
        assert!(!function(family, "malloc").may_nest, "{compiler} {flag}");
        assert!(!function(family, "free").may_nest, "{compiler} {flag}");
        assert!(
            !family
                .functions
                .iter()
                .any(|function| function.name.starts_with("__libc_")),
            "{family:?}"
        );
    }
}

#[test]
fn a_dynamic_program_offers_nothing() {
    let Some(data) = build("gcc", "-O2") else {
        return;
    };
    assert_eq!(
        discover(&Elf::parse(data.as_slice()).unwrap()),
        Discovery::default()
    );
}

#[test]
fn an_ordinary_library_offers_nothing() {
    assert_eq!(
        families(&format!("{LIB}/libm.so.6")).unwrap_or_default(),
        []
    );
}

#[test]
fn a_real_image_with_damaged_bytes_never_panics() {
    let Ok(data) = fs::read("/lib/ld-musl-x86_64.so.1") else {
        return;
    };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(48));
    let len = data.len();
    // Headers and tables are where damage hurts; a third of it goes there.
    let place = prop_oneof![0..len, 0..4096_usize, (len - 4096)..len];
    let damage = prop::collection::vec((place, any::<u8>()), 1..40);
    runner
        .run(&damage, |damage| {
            let mut data = data.clone();
            for (place, byte) in damage {
                data[place] = byte;
            }
            if let Ok(elf) = Elf::parse(data.as_slice()) {
                for family in discover(&elf).families {
                    for function in &family.functions {
                        body(&elf, function);
                    }
                }
            }
            Ok(())
        })
        .unwrap();
}

/// As Fedora makes them: stripped, with the packed symbols of its functions.
#[test]
fn symbols_of_a_stripped_program_are_unpacked() {
    let folder = std::env::temp_dir().join(format!("lingerscope-mini-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let script = "printf 'void *malloc(unsigned long); void free(void *); int main(int c, char **v) { void *p = malloc(c); free(p); return p == v; }' > a.c \
        && cc -O2 -static a.c -o whole && objcopy --only-keep-debug --strip-debug whole mini && xz -k mini \
        && strip whole -o bare && objcopy --add-section .gnu_debugdata=mini.xz bare stripped \
        && printf garbage > garbage && objcopy --add-section .gnu_debugdata=garbage bare damaged";
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(&folder)
        .status()
        .unwrap();
    if !made.success() {
        println!("skipped: needs cc, binutils, xz and a static C library");
        return;
    }
    let look = |name: &str| {
        let data = fs::read(folder.join(name)).unwrap();
        discover(&Elf::parse(data.as_slice()).unwrap())
    };
    let (whole, bare) = (look("whole"), look("bare"));
    assert_eq!(bare.families, []);
    assert_eq!(look("stripped"), whole);
    assert_eq!(whole.families.first().unwrap().kind, "glibc");
    let damaged = look("damaged");
    assert!(damaged.families.is_empty() && damaged.not_read.is_some());
    fs::remove_dir_all(folder).unwrap();
}
