//! Memory of a kernel map that both sides see at once.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

/// The values of an array map, as words.
pub(super) struct MappedWords {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: plain memory, touched through atomics only; its mapping does not
// depend on a thread.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps the first `words` words of a map made for it (`BPF_F_MMAPABLE`).
    ///
    /// # Errors
    /// What the kernel answers, also when the map is smaller.
    pub(super) fn map(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                words * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, words })
    }

    /// The words; kernel programs change them at any time.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped from here to the drop, page-aligned, and every
        // pattern of bits is a word.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and no slice of it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}
