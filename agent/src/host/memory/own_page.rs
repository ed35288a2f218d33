//! Pages of mapped files of which a process has a copy of its own.

use std::{io, os::unix::fs::FileExt as _};

use super::{
    Memory, PRESENT,
    pages::{FILE_OR_SHARED, PAGE, SWAPPED},
};

/// A page's bytes.
pub type PageBytes = Box<[u8; PAGE as usize]>;

impl Memory {
    /// The page at `address`, of a private mapping of a file, if the process
    /// has a copy of its own: somebody has written to it, the kernel for a
    /// breakpoint included. None: the page is the file's, or is not there and
    /// would be taken from the file.
    ///
    /// A page that is not there is never fetched, unless it went away or came
    /// back between two calls of the kernel; to be called with a deadline.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn own_page(&self, address: u64) -> io::Result<Option<PageBytes>> {
        let mut entry = [0u8; 8];
        self.pagemap.read_exact_at(&mut entry, address / PAGE * 8)?;
        let entry = u64::from_ne_bytes(entry);
        let there = entry & PRESENT != 0 && entry & FILE_OR_SHARED == 0;
        if !there && entry & SWAPPED == 0 {
            return Ok(None);
        }
        let mut bytes = Box::new([0; PAGE as usize]);
        self.contents.read_exact_at(&mut bytes[..], address)?;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsRawFd as _};

    #[test]
    fn tells_a_copy_from_the_files_page() {
        let path = std::env::temp_dir().join(format!("own-page-{}", std::process::id()));
        std::fs::write(&path, [7u8; PAGE as usize]).unwrap();
        let file = File::open(&path).unwrap();
        // SAFETY: a new mapping of our own file, given back below.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        let memory = Memory::open(std::process::id()).unwrap();
        let own = || memory.own_page(page as u64).unwrap();
        assert_eq!(own(), None, "never touched");
        // SAFETY: mapped above, and nobody else knows it.
        unsafe {
            assert_eq!(page.cast::<u8>().read_volatile(), 7);
            assert_eq!(own(), None, "only read");
            page.cast::<u8>().write_volatile(8);
            let bytes = own().expect("written to");
            assert_eq!(bytes[..2], [8, 7]);
            assert_eq!(libc::madvise(page, PAGE as usize, libc::MADV_DONTNEED), 0);
            assert_eq!(own(), None, "thrown away");
            libc::munmap(page, PAGE as usize);
        }
        std::fs::remove_file(path).unwrap();
    }
}
