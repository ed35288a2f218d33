//! Targets, allocator functions, blocks and allocation sites.

use super::assert_size;

/// Processes that can be captured at the same time.
pub const MAX_TARGETS: u32 = 256;

/// What a probed allocator function does with its arguments; the low byte of
/// a probe's cookie.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FunctionKind {
    /// `f(size)`: malloc, valloc, pvalloc, operator new, mallocx(size, …).
    Malloc = 1,
    /// `f(count, size)`: calloc.
    Calloc = 2,
    /// `f(old, size)`: realloc, rallocx(old, size, …).
    Realloc = 3,
    /// `f(old, count, size)`: reallocarray.
    Reallocarray = 4,
    /// `f(alignment, size)`: aligned_alloc, memalign.
    AlignedAlloc = 5,
    /// `f(&result, alignment, size)`, 0 on success: posix_memalign.
    PosixMemalign = 6,
    /// `f(block, …)`: free, cfree, sdallocx, operator delete.
    Free = 7,
    /// `f(old, size, alignment)` where the alignment does not matter here:
    /// mi_realloc_aligned.
    ReallocAligned = 8,
    /// `f(size, alignment)`: mi_malloc_aligned.
    MallocAligned = 9,
    /// `f(count, size, alignment)`: mi_calloc_aligned.
    CallocAligned = 10,
}

impl FunctionKind {
    /// Whether it resizes a block, which may give it another address.
    pub const fn moves(self) -> bool {
        matches!(
            self,
            Self::Realloc | Self::Reallocarray | Self::ReallocAligned
        )
    }

    /// The kind with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Malloc,
            2 => Self::Calloc,
            3 => Self::Realloc,
            4 => Self::Reallocarray,
            5 => Self::AlignedAlloc,
            6 => Self::PosixMemalign,
            7 => Self::Free,
            8 => Self::ReallocAligned,
            9 => Self::MallocAligned,
            10 => Self::CallocAligned,
            _ => return None,
        })
    }
}

/// The cookie of one probe: which target it belongs to and what the function
/// does. Bits 0–7 [`FunctionKind`], bit 8 [`Cookie::MAY_NEST`], bit 9
/// [`Cookie::STEPPED`], bits 16–31 slot in the target table, from bit 32 four
/// bits each the registers of the first three arguments. A result point's is
/// [`super::result::ResultCookie`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

impl Cookie {
    /// The function may call another probed function of its family, so that
    /// its end must be seen even when it is not sampled. A function that
    /// frees: a realloc of its family may call it.
    pub const MAY_NEST: u64 = 1 << 8;
    /// The kernel single-steps the probed instruction, which takes ten times
    /// as long as one that it emulates.
    pub const STEPPED: u64 = 1 << 9;

    /// Packs a cookie; `arguments` are the registers that hold the first three,
    /// `rax` 0 to `r15` 15.
    pub const fn new(
        slot: u32,
        kind: FunctionKind,
        arguments: [u8; 3],
        may_nest: bool,
        stepped: bool,
    ) -> Self {
        let nest = if may_nest { Self::MAY_NEST } else { 0 };
        let stepped = if stepped { Self::STEPPED } else { 0 };
        let [first, second, third] = arguments;
        let registers =
            (first & 0xf) as u64 | ((second & 0xf) as u64) << 4 | ((third & 0xf) as u64) << 8;
        Self(kind as u64 | nest | stepped | ((slot as u64) << 16) | registers << 32)
    }

    /// The register of an argument, 0 to 2.
    pub const fn argument(self, index: u32) -> u8 {
        (self.0 >> (32 + 4 * index) & 0xf) as u8
    }

    /// Whether the kernel single-steps the probed instruction.
    pub const fn is_stepped(self) -> bool {
        self.0 & Self::STEPPED != 0
    }

    /// Number of the function kind.
    pub const fn kind(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Whether the function may call, or be called by, another one.
    pub const fn may_nest(self) -> bool {
        self.0 & Self::MAY_NEST != 0
    }

    /// Slot in the target table.
    pub const fn slot(self) -> u32 {
        ((self.0 >> 16) & 0xffff) as u32
    }
}

/// How to find Tokio's current task id of a thread; see `tokio_rt::tls`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskIdRecipe {
    /// One of the `KIND_*` constants.
    pub kind: u32,
    /// 1: an `Option<u64>` of two words, the tag in front of the value
    /// (Tokio 1.22 to 1.39). 0: one word, 0 for none.
    pub has_tag: u32,
    /// `KIND_STATIC`: the TLS block starts this many bytes below the thread
    /// pointer. `KIND_DTV`: byte offset of the module's entry in the DTV.
    pub block: u64,
    /// Byte offset of the id's value within the TLS block.
    pub slot: u64,
}

