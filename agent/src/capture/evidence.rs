//! Whether a block of another process still lives, told from its memory alone.
//!
//! A block is read for the first time while its allocator's `free` is probed,
//! so that the contents are known to be its own. Later it is read again:
//!
//! 1. Does the allocator say it is free? Each leaves other signs ([`facts`]),
//!    in headers or in the block's first words.
//! 2. If not, is it still the same block? Only contents tell, and only those
//!    that no other block of the site has ([`identify`]): a block that is
//!    freed and given out again for the same purpose looks like before.
//!
//! Unchanged contents alone prove nothing: a new owner may leave most of a
//! block alone. Proof is a word that every free destroys, or words that the
//! owner is known to have written ([`FirstRead::born`]) in a block that is not
//! free. Less than that is [`Sign::Held`] and, where the allocator leaves no
//! sign, [`Sign::Unchanged`], for statistics over many reuse times to judge.
//!
//! What cannot be told, and is not claimed:
//! - blocks of zeros, small numbers or equal texts: [`Doubt::Plain`], unless
//!   they are seen free;
//! - a block of glibc above the cached sizes that was freed, merged, and taken
//!   by an owner who has written nothing of it yet;
//! - a resized block, also in place: it is gone, as its record would be.

pub mod facts;
mod fingerprint;
mod judgement;
mod round;
mod state;

pub use self::{
    facts::Allocator,
    fingerprint::{FirstRead, identify},
    round::{Outcome, Request, again, again_all, first_read, first_reads},
};
use crate::host::memory::Absent;

/// What reading a block again says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sign {
    /// It is the same block: not free, and everything that identifies it is
    /// there.
    Alive,
    /// It is the same block, with other contents: a word is intact that every
    /// free would have destroyed and no other block has.
    Mutated,
    /// It is not free, and what identifies it is there; but a new owner who
    /// writes little might have left it so.
    Held,
    /// What identifies it is there, but it may be free, or have a new owner
    /// who writes little.
    Unchanged,
    /// It is not this block any more.
    Gone(Gone),
    /// It cannot be told.
    Unknown(Doubt),
}

/// How a block has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gone {
    /// The allocator's mark says that it is free.
    Freed,
    /// It was merged with the free block before it.
    Merged,
    /// Its header tells another size: merged, resized or given out anew.
    Resized,
    /// Nothing that identified it is left.
    Reused,
    /// Its memory was given back and is not backed any more.
    Purged,
    /// Its memory is not mapped any more.
    Unmapped,
}

/// Why it cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doubt {
    /// Nothing identifies the block: plain contents, or contents that other
    /// samples of the site have too. It was so from the start, whether the
    /// block lives or not.
    Plain,
    /// Some of what identifies it has changed and some not: written by its
    /// owner, or freed and partly rewritten by another. This is no chance
    /// event: statistics must take it for a death in the low estimate and for
    /// a life in the high one.
    Rewritten,
    /// It could not be read.
    Unreadable(Unreadable),
}

/// Why a block could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unreadable {
    /// The memory there: unmapped, never touched, swapped out, not to be
    /// read, over the budget, or of a process that has ended.
    Absent(Absent),
    /// At the first read it was free already.
    AlreadyFree,
    /// At the first read there was no block of this allocator and size.
    Foreign,
    /// Blocks are aligned to eight bytes; this address is not.
    Misaligned,
}
