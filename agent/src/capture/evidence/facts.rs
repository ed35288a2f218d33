//! What is known of each allocator, with sources. A live test
//! (`evidence::facts_*`) holds every row against the real allocator.

/// An allocator whose blocks are looked at from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Allocator {
    /// GNU C library 2.32 and later (safe linking).
    Glibc,
    /// musl 1.2.1 and later (mallocng).
    Musl,
    /// jemalloc 5.
    Jemalloc,
    /// mimalloc 1 and 2, not built as secure or for debugging.
    Mimalloc,
    /// gperftools. Google's own tcmalloc is [`Self::Other`]: it keeps the
    /// lists of free blocks outside of them.
    Tcmalloc,
    /// Nothing is known.
    Other,
}

/// Where a free leaves its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// In the block's first word: the link of a list of free blocks.
    Link,
    /// The link where the block is cached, and beyond that in the headers of
    /// the block and its neighbours.
    LinkAndChunks,
    /// In a header before the block.
    Header,
    /// Nowhere.
    Nowhere,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Whom it is about.
    pub allocator: Allocator,
    /// Bytes of its own that the allocator keeps before a block.
    pub header: u64,
    /// Where a free leaves its mark.
    pub mark: Mark,
    /// Largest usable size for which free writes a link into the block.
    pub link_limit: u64,
    /// Usable size up to which a free is certain to destroy the first word and
    /// no other. Above, glibc destroys two, or merges the chunk, which only
    /// headers tell.
    pub one_word_limit: u64,
    /// Where it is written.
    pub source: &'static str,
}

const TABLE: [Facts; 6] = [
    // tcache_put: entry->next (mangled by REVEAL_PTR/PROTECT_PTR) and
    // entry->key, chunks up to 1040 bytes. _int_free: fastbins up to 128 bytes
    // write fd only; larger ones fd and bk, unless the chunk merges into top
    // or a free predecessor, which only the headers show.
    Facts {
        allocator: Allocator::Glibc,
        header: 8,
        mark: Mark::LinkAndChunks,
        link_limit: 1032,
        one_word_limit: 120,
        source: "glibc 2.36 malloc/malloc.c: tcache_put, _int_free, PROTECT_PTR, struct malloc_chunk",
    },
    // p[-3] = 255 and the 16-bit offset before p = 0; both come back with the
    // next owner. Slots are not handed out again before their group's other
    // ones are.
    Facts {
        allocator: Allocator::Musl,
        header: 4,
        mark: Mark::Header,
        link_limit: 0,
        one_word_limit: 0,
        source: "musl 1.2.3 src/malloc/mallocng: free.c free(), meta.h enframe(), get_slot_index()",
    },
    // Freed regions are pushed on the thread cache's own array and later
    // marked in the slab's bitmap, both elsewhere. Purged pages become holes.
    Facts {
        allocator: Allocator::Jemalloc,
        header: 0,
        mark: Mark::Nowhere,
        link_limit: 0,
        one_word_limit: 0,
        source: "jemalloc 5.3 cache_bin.h cache_bin_dalloc_easy, arena.c arena_dalloc_bin; sc.c classes",
    },
    // mi_block_set_next on local and foreign frees alike.
    Facts {
        allocator: Allocator::Mimalloc,
        header: 0,
        mark: Mark::Link,
        link_limit: 128 << 10,
        one_word_limit: 128 << 10,
        source: "mimalloc 2.0 src/alloc.c: mi_free_block_local, _mi_free_block_mt; page-queue.c _mi_bin",
    },
    // SLL_Push into the thread's or the central list; spans above 256 KiB go
    // back to the page heap, unwritten.
    Facts {
        allocator: Allocator::Tcmalloc,
        header: 0,
        mark: Mark::Link,
        link_limit: 256 << 10,
        one_word_limit: 256 << 10,
        source: "gperftools 2.10 src/linked_list.h SLL_Push, thread_cache.h FreeList::Push, common.h kMaxSize",
    },
    Facts {
        allocator: Allocator::Other,
        header: 0,
        mark: Mark::Nowhere,
        link_limit: 0,
        one_word_limit: 0,
        source: "nothing is known, so nothing is taken for a sign",
    },
];

impl Allocator {
    /// Its row.
    pub fn facts(self) -> &'static Facts {
        let [glibc, musl, jemalloc, mimalloc, tcmalloc, other] = &TABLE;
        match self {
            Self::Glibc => glibc,
            Self::Musl => musl,
            Self::Jemalloc => jemalloc,
            Self::Mimalloc => mimalloc,
            Self::Tcmalloc => tcmalloc,
            Self::Other => other,
        }
    }

    /// The allocator of a family as discovery names it.
    pub fn of_family(kind: &str) -> Self {
        match kind {
            "glibc" => Self::Glibc,
            "musl" => Self::Musl,
            "jemalloc" => Self::Jemalloc,
            "mimalloc" => Self::Mimalloc,
            "tcmalloc" => Self::Tcmalloc,
            _ => Self::Other,
        }
    }

    /// Bytes of a block that was asked for with `requested`, by the size
    /// classes; `None` where they are not fixed (tcmalloc) or stand in the
    /// block's header (glibc, musl).
    pub fn class_size(self, requested: u64) -> Option<u64> {
        match self {
            // Four classes a doubling from 64 on, multiples of 16 below, and 8.
            Self::Jemalloc => Some(match requested {
                0..=8 => 8,
                9..=64 => requested.next_multiple_of(16),
                _ => four_a_doubling(requested)?,
            }),
            // Two words up to eight, then four classes a doubling.
            Self::Mimalloc => Some(match requested {
                0..=8 => 8,
                9..=64 => requested.next_multiple_of(16),
                65..=MIMALLOC_CLASSES => four_a_doubling(requested)?,
                _ => return None,
            }),
            _ => None,
        }
    }
}

/// Beyond, mimalloc rounds to pages of its own.
const MIMALLOC_CLASSES: u64 = 128 << 10;

fn four_a_doubling(requested: u64) -> Option<u64> {
    let doubling = requested.checked_sub(1)?.checked_ilog2()?;
    requested.checked_next_multiple_of(1 << doubling.checked_sub(2)?)
}

impl Facts {
    /// How many words from the start every free of a block of this usable
    /// size destroys, if it does not show in headers.
    pub fn words_destroyed(&self, usable: u64) -> usize {
        match self.mark {
            Mark::Link if usable <= self.link_limit => 1,
            Mark::LinkAndChunks if usable <= self.one_word_limit => 1,
            // Above the cached sizes too: a chunk that keeps them is merged
            // with a neighbour, and the headers tell.
            Mark::LinkAndChunks => 2,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_the_order_of_their_names() {
        for row in &TABLE {
            assert_eq!(row.allocator.facts().source, row.source);
            assert!(!row.source.is_empty());
        }
    }

    #[test]
    fn classes_are_those_of_the_manuals() {
        let jemalloc = |size| Allocator::Jemalloc.class_size(size).unwrap();
        assert_eq!(jemalloc(1), 8);
        assert_eq!(jemalloc(65), 80);
        assert_eq!(jemalloc(129), 160);
        assert_eq!(jemalloc(1025), 1280);
        assert_eq!(jemalloc(16_385), 20_480);
        assert_eq!(Allocator::Mimalloc.class_size(100), Some(112));
        assert_eq!(Allocator::Jemalloc.class_size(u64::MAX), None);
        assert_eq!(Allocator::Tcmalloc.class_size(100), None);
    }
}
