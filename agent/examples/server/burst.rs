//! A pool that grows to its working size and then stays.

use super::work::payload;

/// Adds to the pool until it has `full` buffers.
#[inline(never)]
pub(super) fn grow(pool: &mut Vec<Vec<u8>>, size: usize, full: usize) {
    if pool.len() < full {
        pool.push(payload(size));
    }
}
