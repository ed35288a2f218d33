//! Places as the kernel programs leave them.

use super::*;

fn words<const WORDS: usize>(values: [u64; WORDS]) -> [AtomicU64; WORDS] {
    values.map(AtomicU64::new)
}

#[test]
fn a_block_is_read_as_it_was_put() {
    let name = place::name(7, 3, 0x5555_1234_5678).unwrap();
    let place = words([name, (3 << 32) + 4321, 0, 64, 1000, 0xabc, 9, 512]);
    let key = BlockKey {
        tgid: 4321,
        epoch: 3,
        address: 0x5555_1234_5678,
    };
    let block = Block {
        size: 64,
        born_ns: 1000,
        stack: 0xabc,
        task: 9,
        mean: 512,
    };
    assert_eq!(block_in(&place), Some((name, key, block)));
    for state in [EMPTY, BUSY] {
        place[0].store(state, Relaxed);
        assert_eq!(block_in(&place), None);
    }
}

#[test]
fn a_site_counts_once_it_has_an_owner() {
    let place = words([0xabc, 0, 1, 5, 320, 2, 128, 77, 88]);
    assert_eq!(site_in(&place), None);
    place[1].store((2 << 32) + 4321, Relaxed);
    let (hash, site) = site_in(&place).unwrap();
    assert_eq!((hash, site.tgid, site.epoch), (0xabc, 4321, 2));
    assert_eq!(
        (site.announced, site.allocated, site.allocated_bytes),
        (1, 5, 320)
    );
    assert_eq!((site.freed, site.freed_bytes), (2, 128));
    assert_eq!((site.longest_life_ns, site.lives_us), (77, 88));
}

/// One thread frees and allocates at one address as the kernel programs do,
/// the other reads: it never gets parts of two blocks.
#[test]
fn a_block_is_never_torn() {
    const BLOCKS: u64 = 200_000;
    let name = place::name(1, 1, 0x7f00_0000_1000).unwrap();
    let place = words([EMPTY, 1 << 32 | 1, 0, 0, 0, 0, 0, 0]);
    let (mut read, mut last) = (0u64, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for birth in 1..=BLOCKS {
                place[0].store(BUSY, Release);
                place[4].store(birth, Release);
                for (word, factor) in [(3, 3), (5, 5), (6, 7), (7, 11)] {
                    place[word].store(birth * factor, Release);
                }
                place[0].store(name, Release);
            }
        });
        while !writer.is_finished() || read == 0 {
            let Some((_, _, block)) = block_in(&place) else {
                continue;
            };
            read += 1;
            let birth = block.born_ns;
            assert!(birth >= last);
            last = birth;
            assert_eq!(
                (block.size, block.stack, block.task, block.mean),
                (birth * 3, birth * 5, birth * 7, birth * 11)
            );
        }
    });
    assert!(read > 0);
}
