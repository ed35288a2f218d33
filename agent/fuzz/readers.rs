//! What any bytes are put through: the readers of ELF files, task vtables,
//! cells, thread control blocks and remembered analyses. Each may find
//! nothing; what it finds must be in the bytes. Run by fuzz targets and, on
//! bytes that are drawn, by `agent/tests/readers.rs`.

use std::{collections::BTreeSet, os::fd::AsFd as _};

use lingerscope::{
    capture::allocators,
    elf::{self, Elf, functions::Functions, image::Image},
    host::module::sealed,
    reader::{
        question::Question,
        serve::{self, Mapping, Server},
    },
    tokio_rt::{
        await_point::AwaitPoints,
        cell,
        file::{self, Questions},
        future_name::FutureName,
        record::Record,
        sighting::{Sighting, Sightings, VtableId},
        thread::{self, Block},
        tls,
        vtable::Vtable,
    },
    unwind,
};

/// Vtables of a file whose futures are named.
const NAMED: usize = 6;

/// A file, as the reader process is asked about it: whatever it is, the answer
/// is one that the asking side believes.
pub(crate) fn questions(bytes: &[u8]) {
    let size = bytes.len() as u64;
    let tasks = |analyse| Question::Tasks {
        analyse,
        mapping: (0x5555_0000_0000, 0x1000),
    };
    for question in [
        Question::BuildId,
        Question::Code,
        Question::Rows,
        tasks(Some(true)),
        tasks(Some(false)),
        tasks(None),
        Question::Linking,
        Question::CachedLibrary(b"libc.so.6".to_vec()),
    ] {
        let (answer, _) = serve::answer(&question, bytes);
        assert!(answer.fits(&question, size), "{question:?}: {answer:?}");
    }
    let file = sealed(bytes).expect("memory");
    let mut server = Server::default();
    for debug in [true, false] {
        let question = Question::Names {
            key: [0; 5],
            debug,
            addresses: (0..200).map(|index| index * 64).collect(),
        };
        let mapping = Mapping::of(file.as_fd()).expect("a file that was just made");
        let (answer, _) = server.answer(&question, vec![mapping]);
        assert!(answer.fits(&question, size), "{question:?}: {answer:?}");
    }
}

/// A file.
pub(crate) fn elf(bytes: &[u8]) {
    questions(bytes);
    let Ok(elf) = Elf::parse(bytes) else {
        return;
    };
    drop(unwind::compile(&elf));
    drop(allocators::discover(&elf));
    let _ = (elf::soname(&elf), elf::interpreter(&elf));
    for is_main_executable in [true, false] {
        if let Ok(recipe) = tls::recipe(&elf, is_main_executable) {
            assert!(recipe.slot < 1 << 30, "{recipe:?}");
        }
    }
    let Ok(Some(found)) = file::analyse(&elf, true) else {
        return;
    };
    let image = Image::of(&elf).expect("the analysis has read it");
    for vtable in &found.vtables {
        assert!(vtable.is_sound(), "{vtable:?}");
        assert!(is_in(&image, vtable), "{vtable:?} is not in the file");
    }
    let functions = Functions::of(&elf);
    let vtables: Vec<Vtable> = found.vtables.iter().take(NAMED).cloned().collect();
    for function in vtables.iter().flat_map(|vtable| vtable.functions) {
        if let Some(extent) = functions.extent(function) {
            assert!(extent.start == function && extent.start < extent.end);
        }
    }
    // Futures that hold pointers at everything that could be an object.
    let words: Vec<u64> = found.data.iter().map(|range| range.start).collect();
    let stage = |index: usize| {
        let word = words.get(index % words.len().max(1)).copied().unwrap_or(0);
        BTreeSet::from([[1, word, word.wrapping_add(8)]])
    };
    let questions = Questions {
        stages: (0..vtables.len()).map(stage).collect(),
        spawn_locations: words.iter().copied().take(4).collect(),
        all: found.vtables,
        vtables,
    };
    let answers = file::name(&elf, &questions);
    assert_eq!(answers.names.len(), questions.vtables.len());
    let named = answers.names.iter().chain(answers.objects.values());
    assert!(named.into_iter().all(FutureName::is_bounded));
    assert!(answers.await_points.values().all(AwaitPoints::is_bounded));
}

/// Whether the words of a vtable are in the file, in one of the two orders.
fn is_in<'a>(image: &Image<'a, 'a, &'a [u8]>, vtable: &Vtable) -> bool {
    let at = |index: u64| vtable.address.wrapping_add(8 * index);
    let offsets = [vtable.trailer, vtable.scheduler, vtable.id];
    let order = |functions: u64, numbers: u64| {
        let mut functions_are = vtable.functions.iter().zip(functions..);
        let mut numbers_are = offsets.iter().zip(numbers..);
        functions_are.all(|(function, index)| {
            image.pointer(at(index)) == Some(*function) && image.is_code(*function)
        }) && numbers_are.all(|(number, index)| image.number(at(index)) == Some(*number))
    };
    order(0, 7) || order(3, 0)
}

