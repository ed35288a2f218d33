//! A process's writable private memory, read piece by piece: where its heap
//! and its threads' stacks are.
//!
//! The rules are those of [`super::memory`]: `/proc/PID/mem`, pages that are
//! present, at most [`MAX_PIECE`] at once, with pauses, because the target's
//! mmap lock is held meanwhile. Mappings of devices, huge page pools and
//! userfaultfd are left out altogether, and so are pages of files, which a
//! file system might have to fetch again.

use std::{
    fs::File,
    io::{self, BufReader, Read as _},
    os::unix::fs::FileExt as _,
    thread,
    time::Duration,
};

use super::{
    mapping::{self, Mapping},
    memory::MAX_PIECE,
    process::Process,
};

const PAGE: u64 = 4096;
/// Bits of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
/// Entries of the page map that are read at once.
const ENTRIES: usize = 8192;
/// A pause is made after so many bytes.
const PAUSE_EVERY: u64 = 1 << 20;
const PAUSE: Duration = Duration::from_micros(50);
/// Longest list of mappings that is read.
const MAX_BYTES: u64 = 128 << 20;
/// Flags of mappings that must not be read (Documentation/filesystems/proc.rst):
/// devices, pages without a struct page, huge page pools, userfaultfd.
const FORBIDDEN: [&str; 6] = ["io", "pf", "ht", "um", "uw", "ui"];

/// Memory of one process, open for reading.
pub struct Heap {
    memory: File,
    pagemap: File,
    /// Sorted by address.
    regions: Vec<Mapping>,
}

/// How much was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes read.
    pub read: u64,
    /// Bytes in swap, which reading would have fetched.
    pub swapped: u64,
    /// Bytes that went away while they were read.
    pub lost: u64,
}

impl Heap {
    /// Opens a process's memory.
    ///
    /// # Errors
    /// `NotFound` when the process is gone, `PermissionDenied` without the
    /// privilege, or what the kernel answers.
    pub fn open(process: &Process) -> io::Result<Self> {
        let pid = process.pid;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        let smaps = File::open(format!("/proc/{pid}/smaps"))?.take(MAX_BYTES);
        let regions = regions(BufReader::new(smaps))?;
        // Only now: all of these belong to the process that was meant.
        if !process.is_running() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self {
            memory,
            pagemap,
            regions,
        })
    }

    /// The mappings that are read, sorted by address.
    pub fn regions(&self) -> &[Mapping] {
        &self.regions
    }

    /// The mapping that holds an address.
    pub fn region(&self, address: u64) -> Option<&Mapping> {
        let after = self
            .regions
            .partition_point(|region| region.start <= address);
        let region = self.regions.get(after.checked_sub(1)?)?;
        (address < region.end).then_some(region)
    }

    /// Reads what is present of a mapping, in pieces of whole pages.
    /// `visit` gets each with its address.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn scan(&self, region: &Mapping, mut visit: impl FnMut(u64, &[u8])) -> io::Result<Scanned> {
        let mut scanned = Scanned::default();
        let mut entries = vec![0u8; ENTRIES * 8];
        let mut buffer = vec![0u8; MAX_PIECE];
        let mut since_pause = 0;
        let mut address = region.start;
        while address < region.end {
            let pages = ((region.end - address) / PAGE).min(ENTRIES as u64) as usize;
            let Some(list) = entries.get_mut(..pages * 8) else {
                break;
            };
            let known = self.pagemap.read_at(list, address / PAGE * 8)? / 8;
            if known == 0 {
                break;
            }
            let (words, _) = list.as_chunks::<8>();
            let words = words.get(..known).unwrap_or_default();
            for (start, length) in runs(words, &mut scanned.swapped) {
                let mut from = address + start * PAGE;
                let end = from + length * PAGE;
                while from < end {
                    let size = (end - from).min(MAX_PIECE as u64);
                    let Some(piece) = buffer.get_mut(..size as usize) else {
                        break;
                    };
                    let got = self.read_some(from, piece);
                    if let Some(bytes) = piece.get(..got).filter(|bytes| !bytes.is_empty()) {
                        visit(from, bytes);
                    }
                    scanned.read += got as u64;
                    scanned.lost += size - got as u64;
                    from += size;
                    since_pause += size;
                    if since_pause >= PAUSE_EVERY {
                        since_pause = 0;
                        thread::sleep(PAUSE);
                    }
                }
            }
            address += known as u64 * PAGE;
        }
        Ok(scanned)
    }

    /// Whole pages from here on; fewer where one went away.
    fn read_some(&self, address: u64, buffer: &mut [u8]) -> usize {
        match self.memory.read_at(buffer, address) {
            Ok(got) => got & !7,
            Err(_) => 0,
        }
    }

    /// Fills `buffer` from an address in one of the mappings.
    ///
    /// # Errors
    /// `NotFound` outside of them, `WouldBlock` for pages that are not present
    /// or a file's, or what the kernel answers.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = address.saturating_add(buffer.len() as u64);
        let inside = self.region(address).is_some_and(|region| end <= region.end);
        if !inside || buffer.len() > MAX_PIECE {
            return Err(io::ErrorKind::NotFound.into());
        }
        let first = address / PAGE;
        let count = (end.saturating_sub(1) / PAGE - first + 1) as usize;
        let mut entries = [0u8; (MAX_PIECE / 4096 + 1) * 8];
        let list = entries
            .get_mut(..count * 8)
            .ok_or(io::ErrorKind::InvalidInput)?;
        self.pagemap.read_exact_at(list, first * 8)?;
        let (words, _) = list.as_chunks::<8>();
        if words
            .iter()
            .any(|word| !is_readable(u64::from_ne_bytes(*word)))
        {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.memory.read_exact_at(buffer, address)
    }

    /// One word; see [`Self::read`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn word(&self, address: u64) -> io::Result<u64> {
        let mut word = [0u8; 8];
        self.read(address, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }
}

