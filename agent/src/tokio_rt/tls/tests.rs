use std::{
    arch::asm,
    fs,
    time::{Duration, Instant},
};

use super::*;

#[test]
fn the_block_lies_where_the_abi_puts_it() {
    assert_eq!(below_thread_pointer(0x95020, 0xd8, 8), Some(0xd8));
    assert_eq!(
        below_thread_pointer(0x1000, 0x54, 8),
        Some(0x58),
        "rounded up to the alignment"
    );
    assert_eq!(
        below_thread_pointer(0x1008, 0x54, 16),
        Some(0x58),
        "not aligned at its start"
    );
    assert_eq!(below_thread_pointer(0x1000, 0x54, 0), Some(0x54));
    assert_eq!(below_thread_pointer(0x1000, 0x54, 3), None);
    assert_eq!(below_thread_pointer(0x1001, 2, 16), None);
}

#[test]
fn a_recipe_becomes_what_the_kernel_reads() {
    let mut recipe = Recipe {
        block: Block::BelowThreadPointer(216),
        slot: 48,
        has_tag: true,
        source: Source::Guard,
    };
    let expected = TaskIdRecipe {
        kind: TaskIdRecipe::KIND_STATIC,
        has_tag: 1,
        block: 216,
        slot: 48,
    };
    assert_eq!(recipe.for_kernel(None), Some(expected));
    recipe.block = Block::ModuleIdAt(0x4000);
    assert_eq!(
        recipe.for_kernel(Some(3)),
        Some(TaskIdRecipe {
            kind: TaskIdRecipe::KIND_DTV,
            block: 48,
            ..expected
        })
    );
    assert_eq!(recipe.for_kernel(None), None);
    assert_eq!(recipe.for_kernel(Some(0)), None);
}

#[test]
fn files_without_tokio_say_so() {
    let data = fs::read("/bin/true").unwrap();
    assert_eq!(
        recipe(&Elf::parse(data.as_slice()).unwrap(), true),
        Err(WhyNot::NoTokio)
    );
}

/// The word of the calling thread that a recipe of the main executable names.
fn own_word(recipe: &Recipe) -> u64 {
    let Block::BelowThreadPointer(below) = recipe.block else {
        panic!("{recipe:?}")
    };
    let thread_pointer: u64;
    // SAFETY: the ABI keeps the thread pointer in the word it points at; and
    // the slot lies inside this thread's block, as the recipe checked.
    unsafe {
        asm!("mov {}, fs:0", out(reg) thread_pointer);
        let address = thread_pointer - below + recipe.slot;
        std::ptr::read_volatile(std::ptr::with_exposed_provenance(address as usize))
    }
}

#[test]
fn the_recipe_of_this_program_reads_the_ids_that_tokio_tells() {
    let data = fs::read("/proc/self/exe").unwrap();
    let recipe = recipe(&Elf::parse(data.as_slice()).unwrap(), true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let ids = runtime.block_on(async {
        let mut ids = Vec::new();
        for _ in 0..3 {
            let recipe = recipe.clone();
            ids.push(
                tokio::spawn(async move {
                    (tokio::task::id().to_string(), own_word(&recipe).to_string())
                })
                .await
                .unwrap(),
            );
        }
        ids
    });
    for (told, read) in ids {
        assert_eq!(told, read, "{recipe:?}");
    }
    assert_eq!(own_word(&recipe), 0, "outside of every task");
}

/// Programs of this workspace that other tests build.
#[test]
fn the_examples_have_recipes() {
    for name in ["server", "server_jemalloc", "server_mimalloc"] {
        let path = format!(
            "{}/../target/release/examples/{name}",
            env!("CARGO_MANIFEST_DIR")
        );
        let Ok(data) = fs::read(&path) else {
            println!("skipped: {path} is not built");
            continue;
        };
        let start = Instant::now();
        let recipe = recipe(&Elf::parse(data.as_slice()).unwrap(), true).unwrap();
        assert!(!recipe.has_tag, "Tokio is newer than 1.39");
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
