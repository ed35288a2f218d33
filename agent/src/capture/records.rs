//! What the kernel programs have recorded: live blocks and sites, each in
//! places that we share with the kernel, or else in a table behind them.
//! `agent_ebpf::abi::place` says how the places are used.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
        fence,
    },
};

use agent_ebpf::abi::{
    heap::{Block, BlockKey, Site},
    place::{self, BUSY, BlockPlace, EMPTY, IN_PLACE, IN_TABLE, SitePlace},
};
use anyhow::{Context as _, Result};
use aya::Ebpf;

use super::{bpf, mapped_words::MappedWords, object};
use crate::host::kernel;

const PLACE_WORDS: usize = size_of::<BlockPlace>() / 8;
const SITE_WORDS: usize = size_of::<SitePlace>() / 8;

/// The places; the tables belong to the object.
pub(super) struct Records {
    places: MappedWords,
    counters: MappedWords,
    sites: MappedWords,
}

impl Records {
    /// Maps the places of a loaded object.
    pub(super) fn of(ebpf: &Ebpf) -> Result<Self> {
        let shared = |name: &str, words| -> Result<MappedWords> {
            let map = ebpf.map(name).and_then(object::data);
            let map = map.with_context(|| format!("the kernel object has no map {name}"))?;
            MappedWords::map(map.fd().as_fd(), words)
                .with_context(|| format!("cannot map the kernel's map {name}"))
        };
        Ok(Self {
            places: shared("PLACES", place::PLACES as usize * PLACE_WORDS)?,
            counters: shared("COUNTERS", place::COUNTERS)?,
            sites: shared("SITE_PLACES", place::SITE_PLACES as usize * SITE_WORDS)?,
        })
    }

    /// Reads all live blocks but those that are born meanwhile: one of them may
    /// get an address, and another place, of a block that was read before it
    /// was freed. Blocks that come or go meanwhile may be missed.
    pub(super) fn blocks(
        &self,
        table: BorrowedFd<'_>,
        mut each: impl FnMut(BlockKey, Block),
    ) -> Result<()> {
        let began = kernel::monotonic_ns();
        let mut give = |key: BlockKey, block: Block| {
            if block.born_ns <= began {
                each(key, block);
            }
        };
        for place in self.places.words().as_chunks::<PLACE_WORDS>().0 {
            if let Some((_, key, block)) = block_in(place) {
                give(key, block);
            }
        }
        // SAFETY: the map's own types.
        unsafe { bpf::read_all(table, give) }.context("cannot read the table of live blocks")
    }

    /// Reads all sites.
    pub(super) fn sites(
        &self,
        table: BorrowedFd<'_>,
        mut each: impl FnMut(u64, Site),
    ) -> Result<()> {
        for place in self.sites.words().as_chunks::<SITE_WORDS>().0 {
            if let Some((hash, site)) = site_in(place) {
                each(hash, site);
            }
        }
        // SAFETY: the map's own types.
        unsafe { bpf::read_all(table, each) }.context("cannot read the table of allocation sites")
    }

    /// Removes the live blocks that `unwanted` picks.
    pub(super) fn forget_blocks(
        &self,
        table: BorrowedFd<'_>,
        unwanted: impl Fn(&BlockKey) -> bool,
    ) -> Result<()> {
        for place in self.places.words().as_chunks::<PLACE_WORDS>().0 {
            // A later block of this name has the same owner and epoch.
            if let Some((name, key, _)) = block_in(place)
                && unwanted(&key)
                && place[0]
                    .compare_exchange(name, EMPTY, AcqRel, Relaxed)
                    .is_ok()
            {
                self.uncount(key.address, IN_PLACE);
            }
        }
        let mut keys = Vec::new();
        // SAFETY: the map's own types.
        unsafe {
            bpf::read_all(table, |key: BlockKey, _: Block| {
                if unwanted(&key) {
                    keys.push(key);
                }
            })?;
        }
        for key in keys {
            // SAFETY: the map's own type.
            if unsafe { bpf::delete(table, &key) }? {
                self.uncount(key.address, IN_TABLE);
            }
        }
        Ok(())
    }

    /// Takes a block off its counter, as the kernel programs do.
    fn uncount(&self, address: u64, what: u64) {
        if let Some(counter) = self.counters.words().get(place::counter(address)) {
            counter.fetch_sub(what, AcqRel);
        }
    }

    /// Removes the sites that `unwanted` picks.
    pub(super) fn forget_sites(
        &self,
        table: BorrowedFd<'_>,
        unwanted: impl Fn(&Site) -> bool,
    ) -> Result<()> {
        for place in self.sites.words().as_chunks::<SITE_WORDS>().0 {
            if site_in(place).is_some_and(|(_, site)| unwanted(&site)) {
                let [hash, site @ ..] = place;
                // The next owner finds zeros.
                for word in site {
                    word.store(0, Relaxed);
                }
                hash.store(0, Release);
            }
        }
        // SAFETY: the map's own types.
        unsafe { bpf::delete_where(table, |_: &u64, site: &Site| unwanted(site)) }?;
        Ok(())
    }
}

/// The block in a place and the place's name; none while it is empty or
/// changes.
fn block_in(place: &[AtomicU64; PLACE_WORDS]) -> Option<(u64, BlockKey, Block)> {
    let [name, owner, _, size, born_ns, stack, task, mean] = place;
    // The birth first: it changes as soon as the place is busy.
    let birth = born_ns.load(Acquire);
    let found = name.load(Acquire);
    if found == EMPTY || found == BUSY {
        return None;
    }
    let owner = owner.load(Relaxed);
    let block = Block {
        size: size.load(Relaxed),
        born_ns: birth,
        stack: stack.load(Relaxed),
        task: task.load(Relaxed),
        mean: mean.load(Relaxed),
    };
    fence(Acquire);
    if born_ns.load(Relaxed) != birth || name.load(Relaxed) != found {
        return None;
    }
    let key = BlockKey {
        tgid: owner as u32,
        epoch: (owner >> 32) as u32,
        address: place::address(found),
    };
    Some((found, key, block))
}

/// The site in a place; none while it has no owner.
fn site_in(place: &[AtomicU64; SITE_WORDS]) -> Option<(u64, Site)> {
    let [
        hash,
        owner,
        announced,
        allocated,
        allocated_bytes,
        freed,
        freed_bytes,
        longest_life_ns,
        lives_us,
    ] = place;
    let hash = hash.load(Acquire);
    let owner = owner.load(Acquire);
    let tgid = owner as u32;
    if hash == 0 || tgid == 0 {
        return None;
    }
    let site = Site {
        tgid,
        epoch: (owner >> 32) as u32,
        announced: announced.load(Relaxed),
        allocated: allocated.load(Relaxed),
        allocated_bytes: allocated_bytes.load(Relaxed),
        freed: freed.load(Relaxed),
        freed_bytes: freed_bytes.load(Relaxed),
        longest_life_ns: longest_life_ns.load(Relaxed),
        lives_us: lives_us.load(Relaxed),
    };
    Some((hash, site))
}

#[cfg(test)]
mod tests;
