//! Unwind tables and mappings, as the kernel unwinder reads them.

use super::assert_size;

/// Rows in one chunk of the unwind tables.
pub const CHUNK_ROWS: usize = 1 << 16;
/// Chunks that all files together may use: 512 KiB each.
pub const MAX_CHUNKS: u32 = 256;
/// Pieces of executable mappings per process.
pub const MAX_MAPPINGS: usize = 256;
/// Frames kept of one stack.
pub const MAX_FRAMES: usize = 128;

/// One row: the rule from its address to the next row's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Start, as a virtual address of the file.
    pub pc: u32,
    /// Distance from the base register to the canonical frame address, bytes.
    pub cfa_offset: u16,
    /// Where the caller's rbp is saved, in words from the canonical frame
    /// address; [`Row::RBP_KEPT`]: rbp is unchanged.
    pub rbp_offset: i8,
    /// One of the constants below.
    pub kind: u8,
}
assert_size!(Row, 8);

impl Row {
    /// No rule: a gap, or one this version cannot follow.
    pub const NONE: u8 = 0;
    /// Canonical frame address = rsp + offset.
    pub const RSP: u8 = 1;
    /// Canonical frame address = rbp + offset.
    pub const RBP: u8 = 2;
    /// The expression that linkers write for procedure linkage tables.
    pub const PLT: u8 = 3;
    /// The outermost frame: the return address is undefined.
    pub const END: u8 = 4;
    /// A signal trampoline: registers come from the signal frame.
    pub const SIGNAL: u8 = 5;
    /// Marks an rbp that the function has not saved.
    pub const RBP_KEPT: i8 = 127;
}

/// Part of an executable mapping, with its rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Address in the process minus virtual address in the file.
    pub bias: u64,
    /// Index of the chunk.
    pub chunk: u32,
    /// One past the last row in the chunk.
    pub end_row: u32,
    /// First index entry in the chunk; an entry's `pc` is a row's place there.
    pub index_row: u32,
    /// Page of the first index entry.
    pub first_page: u32,
    /// Pages with an entry of their own; one more entry follows.
    pub pages: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(Mapping, 48);

/// All executable mappings of a process, sorted by start.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mappings {
    /// Valid entries.
    pub len: u32,
    /// Another one for each list that is given to the kernel, of whatever
    /// process: names what rules were found by.
    pub generation: u32,
    /// The entries.
    pub list: [Mapping; MAX_MAPPINGS],
}
assert_size!(Mappings, 8 + 48 * MAX_MAPPINGS);

/// How an unwound stack ends.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackEnd {
    /// At the thread's outermost frame.
    Complete = 0,
    /// See [`super::loss::Loss::UnknownMapping`].
    UnknownMapping = 1,
    /// See [`super::loss::Loss::NoUnwindRule`].
    NoUnwindRule = 2,
    /// See [`super::loss::Loss::UnreadableStack`].
    UnreadableStack = 3,
    /// See [`super::loss::Loss::StackTooDeep`].
    TooDeep = 4,
}

impl StackEnd {
    /// The end with this number; an unknown number counts as unreadable.
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Complete,
            1 => Self::UnknownMapping,
            2 => Self::NoUnwindRule,
            4 => Self::TooDeep,
            _ => Self::UnreadableStack,
        }
    }
}
