//! Reading a target's memory without changing it.
//!
//! `/proc/PID/mem` only: `process_vm_readv` would unshare copy-on-write pages.
//! And only private pages that are present: reading others would fault them
//! in, or block in a handler that is not ours (userfaultfd, network files).

mod deadline;
mod guarded;
mod identity;
mod own_page;
mod pages;

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, Ordering},
};

use super::mapping::{self, Mapping};

pub use self::{
    deadline::with_deadline,
    own_page::PageBytes,
    pages::{Absent, Budget, PAGE, Pages},
};

/// Largest piece read at once: the target's mmap lock is held meanwhile.
pub const MAX_PIECE: usize = 64 << 10;
/// Bits of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;

/// Open descriptors on one address space. They belong to the address space,
/// not to the process id: after an exec or the process's end all of them read
/// nothing, and never something else.
pub struct Memory {
    pid: u32,
    contents: File,
    pagemap: File,
    maps: File,
    /// A read did not come back within its deadline.
    stuck: AtomicBool,
}

impl Memory {
    /// Opens the memory of whatever process has this id.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            contents: File::open(format!("/proc/{pid}/mem"))?,
            pagemap: File::open(format!("/proc/{pid}/pagemap"))?,
            maps: File::open(format!("/proc/{pid}/maps"))?,
            stuck: AtomicBool::new(false),
        })
    }

    /// Opens the memory of the process that started at `start_time` (clock
    /// ticks since boot), which a pidfd holds on to meanwhile.
    ///
    /// # Errors
    /// `NotFound` when that process has ended, or what the kernel answers.
    pub fn open_process(pid: u32, start_time: u64) -> io::Result<Self> {
        let process = identity::Held::of(pid)?;
        if super::process::start_time(pid)? != start_time {
            return Err(io::ErrorKind::NotFound.into());
        }
        let memory = Self::open(pid)?;
        // As long as the pidfd's process is not reaped, its id is not reused.
        if !process.exists() || !memory.is_there()? {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(memory)
    }

    /// The mappings now, sorted by address; empty when the address space is
    /// gone.
    pub fn mappings(&self) -> io::Result<Vec<Mapping>> {
        let mut text = Vec::new();
        let mut piece = vec![0; MAX_PIECE];
        while text.len() < mapping::MAX_BYTES as usize {
            match self.maps.read_at(&mut piece, text.len() as u64) {
                Ok(0) => break,
                Ok(length) => text.extend_from_slice(piece.get(..length).unwrap_or_default()),
                Err(why) if why.raw_os_error() == Some(libc::ESRCH) => return Ok(Vec::new()),
                Err(why) => return Err(why),
            }
        }
        Ok(mapping::parse_all(&text))
    }

    /// Whether the address space still exists.
    pub fn is_there(&self) -> io::Result<bool> {
        Ok(self.pagemap.read_at(&mut [0; 8], 0)? == 8)
    }

    /// A read has not come back: nothing more is to be read.
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Gives this memory up.
    pub fn abandon(&self) {
        self.stuck.store(true, Ordering::Relaxed);
    }

    /// Fills `buffer` from `address`, which must lie in `mapping`.
    ///
    /// # Errors
    /// `Unsupported` for mappings that must not be read, `WouldBlock` for a
    /// page that is not present, or what the kernel answers.
    pub fn read(&self, mapping: &Mapping, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = address.saturating_add(buffer.len() as u64);
        let inside = mapping.start <= address && end <= mapping.end;
        if !inside || buffer.len() > MAX_PIECE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if mapping.shared || !mapping.readable || mapping.path.starts_with(b"[vvar") {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // The vDSO's pages belong to the kernel, which does not list them.
        let mut page = if mapping.path == b"[vdso]" {
            end
        } else {
            address & !(PAGE - 1)
        };
        while page < end {
            let mut entry = [0u8; 8];
            self.pagemap.read_exact_at(&mut entry, page / PAGE * 8)?;
            if u64::from_ne_bytes(entry) & PRESENT == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            page += PAGE;
        }
        self.contents.read_exact_at(buffer, address)
    }

    /// Reads one word; see [`Self::read`].
    pub fn word(&self, mappings: &[Mapping], address: u64) -> io::Result<u64> {
        let mapping = mappings
            .iter()
            .find(|mapping| mapping.start <= address && address.saturating_add(8) <= mapping.end)
            .ok_or(io::ErrorKind::NotFound)?;
        let mut word = [0u8; 8];
        self.read(mapping, address, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mapping;

    #[test]
    fn reads_present_private_pages_only() {
        let pid = std::process::id();
        let Ok(memory) = Memory::open(pid) else {
            println!("skipped: /proc/self/mem is not readable here");
            return;
        };
        let value = Box::new(0x1234_5678_9abc_def0_u64);
        let mappings = mapping::of(pid).unwrap();
        assert_eq!(
            memory.word(&mappings, &raw const *value as u64).unwrap(),
            *value
        );
        assert_eq!(
            memory.word(&mappings, 8).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
