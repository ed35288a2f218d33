//! Readers of hostile input on bytes that are drawn: arbitrary ones, damaged
//! ELF files and damaged images of a real process's memory. An error or what
//! is really there; no panic, and time and memory in proportion.
//!
//! The draws are the same every time; `LINGERSCOPE_FUZZ_SECONDS` says how long
//! each test goes on, 3 without it.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

#[path = "../fuzz/readers.rs"]
mod readers;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::BTreeSet,
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lingerscope::{
    elf::{Elf, image},
    host::{heap::Heap, mapping, process::Process},
    tokio_rt::{file, vtable::Vtable},
};
use nix::time::{ClockId, clock_gettime};

/// Processor time for one input: a small file in an unoptimised build.
const MAX_TIME: Duration = Duration::from_secs(20);
/// Memory for one input.
const MAX_MEMORY: usize = 256 << 20;

/// Counts what each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get().saturating_add(layout.size());
        HELD.set(held);
        MOST.set(MOST.get().max(held));
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: the caller's pointer and layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A small generator (xorshift64*): the same draws everywhere.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// A word that readers may stumble over; `near` is one that is there.
    fn word(&mut self, near: u64) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => near.wrapping_add(8),
            4 => near.wrapping_sub(1),
            5 => near ^ 1 << self.below(64),
            6 => self.next() >> self.below(64),
            _ => i64::MAX as u64,
        }
    }

    /// Damages bytes in `places`, or anywhere.
    fn damage(&mut self, bytes: &mut Vec<u8>, places: &[usize], hits: usize) {
        for _ in 0..=self.below(hits) {
            let near = places.get(self.below(places.len() + 1));
            let at = match near {
                Some(place) => place + self.below(128),
                None => self.below(bytes.len()),
            };
            let aligned = at / 8 * 8;
            match self.below(6) {
                0 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                1 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = self.next() as u8;
                    }
                }
                2 | 3 => {
                    if let Some(word) = bytes.get_mut(aligned..).and_then(<[u8]>::first_chunk_mut) {
                        let new = self.word(u64::from_le_bytes(*word));
                        *word = new.to_le_bytes();
                    }
                }
                4 => {
                    let from = self.below(bytes.len()) / 8 * 8;
                    let length = self.below(256);
                    if from + length <= bytes.len() && aligned + length <= bytes.len() {
                        bytes.copy_within(from..from + length, aligned);
                    }
                }
                _ if self.below(20) == 0 => bytes.truncate(at.max(64)),
                _ => {}
            }
        }
    }
}

fn seconds() -> Duration {
    let told = env::var("LINGERSCOPE_FUZZ_SECONDS").ok();
    Duration::from_secs(told.and_then(|text| text.parse().ok()).unwrap_or(3))
}

/// Puts one input after the other through `read`, within the bounds.
fn go_on(name: &str, mut read: impl FnMut(&mut Draw)) {
    let start = Instant::now();
    let (mut number, mut longest, mut largest) = (0_u64, Duration::ZERO, 0);
    while number < 20 || start.elapsed() < seconds() {
        number += 1;
        let mut draw = Draw(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (before, held) = (processor_time(), HELD.get());
        MOST.set(held);
        read(&mut draw);
        let took = processor_time().saturating_sub(before);
        let needed = MOST.get().saturating_sub(held);
        assert!(took <= MAX_TIME, "{name} {number} took {took:?}");
        assert!(
            needed <= MAX_MEMORY,
            "{name} {number} needed {needed} bytes"
        );
        (longest, largest) = (longest.max(took), largest.max(needed));
    }
    println!("{name}: {number} inputs, longest {longest:?}, largest {largest} bytes");
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

#[test]
fn arbitrary_bytes() {
    go_on("arbitrary", |draw| {
        let bytes = draw.bytes(4096);
        readers::elf(&bytes);
        readers::memory(&bytes);
        readers::threads(&bytes);
        readers::record(&bytes);
    });
}

/// The places in a file that readers follow: its headers and tables.
fn structure(bytes: &[u8]) -> Vec<usize> {
    let word = |at: usize| {
        let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes) as usize)
    };
    let sections = word(40);
    // The offsets of sections are in their headers.
    let contents = (0..64).map(|index| word(sections + index * 64 + 24));
    let headers = (0..32).map(|index| sections + index * 64);
    let mut places = vec![0, 64, 128, 256, 384, 512];
    places.extend(
        headers
            .chain(contents)
            .filter(|place| place + 128 < bytes.len()),
    );
    places
}

