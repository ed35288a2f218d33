//! How exactly this kernel tells a process's resident pages.
//!
//! The counters behind `statm` and `status` are kept per processor and summed
//! only when asked exactly. What is printed lacks
//! - from 6.16 on: nothing (fs/proc/task_mmu.c sums when it prints);
//! - from 6.2 on: on each processor less than a batch, which is
//!   max(32, 2 × processors) pages (lib/percpu_counter.c,
//!   `compute_batch_value`);
//! - before: less than 64 page faults of each thread
//!   (`TASK_RSS_EVENTS_THRESH`, mm/memory.c).
//!
//! Distributions port the fix back, so it is tried out here: pages are touched
//! one by one, and a kernel that sums shows each of them.

use std::{io, ptr};

use super::{kernel, population::Meter};

/// Pages that are touched; a kernel that does not sum shows none of them, or
/// all at once.
const TOUCHED: usize = 16;

/// How far the printed number may be from the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// Every page shows at once.
    Exact,
    /// Each of this many processors keeps back less than [`batch`] pages.
    PerProcessor {
        /// Number of processors.
        processors: u32,
    },
    /// Each thread keeps back less than 64 pages.
    PerThread,
}

impl Counting {
    /// Tries it out on ourselves.
    ///
    /// # Errors
    /// When our own `statm` cannot be read or no memory is to be had.
    pub fn of_this_kernel() -> io::Result<Self> {
        if shows_single_pages()? {
            return Ok(Self::Exact);
        }
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Ok(match kernel::version(&kernel::release()) {
            Some(version) if version < (6, 2) => Self::PerThread,
            _ => Self::PerProcessor {
                processors: processors.max(kernel::processors()),
            },
        })
    }

    /// Pages by which a difference of two readings of one process may be
    /// wrong.
    ///
    /// Per processor the part kept back is anywhere in a batch on either side,
    /// independently of the others: the difference of two such sums has a
    /// standard deviation of batch × √(2 × processors ÷ 3), and four of them
    /// are taken, or all batches twice where that is less.
    pub fn error_pages(self, threads: u32) -> u64 {
        let parts = |batch: u64, keepers: u64| {
            let most = 2 * batch * keepers;
            let likely = 4.0 * batch as f64 * (2.0 * keepers as f64 / 3.0).sqrt();
            most.min(likely as u64)
        };
        match self {
            Self::Exact => 0,
            Self::PerProcessor { processors } => parts(batch(processors), processors.into()),
            Self::PerThread => parts(64, threads.into()),
        }
    }
}

/// Pages that one processor may keep back.
pub const fn batch(processors: u32) -> u64 {
    let batch = 2 * processors as u64;
    if batch < 32 { 32 } else { batch }
}

fn shows_single_pages() -> io::Result<bool> {
    let meter = Meter::open(std::process::id())?;
    let pages = Pages::map()?;
    let mut before = meter.read()?.anonymous;
    let mut seen = 0;
    for page in 0..TOUCHED {
        pages.touch(page);
        let now = meter.read()?.anonymous;
        seen += usize::from(now > before);
        before = now;
    }
    // Other threads of ours may give memory back meanwhile.
    Ok(seen >= TOUCHED / 2)
}

/// Untouched anonymous pages.
struct Pages {
    start: *mut libc::c_void,
}

impl Pages {
    fn map() -> io::Result<Self> {
        // SAFETY: a new private mapping, placed by the kernel.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Large folios would come in one piece. Refused where the kernel
        // knows none, which is as good.
        // SAFETY: the mapping made above; advice changes no contents.
        unsafe { libc::madvise(start, Self::BYTES, libc::MADV_NOHUGEPAGE) };
        Ok(Self { start })
    }

    const PAGE: usize = 4096;
    const BYTES: usize = TOUCHED * Self::PAGE;

    fn touch(&self, page: usize) {
        let offset = page.min(TOUCHED - 1) * Self::PAGE;
        // SAFETY: inside the mapping, which is writable and ours alone.
        unsafe { self.start.cast::<u8>().add(offset).write_volatile(1) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, which nothing else refers to.
        unsafe { libc::munmap(self.start, Self::BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_sums_is_recognised() {
        let counting = Counting::of_this_kernel().unwrap();
        if kernel::version(&kernel::release()).is_some_and(|version| version >= (6, 16)) {
            assert_eq!(counting, Counting::Exact);
        }
    }

    #[test]
    fn errors_grow_with_what_is_kept_back() {
        let of = |processors| Counting::PerProcessor { processors }.error_pages(1);
        assert_eq!(Counting::Exact.error_pages(100), 0);
        // Two processors: all of both batches, twice.
        assert_eq!(of(2), 128);
        // 128 processors: 256 MiB at most, which never happens.
        assert!(
            (30_000 / 4..40_000 / 4 * 3).contains(&of(128)),
            "{}",
            of(128)
        );
        assert_eq!(Counting::PerThread.error_pages(1), 128);
        assert!(Counting::PerThread.error_pages(1000) < 128_000);
    }
}
