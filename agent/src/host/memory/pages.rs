//! Many small looks at a target's memory with few reads: pages are fetched
//! once, neighbours together, and only private ones that are present.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::FileExt as _,
    thread,
    time::{Duration, Instant},
};

use super::{MAX_PIECE, Memory, PRESENT, guarded};
use crate::host::mapping::Mapping;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Pages fetched at once.
const MAX_RUN: u64 = MAX_PIECE as u64 / PAGE;
/// A read of one page holds the lock for about as long as one of two.
const LEAST_RUN: u64 = 2;
/// Bits of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst): in
/// swap, or on its way elsewhere; belongs to a file or is shared.
pub(super) const SWAPPED: u64 = 1 << 62;
pub(super) const FILE_OR_SHARED: u64 = 1 << 61;

/// What reading may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes read of the target.
    pub bytes: u64,
    /// Time it may take, pauses included.
    pub time: Duration,
    /// Pause after each 64 KiB, or a few small reads, so that the target's
    /// mmap lock is not held all the time.
    pub pause: Duration,
}

/// Why a place cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Absent {
    /// No mapping is there.
    Unmapped,
    /// The page was never touched, or was given back to the kernel.
    Hole,
    /// The page is in swap.
    Swapped,
    /// Shared, of a file or device, or filled in by somebody else.
    Refused,
    /// The budget is used up.
    OverBudget,
    /// The address space is gone.
    Ended,
    /// The kernel refuses.
    Failed,
}

type Page = Result<Box<[u8; PAGE as usize]>, Absent>;

/// Pages of one address space, as they were when they were fetched.
pub struct Pages<'memory> {
    memory: &'memory Memory,
    mappings: Vec<Mapping>,
    guarded: Vec<(u64, u64)>,
    cache: BTreeMap<u64, Page>,
    budget: Budget,
    started: Instant,
    /// Pages read since the last pause; a small read counts for more.
    unpaused: u64,
    /// Bytes read so far.
    pub bytes: u64,
    /// Reads so far.
    pub reads: u64,
}

impl<'memory> Pages<'memory> {
    /// Begins to look; the time of the budget runs from here.
    ///
    /// # Errors
    /// When the mappings cannot be read.
    pub fn new(memory: &'memory Memory, budget: Budget) -> io::Result<Self> {
        let started = Instant::now();
        Ok(Self {
            memory,
            mappings: memory.mappings()?,
            guarded: guarded::ranges(memory.pid)?,
            cache: BTreeMap::new(),
            budget,
            started,
            unpaused: 0,
            bytes: 0,
            reads: 0,
        })
    }

    /// Fetches the pages with these numbers, which are sorted, neighbours
    /// together.
    pub fn fetch(&mut self, numbers: &[u64]) {
        let mut run: Option<(u64, u64)> = None;
        for number in numbers {
            if self.cache.contains_key(number) {
                continue;
            }
            run = match run {
                Some((first, count)) if *number < first + count => run,
                Some((first, count)) if *number == first + count && count < MAX_RUN => {
                    Some((first, count + 1))
                }
                other => {
                    if let Some((first, count)) = other {
                        self.fetch_run(first, count);
                    }
                    Some((*number, 1))
                }
            };
        }
        if let Some((first, count)) = run {
            self.fetch_run(first, count);
        }
    }

    /// Forgets what was fetched, so that the next look is a new one.
    pub fn forget(&mut self) {
        self.cache.clear();
    }

    /// Forgets the page that holds `address`.
    pub fn forget_page(&mut self, address: u64) {
        self.cache.remove(&(address / PAGE));
    }