#[test]
fn damaged_files() {
    let mut files: Vec<Vec<u8>> = vec![fs::read("/bin/true").unwrap()];
    files.extend(stripped_example("files").map(|path| fs::read(&path.0).unwrap()));
    for file in &files {
        readers::elf(file);
    }
    let places: Vec<Vec<usize>> = files.iter().map(|file| structure(file)).collect();
    go_on("damaged files", |draw| {
        let index = draw.below(files.len());
        let mut file = files[index].clone();
        draw.damage(&mut file, &places[index], 24);
        readers::elf(&file);
    });
}

/// A file that is deleted with the test.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// The example with many kinds of tasks, which cargo builds for tests, without
/// its symbols; debug information would be most of it.
fn stripped_example(user: &str) -> Option<Temporary> {
    let example = env::current_exe()
        .unwrap()
        .parent()?
        .parent()?
        .join("examples/tasks");
    let stripped = format!("lingerscope-{user}-{}", std::process::id());
    let stripped = Temporary(env::temp_dir().join(stripped));
    let mut strip = Command::new("strip");
    let made = strip.arg(&example).arg("-o").arg(&stripped.0).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: {} cannot be stripped", example.display());
        return None;
    }
    Some(stripped)
}

/// A running program, stopped whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts it; the ids of its tasks.
fn start(path: &Path) -> (Running, BTreeSet<u64>) {
    let mut program = Command::new(path);
    let child = program.arg("50").stdout(Stdio::piped()).spawn();
    let mut running = Running(child.unwrap());
    let mut ids = BTreeSet::new();
    for line in BufReader::new(running.0.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "READY" {
            break;
        }
        let told = line
            .strip_prefix("TASK ")
            .and_then(|told| told.rsplit(' ').next());
        ids.extend(
            told.into_iter()
                .flat_map(|ids| ids.split(','))
                .map(|id| id.parse::<u64>().unwrap()),
        );
    }
    (running, ids)
}

/// Its vtables where they are in its memory.
fn vtables(path: &Path, pid: u32) -> Vec<(u64, Vtable)> {
    let bytes = fs::read(path).unwrap();
    let elf = Elf::parse(bytes.as_slice()).unwrap();
    let found = file::analyse(&elf, true).unwrap().expect("Tokio is in it");
    let mappings = mapping::of(pid).unwrap();
    let code = mappings.iter().find(|mapping| mapping.executable).unwrap();
    let bias = image::bias(&elf, code.start, code.offset, true).unwrap();
    let placed = |vtable: Vtable| (bias.wrapping_add(vtable.address), vtable);
    found.vtables.into_iter().map(placed).collect()
}

#[test]
fn damaged_memory() {
    let Some(program) = stripped_example("memory") else {
        return;
    };
    let (running, ids) = start(&program.0);
    assert!(ids.len() > 50, "{ids:?}");
    let process = Process::of(running.0.id()).unwrap();
    let Ok(heap) = Heap::open(&process) else {
        println!("skipped: other processes' memory is not readable here");
        return;
    };
    let vtables = vtables(&program.0, process.pid);
    let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
    for region in heap.regions() {
        let keep = |start: u64, bytes: &[u8]| pieces.push((start, bytes.to_vec()));
        heap.scan(region, keep).unwrap();
    }
    drop(running);
    let seen = readers::cells(&vtables, &pieces);
    let seen_ids: BTreeSet<u64> = seen.iter().map(|seen| seen.cell.id).collect();
    assert!(ids.is_subset(&seen_ids), "{ids:?} {seen_ids:?}");
    // Only what holds cells, so that the damage hits them.
    pieces.retain(|(start, bytes)| {
        let end = start + bytes.len() as u64;
        seen.iter()
            .any(|seen| (*start..end).contains(&seen.address))
    });
    let places: Vec<Vec<usize>> = pieces
        .iter()
        .map(|(start, bytes)| {
            let inside = seen
                .iter()
                .filter_map(|seen| seen.address.checked_sub(*start));
            let inside = inside.map(|at| at as usize);
            inside.filter(|at| *at < bytes.len()).collect()
        })
        .collect();
    go_on("damaged memory", |draw| {
        let mut damaged = pieces.clone();
        for ((_, bytes), places) in damaged.iter_mut().zip(&places) {
            draw.damage(bytes, places, 60);
        }
        readers::cells(&vtables, &damaged);
        let whole: Vec<u8> = damaged.into_iter().flat_map(|(_, bytes)| bytes).collect();
        readers::threads(whole.get(..1 << 15).unwrap_or(&whole));
    });
}
