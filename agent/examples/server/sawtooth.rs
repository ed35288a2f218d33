//! A batch that is collected for a while and then dropped as a whole.

use std::collections::VecDeque;

use super::work::payload;

/// Adds to the batch; at `full` items the batch is done.
#[inline(never)]
pub(super) fn collect(batch: &mut VecDeque<Vec<u8>>, size: usize, full: usize) {
    if batch.len() >= full {
        batch.clear();
    }
    batch.push_back(payload(size));
}
