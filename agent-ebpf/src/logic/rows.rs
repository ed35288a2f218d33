//! Finding the unwind row of an address.
//!
//! A binary search over a file's rows takes fifteen steps, and a step costs a
//! load that nothing predicts. So each piece of rows comes with an index, one
//! entry per page of 256 bytes of code: two loads lead to the few rows of the
//! page.

use crate::abi::stack::Mapping;

/// log2 of the bytes of code per index entry.
pub const PAGE_SHIFT: u32 = 8;

/// The page of an address.
pub const fn page(pc: u32) -> u32 {
    pc >> PAGE_SHIFT
}

/// The row that holds `pc`, as an index in the mapping's chunk. `word` reads
/// the first word of an entry of the chunk: a row's address, or what an index
/// entry says.
#[inline]
pub fn find(mapping: &Mapping, pc: u32, word: impl Fn(u32) -> u32) -> u32 {
    let page = page(pc).wrapping_sub(mapping.first_page);
    let last = mapping.end_row.wrapping_sub(1);
    if page >= mapping.pages {
        return last;
    }
    let entry = mapping.index_row.wrapping_add(page);
    // Each entry names the last row that starts at or before its page.
    let mut found = word(entry);
    let limit = word(entry.wrapping_add(1));
    let mut step = 1 << (PAGE_SHIFT - 1);
    while step > 0 {
        let next = found.wrapping_add(step);
        if next <= limit && word(next) <= pc {
            found = next;
        }
        step >>= 1;
    }
    found
}
