//! Futex waits in the document.

use serde::{Serialize, Serializer};

use super::{Site, Text};

/// Who waits in a process, and where.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Waits {
    /// Seconds for which waits were followed.
    pub followed_s: f64,
    /// Why not for all of the observation.
    pub why_not: Option<Text>,
    /// By class and function; those that need a look first.
    pub places: Vec<Waiting>,
}

/// The waits of one class in one function.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Waiting {
    /// Whose work waits.
    pub class: Class,
    /// What for.
    pub on: On,
    /// The program's own function, else the innermost that is known; null
    /// when the stack is not known.
    pub function: Option<Text>,
    /// `file:line` of it.
    pub location: Option<Text>,
    /// Waits that ended.
    pub count: u64,
    /// Seconds they took in all.
    pub total_s: f64,
    /// Seconds the longest of them took.
    pub longest_s: f64,
    /// Threads that have been waiting for a second or longer and wait still.
    pub open: u64,
    /// Seconds for which the first of them has been waiting, at least.
    pub open_s: Option<f64>,
    /// One of them began to wait before waits were followed.
    pub began_before: bool,
    /// Some of these threads, as the host numbers them.
    pub threads: Vec<u32>,
    /// Some of the Tokio tasks that waited here, those that still do first.
    pub tasks: Vec<u64>,
    /// Where.
    pub site: Site,
}

/// Whose work waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A worker of Tokio's that has nothing to do.
    ParkedWorker,
    /// A thread of Tokio's blocking pool that has nothing to do.
    IdlePoolThread,
    /// The thread that waits in `block_on` for its future.
    BlockOn,
    /// A closure given to `spawn_blocking` or `block_in_place`, which may.
    SpawnBlocking,
    /// A task, inside its poll: it blocks its worker.
    Task,
    /// A thread that has nothing to do with Tokio.
    Thread,
    /// The stack does not tell.
    #[default]
    Unknown,
}

impl Class {
    /// Stable name.
    pub const fn id(self) -> &'static str {
        match self {
            Self::ParkedWorker => "parked-worker",
            Self::IdlePoolThread => "idle-pool-thread",
            Self::BlockOn => "block-on",
            Self::SpawnBlocking => "spawn-blocking",
            Self::Task => "task",
            Self::Thread => "thread",
            Self::Unknown => "unknown",
        }
    }

    /// Whether healthy programs do not wait so for long: inside a poll, or for
    /// a lock.
    pub const fn is_odd(self, on: On) -> bool {
        match self {
            Self::ParkedWorker | Self::IdlePoolThread | Self::BlockOn | Self::Unknown => false,
            Self::Task => !matches!(on, On::Unknown),
            Self::SpawnBlocking | Self::Thread => matches!(on, On::Lock),
        }
    }
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum On {
    /// A mutex, a read-write lock, a once.
    Lock,
    /// A condition variable or semaphore.
    Condvar,
    /// A channel that blocks.
    Channel,
    /// To be unparked.
    Park,
    /// Another thread's end.
    Thread,
    /// The stack does not tell.
    #[default]
    Unknown,
}

impl On {
    /// Stable name.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Condvar => "condvar",
            Self::Channel => "channel",
            Self::Park => "park",
            Self::Thread => "thread",
            Self::Unknown => "unknown",
        }
    }

    /// For a sentence, after "waits".
    pub const fn words(self) -> &'static str {
        match self {
            Self::Lock => "for a lock",
            Self::Condvar => "for a condition",
            Self::Channel => "on a channel",
            Self::Park => "to be unparked",
            Self::Thread => "for a thread's end",
            Self::Unknown => "for a futex",
        }
    }
}

impl Serialize for Class {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

impl Serialize for On {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}
