//! A bounded cache that is far from full for the whole run.

use std::collections::VecDeque;

use super::work::payload;

/// Caches one more value; the oldest goes when `full` are there.
#[inline(never)]
pub(super) fn fill(cache: &mut VecDeque<Vec<u8>>, size: usize, full: usize) {
    if cache.len() >= full {
        cache.pop_front();
    }
    cache.push_back(payload(size));
}