/// Looks through memory in pieces; the cells in it. Every one is compared
/// with the bytes that it was read from.
pub(crate) fn cells(vtables: &[(u64, Vtable)], pieces: &[(u64, Vec<u8>)]) -> Vec<Sighting> {
    let numbered = vtables
        .iter()
        .enumerate()
        .map(|(index, (address, vtable))| {
            let id = VtableId {
                module: 0,
                vtable: index,
            };
            (*address, id, vtable)
        });
    let mut seen = Sightings::of(numbered);
    let bytes: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
    for (start, piece) in pieces {
        seen.look(*start, piece);
    }
    assert!(seen.cells.len() + seen.torn.len() + seen.blocks.len() <= bytes / 8 * 2);
    for sighting in &seen.cells {
        check(sighting, vtables, pieces);
    }
    seen.cells
}

fn check(sighting: &Sighting, vtables: &[(u64, Vtable)], pieces: &[(u64, Vec<u8>)]) {
    let word = |address: u64| {
        pieces.iter().find_map(|(start, piece)| {
            let from = usize::try_from(address.checked_sub(*start)?).ok()?;
            let bytes = piece.get(from..from.checked_add(8)?)?;
            bytes.try_into().ok().map(u64::from_le_bytes)
        })
    };
    let at = |offset: u64| word(sighting.address.wrapping_add(offset));
    let (address, vtable) = &vtables[sighting.vtable.vtable];
    let cell = sighting.cell;
    assert_eq!(at(cell::VTABLE), Some(*address), "{sighting:?}");
    assert_eq!(at(0), Some(cell.state.0), "{sighting:?}");
    assert_eq!(at(24), Some(cell.owner), "{sighting:?}");
    assert_eq!(at(vtable.id), Some(cell.id), "{sighting:?}");
    assert!(cell.id != 0 && cell.state.references() != 0, "{sighting:?}");
    assert!(!(cell.state.is_running() && cell.state.is_complete()));
    for (index, stage) in cell.stage.iter().enumerate() {
        let offset = vtable.stage() + 8 * index as u64;
        let expected = if offset < vtable.trailer {
            at(offset)
        } else {
            None
        };
        assert_eq!(*stage, expected.unwrap_or(0), "{sighting:?}");
    }
}

/// Memory: some bytes say what the vtable is like, the rest is looked through.
pub(crate) fn memory(bytes: &[u8]) {
    let Some(([id, room, split, unstable], rest)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let id = 32 + 8 * u64::from(id % 8);
    let vtable = Vtable {
        address: 0x5000,
        functions: [0x1000; 7],
        trailer: id + 16 + 8 * u64::from(*room),
        scheduler: 32,
        id,
        spawn_location: (unstable % 2 == 1).then_some(id + 8),
    };
    let start = 0x7f00_0000_0000;
    let at = usize::from(*split) * 8 % (rest.len() / 8 * 8).max(8);
    let (first, second) = rest.split_at_checked(at).unwrap_or((rest, &[]));
    let pieces = [
        (start, first.to_vec()),
        (start + first.len() as u64, second.to_vec()),
    ];
    drop(cells(&[(0x5555_0000_5000, vtable.clone())], &pieces));
    // As the bytes cannot guess an address: the same with one that is there.
    if let Some(word) = rest.get(16..).and_then(<[u8]>::first_chunk) {
        drop(cells(&[(u64::from_le_bytes(*word), vtable)], &pieces));
    }
}

/// Control blocks of threads.
pub(crate) fn threads(bytes: &[u8]) {
    let ids: BTreeSet<u32> = (1..40).collect();
    let mut blocks = Vec::new();
    for (index, piece) in bytes.chunks(thread::BLOCK).enumerate() {
        let block = Block {
            address: 0x7f00_0000_0000 + index as u64 * 0x1000,
            bytes: piece.to_vec(),
        };
        if let Some(stack) = thread::stack(&block) {
            assert!(stack.contains(&block.address));
        }
        blocks.push(block);
    }
    let found = thread::identify(&blocks, &ids);
    assert!(found.len() <= ids.len());
    for thread in found {
        assert!(ids.contains(&thread.id));
        assert!(blocks.iter().any(|block| block.address == thread.pointer));
    }
}

/// A remembered analysis: the bytes behind a checksum that is right.
pub(crate) fn record(bytes: &[u8]) {
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut content = format!("{sum:016x}\n").into_bytes();
    content.extend(bytes);
    let Some(record) = Record::parse(&content) else {
        return;
    };
    let Some(file) = record.file() else { return };
    assert!(file.vtables.iter().all(Vtable::is_sound));
    let questions = Questions {
        stages: vec![BTreeSet::from([[1, 2, 3]]); file.vtables.len()],
        vtables: file.vtables.clone(),
        all: file.vtables,
        ..Questions::default()
    };
    if let Some(answers) = record.answers(&questions) {
        assert_eq!(answers.names.len(), questions.vtables.len());
    }
}
