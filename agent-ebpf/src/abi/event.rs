//! Records of the ring buffer. Each starts with [`Header`].

use super::{assert_size, stack::MAX_FRAMES};

/// Common start of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// One of the constants below.
    pub kind: u32,
    /// Process it is about.
    pub tgid: u32,
}
assert_size!(Header, 8);

impl Header {
    /// A [`StackRecord`].
    pub const STACK: u32 = 1;
    /// A [`ProcessRecord`]: a target forked.
    pub const FORK: u32 = 2;
    /// A [`ProcessRecord`]: a target runs another program.
    pub const EXEC: u32 = 3;
    /// An [`super::ending::ExitRecord`]: a target, or a process that was one
    /// until lately, has ended.
    pub const EXIT: u32 = 4;
    /// A [`MappingRecord`]: code outside every known mapping was met.
    pub const MAPPING: u32 = 5;
}

/// The frames of an allocation stack, once per distinct stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StackRecord {
    /// `STACK`.
    pub header: Header,
    /// Epoch of the process.
    pub epoch: u32,
    /// [`super::stack::StackEnd`].
    pub end: u32,
    /// The stack's hash.
    pub hash: u64,
    /// Valid frames.
    pub len: u64,
    /// Code addresses, innermost first: the probed instruction, then return
    /// addresses. Bit 63 marks a frame interrupted by a signal, whose address
    /// is exact and no return address.
    pub frames: [u64; MAX_FRAMES],
}
assert_size!(StackRecord, 32 + 8 * MAX_FRAMES);

impl StackRecord {
    /// Marks a frame whose address is not a return address.
    pub const EXACT: u64 = 1 << 63;
}

/// A fork or exec of a target.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessRecord {
    /// `FORK`, `EXEC` or `START`; the process's tgid.
    pub header: Header,
    /// `FORK`: the child's thread group id. `EXEC`: the new epoch.
    pub detail: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(ProcessRecord, 16);

/// An address that the unwinder could not place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingRecord {
    /// `MAPPING`.
    pub header: Header,
    /// The code address.
    pub address: u64,
}
assert_size!(MappingRecord, 16);