impl TaskIdRecipe {
    /// Nothing to read.
    pub const KIND_NONE: u32 = 0;
    /// The block lies at a fixed distance below the thread pointer.
    pub const KIND_STATIC: u32 = 1;
    /// The block is found through the dynamic thread vector (glibc).
    pub const KIND_DTV: u32 = 2;
}
assert_size!(TaskIdRecipe, 24);

/// One process under capture.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Thread group id as the kernel sees it; 0: the slot is free.
    pub tgid: u32,
    /// Zero.
    pub reserved: u32,
    /// Sampling mean in bytes; 0 or 1: every allocation;
    /// [`Target::COUNT_ONLY`]: none.
    pub mean: u64,
    /// [`crate::logic::sampling::scale`] of the mean.
    pub scale: u64,
    /// Where the Tokio task id is.
    pub task_id: TaskIdRecipe,
}
assert_size!(Target, 48);

impl Target {
    /// A mean that records nothing: calls are only counted.
    pub const COUNT_ONLY: u64 = u64::MAX;

    /// Sets the mean. A call that is just being looked at may be sampled by the
    /// one and recorded under the other.
    pub const fn set_mean(&mut self, mean: u64) {
        self.mean = mean;
        self.scale = crate::logic::sampling::scale(mean);
    }
}

/// Names a live block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// Owner's thread group id.
    pub tgid: u32,
    /// Owner's epoch when the block was allocated.
    pub epoch: u32,
    /// Address the allocator returned.
    pub address: u64,
}
assert_size!(BlockKey, 16);

/// A sampled block that has not been freed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Requested size in bytes.
    pub size: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub born_ns: u64,
    /// Hash of the allocation stack.
    pub stack: u64,
    /// Tokio task id, 0 for none.
    pub task: u64,
    /// Sampling mean in force at the allocation.
    pub mean: u64,
}
assert_size!(Block, 40);

impl Block {
    /// No block.
    pub const NONE: Self = Self {
        size: 0,
        born_ns: 0,
        stack: 0,
        task: 0,
        mean: 0,
    };
}

/// What one allocation site did since the capture began; sampled events,
/// unweighted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Process of the site.
    pub tgid: u32,
    /// Epoch of the site.
    pub epoch: u32,
    /// 1 once the frames were sent to user space.
    pub announced: u64,
    /// Sampled blocks allocated here.
    pub allocated: u64,
    /// Their bytes.
    pub allocated_bytes: u64,
    /// Those of them that were freed.
    pub freed: u64,
    /// Their bytes.
    pub freed_bytes: u64,
    /// Longest life of a freed block, nanoseconds.
    pub longest_life_ns: u64,
    /// Sum of the lives of the freed blocks, microseconds.
    pub lives_us: u64,
}
assert_size!(Site, 64);

/// Counters of one target; kept per CPU, so user space adds them up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetCounts {
    /// Calls of allocating functions, sampled or not.
    pub allocations: u64,
    /// Bytes they asked for.
    pub allocated_bytes: u64,
    /// Calls of freeing functions with a block; a realloc of a block counts
    /// here as well.
    pub frees: u64,
    /// Allocations recorded as live blocks.
    pub sampled: u64,
    /// Frees of recorded blocks.
    pub sampled_frees: u64,
    /// Hits of single-stepped probes, those that count as no call included.
    pub stepped: u64,
    /// Events that could not be recorded, by [`super::loss::Loss`].
    pub lost: [u64; super::loss::Loss::COUNT],
}
assert_size!(TargetCounts, 48 + 8 * super::loss::Loss::COUNT);

impl TargetCounts {
    /// Adds another count.
    pub fn add(&mut self, other: &Self) {
        self.allocations += other.allocations;
        self.allocated_bytes += other.allocated_bytes;
        self.frees += other.frees;
        self.sampled += other.sampled;
        self.sampled_frees += other.sampled_frees;
        self.stepped += other.stepped;
        for (sum, lost) in self.lost.iter_mut().zip(other.lost) {
            *sum += lost;
        }
    }

    /// Samples that found no place in a table, or whose result is not known.
    pub fn unrecorded(&self) -> u64 {
        use super::loss::Loss;
        [
            Loss::BlocksFull,
            Loss::SitesFull,
            Loss::ThreadsFull,
            Loss::UnreadableResult,
        ]
        .iter()
        .map(|cause| self.lost[*cause as usize])
        .sum()
    }
}