    /// The eight bytes at `address`.
    pub fn word(&mut self, address: u64) -> Result<u64, Absent> {
        let mut word = [0; 8];
        self.copy(address, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Whether writable anonymous memory is mapped at `address`.
    pub fn is_heap(&self, address: u64) -> bool {
        mapping_at(&self.mappings, address).is_some_and(|mapping| {
            mapping.writable && !mapping.shared && !mapping.path.starts_with(b"[stack")
        })
    }

    fn copy(&mut self, address: u64, into: &mut [u8]) -> Result<(), Absent> {
        let mut at = address;
        let mut rest = into;
        while !rest.is_empty() {
            let (number, offset) = (at / PAGE, (at % PAGE) as usize);
            if !self.cache.contains_key(&number) {
                self.fetch_run(number, 1);
            }
            let page = match self.cache.get(&number) {
                Some(Ok(page)) => page,
                Some(Err(why)) => return Err(*why),
                None => return Err(Absent::OverBudget),
            };
            let length = rest.len().min(PAGE as usize - offset);
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(page.get(offset..offset + length).ok_or(Absent::Failed)?);
            rest = later;
            at = at.checked_add(length as u64).ok_or(Absent::Unmapped)?;
        }
        Ok(())
    }

    /// Fetches `count` pages from `first` on, at most [`MAX_RUN`].
    fn fetch_run(&mut self, first: u64, count: u64) {
        if self.is_over_budget() {
            for number in first..first.saturating_add(count) {
                self.cache.insert(number, Err(Absent::OverBudget));
            }
            return;
        }
        let states = self.states(first, count);
        let mut number = first;
        for states in states.chunk_by(|a, b| a == b) {
            let length = states.len() as u64;
            match states.first() {
                Some(Ok(())) => self.read_run(number, length),
                Some(Err(why)) => {
                    for number in number..number + length {
                        self.cache.insert(number, Err(*why));
                    }
                }
                None => {}
            }
            number += length;
        }
        self.unpaused += count.max(LEAST_RUN);
        if self.unpaused >= MAX_RUN && !self.budget.pause.is_zero() {
            self.unpaused = 0;
            thread::sleep(self.budget.pause);
        }
    }

    fn is_over_budget(&self) -> bool {
        self.bytes >= self.budget.bytes || self.started.elapsed() >= self.budget.time
    }

    /// Which of the pages can be read.
    fn states(&self, first: u64, count: u64) -> Vec<Result<(), Absent>> {
        let mut entries = vec![0u8; count as usize * 8];
        let length = match self
            .memory
            .pagemap
            .read_at(&mut entries, first.saturating_mul(8))
        {
            // Beyond the end of the address space, or there is none any more.
            Ok(0) => {
                let gone = !self.memory.is_there().unwrap_or(false);
                let why = if gone {
                    Absent::Ended
                } else {
                    Absent::Unmapped
                };
                return vec![Err(why); count as usize];
            }
            Ok(length) => length,
            Err(_) => return vec![Err(Absent::Failed); count as usize],
        };
        entries.truncate(length);
        let mut states: Vec<Result<(), Absent>> = (first..)
            .zip(entries.chunks_exact(8))
            .map(|(number, entry)| {
                let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                self.state(number.saturating_mul(PAGE), entry)
            })
            .collect();
        states.resize(count as usize, Err(Absent::Unmapped));
        states
    }

    fn state(&self, address: u64, entry: u64) -> Result<(), Absent> {
        let mapping = mapping_at(&self.mappings, address).ok_or(Absent::Unmapped)?;
        let guarded = self
            .guarded
            .iter()
            .any(|(start, end)| (*start..*end).contains(&address));
        if guarded || !may_be_read(mapping) {
            return Err(Absent::Refused);
        }
        match entry {
            _ if entry & SWAPPED != 0 => Err(Absent::Swapped),
            _ if entry & PRESENT == 0 => Err(Absent::Hole),
            _ if entry & FILE_OR_SHARED != 0 => Err(Absent::Refused),
            _ => Ok(()),
        }
    }

    fn read_run(&mut self, first: u64, count: u64) {
        let mut buffer = vec![0u8; (count * PAGE) as usize];
        let outcome = self.memory.contents.read_at(&mut buffer, first * PAGE);
        self.reads += 1;
        self.bytes += count * PAGE;
        let length = outcome.as_ref().copied().unwrap_or(0);
        let why = match outcome {
            Ok(0) => Absent::Ended,
            // Unmapped between the look at pagemap and the read.
            Ok(_) => Absent::Unmapped,
            Err(why) if why.raw_os_error() == Some(libc::EIO) => Absent::Unmapped,
            Err(_) => Absent::Failed,
        };
        let complete = length / PAGE as usize;
        for (index, number) in (first..first + count).enumerate() {
            let from = index * PAGE as usize;
            let page = buffer
                .get(from..from + PAGE as usize)
                .filter(|_| index < complete)
                .and_then(|bytes| <[u8; PAGE as usize]>::try_from(bytes).ok());
            self.cache.insert(number, page.map(Box::new).ok_or(why));
        }
    }
}

fn mapping_at(mappings: &[Mapping], address: u64) -> Option<&Mapping> {
    let after = mappings.partition_point(|mapping| mapping.start <= address);
    let mapping = mappings.get(after.checked_sub(1)?)?;
    (address < mapping.end).then_some(mapping)
}

/// Heap memory: without a file, or a private copy of a file's page, which
/// musl's allocator uses. Device files, huge pages (`/anon_hugepage`) and
/// whatever the kernel names in brackets are left alone.
fn may_be_read(mapping: &Mapping) -> bool {
    let path = mapping.path.as_slice();
    let kind = path.is_empty()
        || path == b"[heap]"
        || path.starts_with(b"[anon:")
        || mapping.is_file() && !path.starts_with(b"/dev/") && !path.starts_with(b"/anon_hugepage");
    kind && mapping.readable && !mapping.shared
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget {
        bytes: 1 << 20,
        time: Duration::from_secs(5),
        pause: Duration::ZERO,
    };

    fn pages_of_own(count: usize, flags: libc::c_int) -> u64 {
        // SAFETY: a new mapping somewhere; it stays until the test ends.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * PAGE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(place, libc::MAP_FAILED);
        place as u64
    }

    fn is_present(memory: &Memory, address: u64) -> bool {
        let mut entry = [0; 8];
        memory
            .pagemap
            .read_exact_at(&mut entry, address / PAGE * 8)
            .unwrap();
        u64::from_ne_bytes(entry) & PRESENT != 0
    }

    #[test]
    fn faults_nothing_in() {
        let place = pages_of_own(3, libc::MAP_PRIVATE);
        // SAFETY: the middle page of our own mapping.
        unsafe { *((place + PAGE) as *mut u64) = 77 };
        let memory = Memory::open(std::process::id()).unwrap();
        let mut pages = Pages::new(&memory, BUDGET).unwrap();
        pages.fetch(&[place / PAGE, place / PAGE + 1, place / PAGE + 2]);
        assert_eq!(pages.word(place), Err(Absent::Hole));
        assert_eq!(pages.word(place + PAGE), Ok(77));
        assert_eq!(pages.word(place + 2 * PAGE - 4), Err(Absent::Hole));
        assert_eq!((pages.reads, pages.bytes), (1, PAGE));
        assert!(!is_present(&memory, place));
    }

    #[test]
    fn refuses_shared_memory_and_code() {
        let place = pages_of_own(1, libc::MAP_SHARED);
        // SAFETY: our own mapping.
        unsafe { *(place as *mut u64) = 77 };
        let memory = Memory::open(std::process::id()).unwrap();
        let mut pages = Pages::new(&memory, BUDGET).unwrap();
        assert_eq!(pages.word(place), Err(Absent::Refused));
        let code = refuses_shared_memory_and_code as fn() as usize as u64;
        assert_eq!(pages.word(code & !7), Err(Absent::Refused));
        assert_eq!(pages.word(8), Err(Absent::Unmapped));
        assert_eq!(pages.word(u64::MAX - 3), Err(Absent::Unmapped));
    }

    #[test]
    fn stops_at_the_budget() {
        let place = pages_of_own(2, libc::MAP_PRIVATE);
        // SAFETY: our own mapping.
        unsafe {
            *(place as *mut u64) = 1;
            *((place + PAGE) as *mut u64) = 2;
        }
        let memory = Memory::open(std::process::id()).unwrap();
        let budget = Budget {
            bytes: PAGE,
            ..BUDGET
        };
        let mut pages = Pages::new(&memory, budget).unwrap();
        assert_eq!(pages.word(place), Ok(1));
        assert_eq!(pages.word(place + PAGE), Err(Absent::OverBudget));
    }

    #[test]
    fn an_ended_process_reads_as_ended() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let start = crate::host::process::start_time(child.id()).unwrap();
        let memory = Memory::open_process(child.id(), start).unwrap();
        assert!(Memory::open_process(child.id(), start + 1).is_err());
        let heap = loop {
            let mappings = memory.mappings().unwrap();
            if let Some(heap) = mappings.iter().find(|m| m.path == b"[heap]") {
                break heap.start;
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(memory.mappings().unwrap().is_empty());
        let mut pages = Pages::new(&memory, BUDGET).unwrap();
        assert_eq!(pages.word(heap), Err(Absent::Ended));
    }
}
