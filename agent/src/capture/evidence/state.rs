//! What the allocator's own signs say about a block.

use super::{
    Gone,
    facts::{Allocator, Mark},
    fingerprint::FirstRead,
};
use crate::host::memory::{Absent, Pages};

mod glibc;
mod musl;

/// Beyond, a glibc request has no class of its own.
const LARGEST: u64 = 1 << 46;

/// The allocator's word on a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is not free now; whose it is does not show here.
    Held,
    /// It is free, or not this block any more.
    Freed(Gone),
    /// Nothing can be told. `touched`: where a free leaves its mark something
    /// has changed, but to nothing that only a free would write.
    Untold { touched: bool },
}

/// What the allocator says at the first read.
pub(super) struct Start {
    pub(super) usable: u64,
    pub(super) header: u64,
    pub(super) marked: u32,
}

/// Why a block has no first read by the allocator's signs.
pub(super) enum Refusal {
    Absent(Absent),
    Free,
    Foreign,
}

impl From<Absent> for Refusal {
    fn from(why: Absent) -> Self {
        Self::Absent(why)
    }
}

/// Looks at a block's surroundings for the first time.
pub(super) fn start(
    pages: &mut Pages<'_>,
    allocator: Allocator,
    address: u64,
    requested: u64,
) -> Result<Start, Refusal> {
    if requested > LARGEST || address < 4096 {
        return Err(Refusal::Foreign);
    }
    let (usable, header) = match allocator {
        Allocator::Glibc => glibc::start(pages, address, requested)?,
        Allocator::Musl => (requested, musl::start(pages, address)?),
        other => (other.class_size(requested).unwrap_or(requested), 0),
    };
    let marked = match allocator.facts().mark {
        Mark::LinkAndChunks => glibc::marked(pages, address, usable),
        Mark::Link => u32::from(pages.word(address).is_ok_and(|word| is_link(pages, word))),
        Mark::Header | Mark::Nowhere => 0,
    };
    Ok(Start {
        usable,
        header,
        marked,
    })
}

/// Looks at them again.
///
/// # Errors
/// When they cannot be read.
pub(super) fn now(pages: &mut Pages<'_>, first: &FirstRead, same: u32) -> Result<State, Absent> {
    let facts = first.allocator.facts();
    match facts.mark {
        Mark::LinkAndChunks => glibc::now(pages, first, same),
        Mark::Header => musl::now(pages, first),
        Mark::Link if first.usable <= facts.link_limit && !first.unlinked => {
            link(pages, first, same)
        }
        Mark::Link | Mark::Nowhere => Ok(State::Untold { touched: false }),
    }
}

/// The first word of a free block is the link of a list: null or a pointer.
fn link(pages: &mut Pages<'_>, first: &FirstRead, same: u32) -> Result<State, Absent> {
    let word = pages.word(first.address)?;
    let (changed, linked) = (same & 1 == 0, is_link(pages, word));
    Ok(match (changed, linked) {
        (_, false) => State::Held,
        // A pointer of the block's own may look like this too, and changes.
        (true, true) if first.marked & 1 != 0 => State::Untold { touched: true },
        (true, true) => State::Freed(Gone::Freed),
        (false, true) => State::Untold { touched: false },
    })
}

fn is_link(pages: &Pages<'_>, word: u64) -> bool {
    word == 0 || word.is_multiple_of(8) && pages.is_heap(word)
}
