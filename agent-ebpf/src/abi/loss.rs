//! Causes of loss. Every event that is not recorded counts under one of them
//! (LOSS-1).

/// Why something was not recorded, or only in part.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// The table of live blocks was full: the block is not followed.
    BlocksFull = 0,
    /// The table of allocation sites was full.
    SitesFull = 1,
    /// The table of threads was full.
    ThreadsFull = 2,
    /// The ring buffer was full; the stack is sent with its next allocation.
    RingFull = 3,
    /// A code address lay in no known mapping.
    UnknownMapping = 4,
    /// The code has no unwind rule this version can follow.
    NoUnwindRule = 5,
    /// The stack or a register save slot could not be read.
    UnreadableStack = 6,
    /// The stack has more frames than are kept.
    StackTooDeep = 7,
    /// An allocating call never came back (exception, longjmp) or took too
    /// long; its record was dropped.
    CallAbandoned = 8,
    /// What a call returned could not be read.
    UnreadableResult = 9,
    /// Tokio's task id could not be read.
    UnreadableTaskId = 10,
    /// A second allocation returned an address that was still recorded as
    /// live: its free was not seen.
    FreeMissed = 11,
}

impl Loss {
    /// Number of causes.
    pub const COUNT: usize = 12;

    /// All causes, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::BlocksFull,
        Self::SitesFull,
        Self::ThreadsFull,
        Self::RingFull,
        Self::UnknownMapping,
        Self::NoUnwindRule,
        Self::UnreadableStack,
        Self::StackTooDeep,
        Self::CallAbandoned,
        Self::UnreadableResult,
        Self::UnreadableTaskId,
        Self::FreeMissed,
    ];

    /// Name in outputs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BlocksFull => "blocks_full",
            Self::SitesFull => "sites_full",
            Self::ThreadsFull => "threads_full",
            Self::RingFull => "ring_full",
            Self::UnknownMapping => "unknown_mapping",
            Self::NoUnwindRule => "no_unwind_rule",
            Self::UnreadableStack => "unreadable_stack",
            Self::StackTooDeep => "stack_too_deep",
            Self::CallAbandoned => "call_abandoned",
            Self::UnreadableResult => "unreadable_result",
            Self::UnreadableTaskId => "unreadable_task_id",
            Self::FreeMissed => "free_missed",
        }
    }
}
