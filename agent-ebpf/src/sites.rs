//! The allocation sites: places in front of a table, as for live blocks.

use core::ptr;

use agent_ebpf::abi::{heap::Site, place};
use aya_ebpf::bindings::BPF_NOEXIST;

use crate::{
    live::{EXISTS, exchange},
    maps::{SITE_PLACES, SITES},
};

/// The site of a stack.
#[inline(always)]
pub(crate) fn find(hash: u64) -> Option<*mut Site> {
    let place = SITE_PLACES.get_ptr_mut(place::site_index(hash))?;
    // SAFETY: a map value; volatile, as other programs change it.
    if unsafe { ptr::read_volatile(&raw const (*place).hash) } == hash {
        // SAFETY: a map value.
        return Some(unsafe { &raw mut (*place).site });
    }
    SITES.get_ptr_mut(hash)
}

/// Makes the site of a stack that has none; another thread may be faster.
/// False when there is no room.
#[inline(always)]
pub(crate) fn add(hash: u64, tgid: u32, epoch: u32, announced: bool) -> bool {
    let announced = u64::from(announced);
    if let Some(place) = SITE_PLACES.get_ptr_mut(place::site_index(hash)) {
        // SAFETY: a map value.
        unsafe {
            let found = exchange(&raw mut (*place).hash, 0, hash);
            if found == hash {
                return true;
            }
            if found == 0 {
                ptr::write_volatile(&raw mut (*place).site.announced, announced);
                ptr::write_volatile(&raw mut (*place).site.epoch, epoch);
                ptr::write_volatile(&raw mut (*place).site.tgid, tgid);
                return true;
            }
        }
    }
    let site = Site {
        tgid,
        epoch,
        announced,
        ..EMPTY_SITE
    };
    !matches!(
        SITES.insert(hash, site, u64::from(BPF_NOEXIST)),
        Err(code) if code != EXISTS
    )
}

const EMPTY_SITE: Site = Site {
    tgid: 0,
    epoch: 0,
    announced: 0,
    allocated: 0,
    allocated_bytes: 0,
    freed: 0,
    freed_bytes: 0,
    longest_life_ns: 0,
    lives_us: 0,
};
