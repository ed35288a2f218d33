//! What keeps the code of a process from being probed, in words.

use thiserror::Error;

use super::MAX_COPIES;

/// Why the code of a process cannot be probed, or not any more; what follows
/// "process N".
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Rewritten {
    /// A page differs from its file.
    #[error(
        "has changed the code of its allocator while it runs (file {file}, from byte {offset:#x}): who rewrites code may copy a breakpoint, of which the process dies; run it without the library that hooks the allocator"
    )]
    Patched {
        /// The file, escaped.
        file: String,
        /// Offset in it.
        offset: u64,
    },
    /// Breakpoints of its own.
    #[error(
        "has breakpoints in the code of its allocator ({file}) and handles their signal itself, which would no longer reach it: run it without its own breakpoints"
    )]
    OwnBreakpoints {
        /// The file, escaped.
        file: String,
    },
    /// The code may be written to.
    #[error(
        "has the code of its allocator ({file}) mapped so that it can write to it, where the kernel sets no breakpoints: run it without the library that rewrites code"
    )]
    Writable {
        /// The file, escaped.
        file: String,
    },
    /// The code was put elsewhere.
    #[error(
        "has replaced a page of the code of its allocator ({file}, byte {offset:#x}) by other memory, where no call is seen: run it without the library that rewrites code"
    )]
    Replaced {
        /// The file, escaped.
        file: String,
        /// Offset in it.
        offset: u64,
    },
    /// Breakpoints are gone.
    #[error(
        "has removed {count} breakpoints from the code of its allocator ({file}), as madvise(MADV_DONTNEED) or a restored page does: its calls are no longer seen"
    )]
    Vanished {
        /// The file, escaped.
        file: String,
        /// How many.
        count: usize,
    },
    /// The file is another by now.
    #[error(
        "runs code of a file that was overwritten meanwhile ({file}): restart it, so that code and file agree"
    )]
    Overwritten {
        /// The file, escaped.
        file: String,
    },
    /// Breakpoints would take too much memory.
    #[error(
        "maps the code of its allocator ({file}) {mappings} times: breakpoints would cost it {} KiB for copies of pages, and {} KiB are the limit; run it without what maps code again and again",
        copies * 4,
        MAX_COPIES * 4
    )]
    Copies {
        /// The file, escaped.
        file: String,
        /// Mappings of one page.
        mappings: u64,
        /// Pages in all.
        copies: u64,
    },
    /// Not to be compared.
    #[error("has code that cannot be compared with its file ({file}): {why}")]
    Unreadable {
        /// The file, escaped.
        file: String,
        /// What the system says.
        why: String,
    },
}
