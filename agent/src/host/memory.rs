//! Reading a target's memory without changing it.
//!
//! `/proc/PID/mem` only: `process_vm_readv` would unshare copy-on-write pages.
//! And only private pages that are present: reading others would fault them
//! in, or block in a handler that is not ours (userfaultfd, network files).

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::mapping::Mapping;

/// Largest piece read at once: the target's mmap lock is held meanwhile.
pub const MAX_PIECE: usize = 64 << 10;
const PAGE: u64 = 4096;
/// Bits of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;

/// Open descriptors on one process's memory.
pub struct Memory {
    memory: File,
    pagemap: File,
}

impl Memory {
    /// Opens the memory of a process.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self {
            memory: File::open(format!("/proc/{pid}/mem"))?,
            pagemap: File::open(format!("/proc/{pid}/pagemap"))?,
        })
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
        self.memory.read_exact_at(buffer, address)
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
