//! Chunks of glibc's malloc (malloc/malloc.c, struct malloc_chunk).
//!
//! The word before a block is the chunk's size with three flags, the one
//! before that the size of the chunk before, if that one is free. A chunk is
//! in use, for its neighbours, as long as the next chunk says so; cached ones
//! (tcache, fastbins) stay in use for them, and only their first words tell.
//!
//! What a free leaves of a larger chunk, by its neighbours:
//!
//! | before | after | left |
//! | --- | --- | --- |
//! | in use | in use | first two words, the next chunk's flag |
//! | in use | free | first two words, own size |
//! | in use | top | own size, nothing else |
//! | free | in use | next chunk's flag; nothing in the block or its header |
//! | free | free or top | nothing but the size of the chunk before |

use super::{Absent, FirstRead, Gone, Pages, Refusal, State};
use crate::host::memory::PAGE;

const BEFORE_IN_USE: u64 = 1;
const IS_MMAPPED: u64 = 2;
const FLAGS: u64 = 7;
const SMALLEST: u64 = 32;
/// What a chunk may be larger than asked for: rounding, and a rest too small
/// for a chunk of its own, at both ends of an aligned block.
const MOST_SLACK: u64 = 96;
/// Usable size of the largest chunk that is cached by link.
const CACHED: u64 = 1032;

/// Usable size and size word of a block that is in use.
pub(super) fn start(
    pages: &mut Pages<'_>,
    address: u64,
    requested: u64,
) -> Result<(u64, u64), Refusal> {
    let header = pages.word(address - 8)?;
    let size = header & !FLAGS;
    if header & IS_MMAPPED != 0 {
        let before = pages.word(address - 16)?;
        let whole = before.checked_add(size).ok_or(Refusal::Foreign)?;
        let usable = size.checked_sub(16).ok_or(Refusal::Foreign)?;
        let aligned = whole.is_multiple_of(PAGE)
            && (address - 16)
                .checked_sub(before)
                .is_some_and(|start| start.is_multiple_of(PAGE));
        return if aligned && usable >= requested {
            Ok((usable, header))
        } else {
            Err(Refusal::Foreign)
        };
    }
    let usable = size.checked_sub(8).ok_or(Refusal::Foreign)?;
    let fits = size >= SMALLEST
        && size.is_multiple_of(16)
        && usable >= requested
        && usable - requested <= MOST_SLACK;
    if !fits {
        return Err(Refusal::Foreign);
    }
    if is_in_use(pages, address, size)? {
        Ok((usable, header))
    } else {
        Err(Refusal::Free)
    }
}

/// Whether the chunk after says that this one is in use.
fn is_in_use(pages: &mut Pages<'_>, address: u64, size: u64) -> Result<bool, Absent> {
    let next = address.checked_add(size - 8).ok_or(Absent::Unmapped)?;
    Ok(pages.word(next)? & BEFORE_IN_USE != 0)
}

/// Words that look like what a free of this block would leave.
pub(super) fn marked(pages: &mut Pages<'_>, address: u64, usable: u64) -> u32 {
    let (Ok(first), Ok(second)) = (pages.word(address), pages.word(address + 8)) else {
        return 0;
    };
    if usable <= CACHED {
        u32::from(is_mangled(pages, address, first))
    } else if is_pointer(pages, first) && is_pointer(pages, second) {
        0b11
    } else {
        0
    }
}

pub(super) fn now(pages: &mut Pages<'_>, first: &FirstRead, same: u32) -> Result<State, Absent> {
    let mut chunk = chunk(pages, first)?;
    if matches!(chunk, State::Freed(_)) {
        // Headers of neighbours change together but are read one by one.
        pages.forget_page(first.address - 16);
        pages.forget_page(first.address + first.usable);
        if let Some(before) = before(pages, first)? {
            pages.forget_page(before);
        }
        chunk = self::chunk(pages, first)?;
    }
    if chunk != State::Held || first.header & IS_MMAPPED != 0 {
        return Ok(chunk);
    }
    let words = [pages.word(first.address)?, pages.word(first.address + 8)?];
    let changed = [same & 1 == 0, same & 2 == 0];
    Ok(if first.usable <= CACHED {
        cached(pages, first, words, changed)
    } else {
        let pointers = words.map(|word| is_pointer(pages, word));
        match (changed, pointers) {
            // Freed and merged with the chunk before later, which was then
            // handed out whole: the headers are its contents now.
            ([true, true], [true, true]) => State::Freed(Gone::Freed),
            ([false, false], _) => State::Held,
            _ => State::Untold { touched: true },
        }
    })
}

/// What the headers say.
fn chunk(pages: &mut Pages<'_>, first: &FirstRead) -> Result<State, Absent> {
    let header = pages.word(first.address - 8)?;
    if (header ^ first.header) & !BEFORE_IN_USE != 0 {
        return Ok(State::Freed(Gone::Resized));
    }
    if header & IS_MMAPPED != 0 {
        return Ok(State::Held);
    }
    if !is_in_use(pages, first.address, first.usable + 8)? {
        return Ok(State::Freed(Gone::Freed));
    }
    if header & BEFORE_IN_USE == 0 {
        let size = pages.word(first.address - 16)?;
        let held = match before(pages, first)? {
            Some(before) => pages.word(before)? & !FLAGS == size,
            None => false,
        };
        if !held {
            return Ok(State::Freed(Gone::Merged));
        }
    }
    Ok(State::Held)
}

/// Where the size of the chunk before stands, if that is free.
fn before(pages: &mut Pages<'_>, first: &FirstRead) -> Result<Option<u64>, Absent> {
    if pages.word(first.address - 8)? & BEFORE_IN_USE != 0 {
        return Ok(None);
    }
    let size = pages.word(first.address - 16)?;
    let sane = size >= SMALLEST && size.is_multiple_of(16);
    Ok((first.address - 8).checked_sub(size).filter(|_| sane))
}

/// What the first words say of a chunk small enough to be cached.
fn cached(pages: &Pages<'_>, first: &FirstRead, words: [u64; 2], changed: [bool; 2]) -> State {
    let [word, _] = words;
    let mangled = is_mangled(pages, first.address, word);
    // Before 2.32 links were plain.
    let plain = word == 0 || is_pointer(pages, word);
    match changed {
        [true, _] if mangled && first.marked & 1 == 0 => State::Freed(Gone::Freed),
        [false, false] if mangled => State::Untold { touched: false },
        _ if mangled => State::Untold { touched: true },
        [true, _] if plain => State::Untold { touched: true },
        [false, _] if word == 0 => State::Untold { touched: false },
        _ => State::Held,
    }
}

/// Whether `word` at `address` is a link as safe linking writes it
/// (`PROTECT_PTR`): the next free block, or none, hidden by the address.
fn is_mangled(pages: &Pages<'_>, address: u64, word: u64) -> bool {
    let next = word ^ (address >> 12);
    next == 0 || is_pointer(pages, next)
}

fn is_pointer(pages: &Pages<'_>, word: u64) -> bool {
    word.is_multiple_of(16) && pages.is_heap(word)
}
