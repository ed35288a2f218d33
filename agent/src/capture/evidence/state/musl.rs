//! Headers of musl's mallocng (src/malloc/mallocng/meta.h): the four bytes
//! before a block are 0, the slot's index with a code of the unused bytes at
//! its end, and the distance to the group in 16 bits. A free writes 255 and a
//! distance of 0. A block that is given out again or resized in place has its
//! index, distance and unused bytes written anew: any other size shows.

use super::{Absent, FirstRead, Gone, Pages, Refusal, State};

const FREED: u8 = 255;

/// The four bytes, as the upper half of a word.
fn header(pages: &mut Pages<'_>, address: u64) -> Result<[u8; 4], Absent> {
    let [_, _, _, _, zero, index, low, high] = pages.word(address - 8)?.to_le_bytes();
    Ok([zero, index, low, high])
}

pub(super) fn start(pages: &mut Pages<'_>, address: u64) -> Result<u64, Refusal> {
    let bytes = header(pages, address)?;
    let [zero, index, low, high] = bytes;
    if index == FREED {
        return Err(Refusal::Free);
    }
    // Groups above 1 MiB have a wider distance and 1 here.
    let distance = u64::from(u16::from_le_bytes([low, high])) * 16 + 16;
    let group = address.checked_sub(distance).ok_or(Refusal::Foreign)?;
    if zero > 1 || (zero == 0 && pages.word(group)? == 0) {
        return Err(Refusal::Foreign);
    }
    Ok(u64::from(u32::from_le_bytes(bytes)))
}

pub(super) fn now(pages: &mut Pages<'_>, first: &FirstRead) -> Result<State, Absent> {
    let bytes = header(pages, first.address)?;
    let [_, index, ..] = bytes;
    Ok(if u64::from(u32::from_le_bytes(bytes)) == first.header {
        State::Held
    } else if index == FREED {
        State::Freed(Gone::Freed)
    } else {
        State::Freed(Gone::Resized)
    })
}
