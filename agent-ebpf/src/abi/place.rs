//! Places in front of the tables of live blocks and of sites.

use super::{
    assert_size,
    heap::{Block, Site},
};

/// A place for one live block, a line of memory. The process whose block it is
/// is part of the name, by its slot; what a former owner of the slot has left
/// is told by `tgid`.
///
/// Whoever changes the other fields holds the place: it has exchanged the name
/// for [`BUSY`]. So two that want one place never wait, the second goes to the
/// table. `block.born_ns` is written before the rest: a reader that finds the
/// same birth, and then the same name, before and after it has read a whole
/// block.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockPlace {
    /// [`EMPTY`], [`BUSY`] or what [`name`] gives.
    pub name: u64,
    /// Owner's thread group id.
    pub tgid: u32,
    /// Owner's epoch when the block was allocated.
    pub epoch: u32,
    /// Zero.
    pub reserved: u64,
    /// The block.
    pub block: Block,
}
assert_size!(BlockPlace, 64);

/// Nothing is here.
pub const EMPTY: u64 = 0;
/// Something is being put here or taken from here.
pub const BUSY: u64 = 1;

/// Places: 4 MiB.
pub const PLACES: u32 = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 16;

/// Spreads names: odd, its bits without a pattern.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bits of an address of user space (x86-64, four-level page tables).
const ADDRESS_BITS: u32 = 47;
/// Bits of a target's slot.
const SLOT_BITS: u32 = 8;
const _: () = assert!(super::heap::MAX_TARGETS <= 1 << SLOT_BITS);
/// Later epochs go to the table.
const EPOCHS: u32 = 1 << (64 - ADDRESS_BITS - SLOT_BITS);

/// The whole identity of a block in a word, so that one instruction both
/// recognises and takes it; none for blocks that do not fit.
#[inline]
pub const fn name(slot: u32, epoch: u32, address: u64) -> Option<u64> {
    if address & 7 != 0 || address == 0 || address >> ADDRESS_BITS != 0 || epoch >= EPOCHS {
        return None;
    }
    Some((((epoch as u64) << SLOT_BITS | slot as u64) << ADDRESS_BITS) | address)
}

/// The address in a name.
#[inline]
pub const fn address(name: u64) -> u64 {
    name & ((1 << ADDRESS_BITS) - 1)
}

/// Where a block of this name may be.
#[inline]
pub const fn index(name: u64) -> u32 {
    (name.wrapping_mul(SPREAD) >> (64 - PLACE_BITS)) as u32
}

/// Counters of live blocks, see [`counter`].
pub const COUNTERS: usize = 1 << 15;
/// In a counter, one block that has a place.
pub const IN_PLACE: u64 = 1;
/// In a counter, one block in the table.
pub const IN_TABLE: u64 = 1 << 32;

/// Which counter counts the live blocks at an address.
#[inline]
pub const fn counter(address: u64) -> usize {
    (address.wrapping_mul(SPREAD) >> 48) as usize & (COUNTERS - 1)
}

/// A place for one site. Whoever puts its hash in, adds its owner next; the
/// counters are zero in an empty place, so that others may count at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SitePlace {
    /// Of the stack; 0: nothing is here.
    pub hash: u64,
    /// Without an owner yet while `tgid` is 0.
    pub site: Site,
}
assert_size!(SitePlace, 72);

/// Places for sites: 576 KiB.
pub const SITE_PLACES: u32 = 1 << SITE_BITS;
const SITE_BITS: u32 = 13;

/// Where the site of a stack may be.
#[inline]
pub const fn site_index(hash: u64) -> u32 {
    (hash >> (64 - SITE_BITS)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_name_is_of_one_block(
            slot in 0u32..256, epoch: u32, unaligned: u64, other in (0u32..256, 0u32..600, 0u64..1 << 48),
        ) {
            for (epoch, address) in [(epoch, unaligned), (epoch % 512, unaligned >> 17 & !7), (epoch % 512, unaligned)] {
                let Some(first) = name(slot, epoch, address) else {
                    prop_assert!(address == 0 || address & 7 != 0 || address >= 1 << 47 || epoch >= 512);
                    continue;
                };
                prop_assert!(first != EMPTY && first != BUSY);
                prop_assert_eq!(super::address(first), address);
                prop_assert!(index(first) < PLACES);
                let (slot_2, epoch_2, address_2) = (other.0, other.1, other.2 & !7);
                prop_assert_eq!(
                    name(slot_2, epoch_2, address_2) == Some(first),
                    (slot_2, epoch_2, address_2) == (slot, epoch, address)
                );
            }
        }
    }

    #[test]
    fn neighbouring_blocks_get_places_of_their_own() {
        let places: std::collections::HashSet<u32> = (0..1000)
            .filter_map(|block| name(3, 1, 0x5555_5555_4000 + block * 32))
            .map(index)
            .collect();
        assert!(places.len() > 950, "{}", places.len());
    }
}
