//! What a site can be found to be, and how sure that is. The names are
//! stable: they appear in JSON, in the journal and in configuration files.

use std::fmt;

use serde::{Serialize, Serializer};

/// What a site is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Verdict {
    /// Memory is added and not given back, and the growth does not slow.
    UnboundedGrowth,
    /// Tasks that have ended are still held, and ever more of them.
    UnreapedTask,
    /// Tasks that show no activity any more grow in number.
    StuckTask,
    /// A thread waits for ever while memory grows that it may be meant to
    /// release.
    BlockedThread,
    /// It grows, but ever more slowly: start-up, a cache that fills.
    Warming,
    /// It stopped growing, or what is added is matched by what is released.
    Bounded,
    /// It grows and is released again and again.
    Sawtooth,
    /// A language runtime's heap grows, which is its own affair.
    ManagedHeap,
    /// Memory grows that no known allocator owns.
    OutsideAllocators,
    /// The allocator keeps memory whose blocks were released.
    Retention,
}

impl Verdict {
    /// Every verdict this version can give.
    pub const ALL: [Self; 10] = [
        Self::UnboundedGrowth,
        Self::UnreapedTask,
        Self::StuckTask,
        Self::BlockedThread,
        Self::Warming,
        Self::Bounded,
        Self::Sawtooth,
        Self::ManagedHeap,
        Self::OutsideAllocators,
        Self::Retention,
    ];

    /// Stable name.
    pub const fn id(self) -> &'static str {
        match self {
            Self::UnboundedGrowth => "unbounded-growth",
            Self::UnreapedTask => "unreaped-task",
            Self::StuckTask => "stuck-task",
            Self::BlockedThread => "blocked-thread",
            Self::Warming => "warming",
            Self::Bounded => "bounded",
            Self::Sawtooth => "sawtooth",
            Self::ManagedHeap => "managed-heap",
            Self::OutsideAllocators => "outside-allocators",
            Self::Retention => "retention",
        }
    }

    /// Whether it is a leak.
    pub const fn leak(self) -> Leak {
        match self {
            Self::UnboundedGrowth | Self::UnreapedTask => Leak::Yes,
            Self::StuckTask | Self::BlockedThread | Self::OutsideAllocators => Leak::Suspected,
            Self::Warming
            | Self::Bounded
            | Self::Sawtooth
            | Self::ManagedHeap
            | Self::Retention => Leak::No,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

/// How sure a verdict is; ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Looks like it; a longer run can tell.
    Suspected,
    /// No healthy program is known to look like this.
    Strong,
    /// Shown beyond doubt.
    Proven,
}

impl Confidence {
    /// Stable name.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Suspected => "suspected",
            Self::Strong => "strong",
            Self::Proven => "proven",
        }
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

/// Whether a verdict is a leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Leak {
    /// It is.
    Yes,
    /// It may be.
    Suspected,
    /// It is not.
    No,
}
