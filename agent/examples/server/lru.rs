//! A cache that drops what was not used for longest.

use std::collections::{BTreeMap, HashMap};

use super::work::payload;

pub(super) struct Lru {
    capacity: usize,
    /// Value and time of last use by key.
    entries: HashMap<u64, (Vec<u8>, u64)>,
    by_use: BTreeMap<u64, u64>,
    now: u64,
}

impl Lru {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: HashMap::new(),
            by_use: BTreeMap::new(),
            now: 0,
        }
    }
}

/// Uses one key of twice as many as fit, and caches its value if it is new.
#[inline(never)]
pub(super) fn put(cache: &mut Lru, size: usize) {
    cache.now += 1;
    let now = cache.now;
    // A full-period step through the keys, so that hits and misses mix.
    let key = now.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (2 * cache.capacity.max(1) as u64);
    if let Some((_, used)) = cache.entries.get_mut(&key) {
        cache.by_use.remove(used);
        *used = now;
    } else {
        cache.entries.insert(key, (payload(size), now));
    }
    cache.by_use.insert(now, key);
    if cache.entries.len() > cache.capacity
        && let Some((_, oldest)) = cache.by_use.pop_first()
    {
        cache.entries.remove(&oldest);
    }
}