/// Whether the page of an entry is there and the process's own.
fn is_readable(entry: u64) -> bool {
    entry & (PRESENT | OF_FILE) == PRESENT
}

/// Runs of pages that may be read: first page and number.
fn runs(entries: &[[u8; 8]], swapped: &mut u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (page, entry) in entries.iter().enumerate() {
        let (page, entry) = (page as u64, u64::from_ne_bytes(*entry));
        if !is_readable(entry) {
            *swapped += if entry & SWAPPED == 0 { 0 } else { PAGE };
            continue;
        }
        match runs.last_mut() {
            Some((start, length)) if *start + *length == page => *length += 1,
            _ => runs.push((page, 1)),
        }
    }
    runs
}

/// The private, readable and writable mappings of `/proc/PID/smaps` that may
/// be read, but for the main thread's stack.
fn regions(smaps: impl io::BufRead) -> io::Result<Vec<Mapping>> {
    let mut regions: Vec<Mapping> = Vec::new();
    let mut candidate: Option<Mapping> = None;
    for line in smaps.split(b'\n') {
        let line = line?;
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let flags = String::from_utf8_lossy(flags);
            let forbidden = flags
                .split_whitespace()
                .any(|flag| FORBIDDEN.contains(&flag));
            regions.extend(candidate.take().filter(|_| !forbidden));
        } else if let Some(mapping) = mapping::parse(&line) {
            // A mapping whose flags the kernel does not tell is not read.
            candidate = is_wanted(&mapping).then_some(mapping);
        }
    }
    Ok(regions)
}

fn is_wanted(mapping: &Mapping) -> bool {
    let special = mapping.path.starts_with(b"[")
        && mapping.path != b"[heap]"
        && !mapping.path.starts_with(b"[anon:");
    mapping.readable && mapping.writable && !mapping.shared && !special
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_what_this_process_has_written() {
        let me = Process::of(std::process::id()).unwrap();
        let Ok(heap) = Heap::open(&me) else {
            println!("skipped: /proc/self/mem is not readable here");
            return;
        };
        let mark = std::hint::black_box(0x1357_9bdf_0246_8ace_u64);
        let value = Box::new([mark ^ 0xffff; 600]);
        let address = value.as_ptr() as u64;
        let heap = Heap::open(&me).unwrap_or(heap);
        let region = heap.region(address).unwrap().clone();
        assert_eq!(heap.word(address).unwrap(), value[0]);
        let mut found = false;
        let scanned = heap
            .scan(&region, |start, bytes| {
                assert!(start % 8 == 0 && bytes.len() <= MAX_PIECE);
                let at = address.wrapping_sub(start) as usize;
                found |= bytes
                    .get(at..at.wrapping_add(8))
                    .is_some_and(|word| word == value[0].to_ne_bytes());
            })
            .unwrap();
        assert!(found && scanned.read > 0);
        assert_eq!(
            heap.word(16).unwrap_err().kind(),
            io::ErrorKind::NotFound,
            "outside of every mapping"
        );
        let local = 0u64;
        assert!(
            heap.regions()
                .iter()
                .all(|region| region.path != b"[stack]")
        );
        std::hint::black_box(&local);
    }

    #[test]
    fn what_must_not_be_read_is_left_out() {
        let smaps = b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \nRss: 4 kB\nVmFlags: rd wr mr mw me ac \n\
            7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \nVmFlags: rd wr um \n\
            7f0000004000-7f0000005000 rw-s 00000000 00:05 7 /dev/x\nVmFlags: rd wr io \n\
            7f0000006000-7f0000007000 r--p 00000000 00:00 0 \nVmFlags: rd \n\
            7f0000008000-7f0000009000 rw-p 00000000 00:00 0 [stack]\nVmFlags: rd wr \n\
            7f000000a000-7f000000b000 rw-p 00000000 00:00 0 [heap]\nVmFlags: rd wr \n\
            7f000000c000-7f000000d000 rw-p 00000000 00:00 0 [anon:x]\n";
        let found = regions(&smaps[..]).unwrap();
        let starts: Vec<u64> = found.iter().map(|region| region.start).collect();
        assert_eq!(starts, [0x7f00_0000_0000, 0x7f00_0000_a000]);
    }

    #[test]
    fn neighbouring_pages_are_read_together() {
        let entry = |bits: u64| bits.to_ne_bytes();
        let entries = [PRESENT, PRESENT, 0, SWAPPED, PRESENT, PRESENT | OF_FILE].map(entry);
        let mut swapped = 0;
        assert_eq!(runs(&entries, &mut swapped), [(0, 2), (4, 1)]);
        assert_eq!(swapped, PAGE);
    }

    proptest! {
        #[test]
        fn arbitrary_lists_are_no_trouble(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = regions(text.as_slice());
        }
    }
}
