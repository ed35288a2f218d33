//! What is remembered of a block: hashes of a few of its words, and which of
//! them would tell it from another block.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::OnceLock,
};

use super::facts::Allocator;

/// Words of a block that are looked at.
pub(super) const PROBES: usize = 24;
/// Of these the first ones, which are next to each other.
const HEAD: usize = 8;
const ALL: u32 = (1 << PROBES) - 1;

/// A block as its first read found it. No contents: each word is a keyed hash
/// of 32 bits.
#[derive(Clone, Copy)]
pub struct FirstRead {
    pub(super) allocator: Allocator,
    pub(super) address: u64,
    pub(super) requested: u64,
    /// Bytes the block really has.
    pub(super) usable: u64,
    /// The allocator's own word before the block; not the target's data.
    pub(super) header: u64,
    pub(super) words: [u32; PROBES],
    /// Words that could be read.
    pub(super) read: u32,
    /// Words whose values are improbable by themselves.
    pub(super) telling: u32,
    /// Words that tell this block from others of its site.
    pub(super) identifying: u32,
    /// Words that look like what a free leaves: left over from an earlier
    /// one, perhaps, and the next may leave the same.
    pub(super) marked: u32,
    /// Words that the owner has written, as far as known.
    pub(super) written: u32,
    /// It is known which of the first words the owner has written.
    pub(super) is_born: bool,
    /// A free may write its link elsewhere than into the first word.
    pub(super) unlinked: bool,
}

impl FirstRead {
    /// Where the block is.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes asked for.
    pub fn requested(&self) -> u64 {
        self.requested
    }

    /// Bytes the block really has, by its header or its size class; the bytes
    /// asked for where neither is known.
    pub fn usable(&self) -> u64 {
        self.usable
    }

    /// Whose block it is.
    pub fn allocator(&self) -> Allocator {
        self.allocator
    }

    /// Words by which the block can be recognised. 0 before [`identify`].
    pub fn identifying_words(&self) -> u32 {
        self.identifying.count_ones()
    }

    /// Tells what the first words of the block were when the allocator handed
    /// it out, up to eight. Those that are still so were not written by the
    /// owner, but left over, and [`identify`] passes over all that are not
    /// known to be written. Not for blocks of `realloc`, which come with their
    /// contents.
    pub fn born(&mut self, head: &[u64]) {
        self.is_born = true;
        let words = self.words.iter().zip(self.offsets()).zip(head).take(HEAD);
        self.written = (0..)
            .zip(words)
            .filter(|(_, ((_, offset), _))| offset.is_some_and(|o| o + 8 <= self.requested))
            .filter(|(_, ((word, _), before))| hash(**before) != **word)
            .fold(0, |mask, (index, _)| mask | 1 << index)
            & self.read;
    }

    /// Offsets of the words that are looked at.
    pub(super) fn offsets(&self) -> [Option<u64>; PROBES] {
        offsets(self.requested, self.usable)
    }

    /// Takes the words of the block; those that cannot be read are `None`.
    pub(super) fn take(&mut self, values: &[Option<u64>; PROBES]) {
        let offsets = self.offsets();
        for (index, (value, offset)) in values.iter().zip(offsets).enumerate() {
            let (Some(value), Some(offset)) = (value, offset) else {
                continue;
            };
            let value = self.masked(*value, offset);
            if let Some(word) = self.words.get_mut(index) {
                *word = hash(value);
            }
            self.read |= 1 << index;
            // What nobody asked for nobody writes: it says nothing of the
            // owner. Nor does half a word, which is often padding.
            if offset + 8 <= self.requested && is_telling(value) {
                self.telling |= 1 << index;
            }
        }
        self.telling &= !self.marked;
    }

    /// Which words are as they were, of those that were read both times.
    pub(super) fn same(&self, values: &[Option<u64>; PROBES]) -> (u32, u32) {
        let (mut read, mut same) = (0, 0);
        let offsets = self.offsets();
        for (index, ((value, offset), word)) in
            values.iter().zip(offsets).zip(self.words).enumerate()
        {
            if let (Some(value), Some(offset)) = (value, offset)
                && self.read & 1 << index != 0
            {
                read |= 1 << index;
                same |= u32::from(hash(self.masked(*value, offset)) == word) << index;
            }
        }
        (read, same)
    }

    /// The last word without the bytes that nobody asked for.
    fn masked(&self, value: u64, offset: u64) -> u64 {
        match self.requested.saturating_sub(offset) {
            bytes @ 1..=7 => value & ((1 << (bytes * 8)) - 1),
            _ => value,
        }
    }
}

impl fmt::Debug for FirstRead {
    /// Without anything of the contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstRead")
            .field("allocator", &self.allocator)
            .field("address", &format_args!("{:#x}", self.address))
            .field("requested", &self.requested)
            .field("usable", &self.usable)
            .field("identifying_words", &self.identifying_words())
            .finish_non_exhaustive()
    }
}

/// Marks in each block the words by which it can be recognised. `samples` are
/// all samples of one allocation site, of earlier windows too, and dead ones
/// where they are still known:
///
/// - a word that a second block has at any place proves nothing: the site
///   writes it again and again;
/// - a word that two owners of one address had alike at the same place proves
///   nothing at that place: the site does not write it, what is there is left
///   from before;
/// - where a good part of the blocks have a word that another one has too, the
///   rest is drawn from the same few values;
/// - one sample alone is like nothing: no word of it identifies.
pub fn identify(samples: &mut [FirstRead]) {
    let mut owners: HashMap<u32, (u64, bool)> = HashMap::new();
    for sample in samples.iter() {
        for word in sample.telling_words() {
            let (first, shared) = owners.entry(word).or_insert((sample.address, false));
            *shared |= *first != sample.address;
        }
    }
    let is_shared = |word: &u32| owners.get(word).is_some_and(|(_, shared)| *shared);
    let mut places = left_alone(samples);
    for (place, common) in common(samples, is_shared) {
        *places.entry(place).or_default() |= common;
    }
    let several = samples
        .iter()
        .any(|sample| Some(sample.address) != samples.first().map(FirstRead::address));
    for sample in samples {
        let own = sample.mask(|word| !is_shared(word));
        let void = places.get(&sample.place()).copied().unwrap_or(0);
        sample.identifying = if several {
            let written = if sample.is_born { sample.written } else { ALL };
            own & sample.telling & !void & written
        } else {
            0
        };
    }
}

/// Blocks of one requested and one usable size are looked at in the same
/// places.
type Place = (u64, u64);

/// Words where a quarter of the blocks or more have what others have.
fn common(samples: &[FirstRead], is_shared: impl Fn(&u32) -> bool) -> HashMap<Place, u32> {
    let mut counts: HashMap<Place, [(u32, u32); PROBES]> = HashMap::new();
    for sample in samples {
        let shared = sample.mask(&is_shared);
        let counts = counts.entry(sample.place()).or_insert([(0, 0); PROBES]);
        for (index, (all, common)) in counts.iter_mut().enumerate() {
            if sample.telling & 1 << index != 0 {
                *all += 1;
                *common += shared >> index & 1;
            }
        }
    }
    counts
        .into_iter()
        .map(|(place, counts)| {
            let mask = (0..).zip(counts).fold(0, |mask, (index, (all, common))| {
                mask | u32::from(common * 4 >= all.max(1)) << index
            });
            (place, mask)
        })
        .collect()
}

/// Words that two owners of one address had alike.
fn left_alone(samples: &[FirstRead]) -> HashMap<Place, u32> {
    let mut found: HashMap<Place, u32> = HashMap::new();
    let mut at: HashMap<u64, &FirstRead> = HashMap::new();
    for sample in samples {
        let Some(before) = at.insert(sample.address, sample) else {
            continue;
        };
        if before.place() != sample.place() {
            continue;
        }
        let alike = before
            .words
            .iter()
            .zip(sample.words)
            .enumerate()
            .filter(|(_, (before, now))| **before == *now)
            .fold(0, |mask, (index, _)| mask | 1 << index);
        *found.entry(sample.place()).or_default() |= alike & before.telling & sample.telling;
    }
    found
}

impl FirstRead {
    fn place(&self) -> Place {
        (self.requested, self.usable)
    }

    /// Words that pass.
    fn mask(&self, pass: impl Fn(&u32) -> bool) -> u32 {
        (0..).zip(&self.words).fold(0, |mask, (index, word)| {
            mask | u32::from(pass(word)) << index
        })
    }

    fn telling_words(&self) -> impl Iterator<Item = u32> + '_ {
        self.words
            .iter()
            .enumerate()
            .filter(|(index, _)| self.telling & 1 << index != 0)
            .map(|(_, word)| *word)
    }
}

/// Where a block is looked at: all of a small one; of a large one the first
/// eight words, three each at a quarter, the half and three quarters, the last
/// five asked for, and the last two of the rest.
pub(super) fn offsets(requested: u64, usable: u64) -> [Option<u64>; PROBES] {
    let mut offsets = [None; PROBES];
    let words = requested.div_ceil(8);
    let slack = (usable / 8).saturating_sub(words).min(2);
    let inside = PROBES as u64 - 2;
    let head = (0..words.min(8)).chain(
        (8..words)
            .filter(|_| words <= inside)
            .chain(large(words).filter(|_| words > inside)),
    );
    let tail = (0..slack).map(|from_end| usable / 8 - 1 - from_end);
    for (slot, word) in offsets
        .iter_mut()
        .zip(head.take(inside as usize).chain(tail))
    {
        *slot = Some(word * 8);
    }
    offsets
}

/// The words after the first eight of a block with more than 22.
fn large(words: u64) -> impl Iterator<Item = u64> {
    let places = [words / 4, words / 2, words / 4 * 3];
    let beyond_head = move |word: &u64| (8..words.saturating_sub(5)).contains(word);
    places
        .into_iter()
        .flat_map(|place| place.max(8)..place.max(8) + 3)
        .filter(beyond_head)
        .chain(words.saturating_sub(5)..words)
}

/// Whether a value is improbable by itself: not a small number, not a pair of
/// them, not the same few bytes.
pub(super) fn is_telling(value: u64) -> bool {
    const SMALL: u64 = 1 << 16;
    let small = |value: u64, bits: u32| {
        let all = u64::MAX >> (64 - bits);
        value < SMALL || all - value < SMALL
    };
    if small(value, 64) || small(value & 0xFFFF_FFFF, 32) && small(value >> 32, 32) {
        return false;
    }
    let bytes = value.to_ne_bytes();
    let mut kinds = bytes;
    kinds.sort_unstable();
    kinds
        .windows(2)
        .filter(|pair| pair.first() != pair.last())
        .count()
        >= 2
}

/// A hash under a key of this run, so that it tells nothing about the value.
fn hash(value: u64) -> u32 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    KEY.get_or_init(RandomState::new).hash_one(value) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(address: u64, words: &[u64]) -> FirstRead {
        let mut sample = FirstRead {
            allocator: Allocator::Glibc,
            address,
            requested: words.len() as u64 * 8,
            usable: words.len() as u64 * 8,
            header: 0,
            words: [0; PROBES],
            read: 0,
            telling: 0,
            identifying: 0,
            marked: 0,
            written: 0,
            is_born: false,
            unlinked: false,
        };
        let mut values = [None; PROBES];
        for (slot, word) in values.iter_mut().zip(words) {
            *slot = Some(*word);
        }
        sample.take(&values);
        sample
    }

    const A: u64 = 0x0123_4567_89ab_cdef;
    const B: u64 = 0x7f12_3456_7890;
    const C: u64 = 0x6e6f_6973_7365_7373;

    #[test]
    fn shared_and_plain_words_identify_nothing() {
        let mut site = [
            sample(0x1000, &[A, 1, C, 0]),
            sample(0x2000, &[B, 1, C, u64::MAX]),
        ];
        identify(&mut site);
        assert_eq!(site.map(|sample| sample.identifying), [0b0001, 0b0001]);
    }

    #[test]
    fn what_a_second_owner_leaves_alone_identifies_nothing() {
        let mut site = [
            sample(0x1000, &[A, C]),
            sample(0x1000, &[B, C]),
            sample(0x2000, &[A + 1, C + 1]),
        ];
        identify(&mut site);
        assert_eq!(site.map(|sample| sample.identifying), [1, 1, 1]);
    }

    #[test]
    fn what_was_there_before_identifies_nothing() {
        let mut site = [sample(0x1000, &[A, C]), sample(0x2000, &[B, C + 1])];
        for sample in &mut site {
            sample.born(&[0, if sample.address == 0x1000 { C } else { C + 1 }]);
        }
        identify(&mut site);
        assert_eq!(site.map(|sample| sample.identifying), [1, 1]);
    }

    #[test]
    fn one_sample_is_like_nothing() {
        let mut site = [sample(0x1000, &[A, B, C])];
        identify(&mut site);
        assert_eq!(site[0].identifying_words(), 0);
    }

    #[test]
    fn the_last_word_ends_where_the_request_does() {
        let mut short = sample(0x1000, &[A, B]);
        short.requested = 12;
        short.take(&[Some(A); PROBES]);
        let (read, same) = short.same(&std::array::from_fn(|index| {
            (index < 2).then_some(if index == 1 { A | 0xFF << 56 } else { A })
        }));
        assert_eq!((read, same), (0b11, 0b11));
    }

    #[test]
    fn knows_improbable_values() {
        for plain in [0, 1, 65_535, u64::MAX, 5 << 32 | 9, 0x2020_2020_2020_2020] {
            assert!(!is_telling(plain), "{plain:#x}");
        }
        for telling in [A, B, C, 0x1_0000_0001_2345] {
            assert!(is_telling(telling), "{telling:#x}");
        }
    }

    #[test]
    fn debug_shows_no_contents() {
        let shown = format!("{:?}", sample(0x1000, &[A, B]));
        assert!(!shown.contains('[') && shown.contains("0x1000"), "{shown}");
    }

    proptest! {
        #[test]
        fn probes_stay_inside(requested in 1u64..200_000, slack in 0u64..5_000) {
            let usable = requested + slack;
            let places: Vec<u64> = offsets(requested, usable).into_iter().flatten().collect();
            prop_assert!(!places.is_empty());
            for place in &places {
                prop_assert!(place + 8 <= usable.next_multiple_of(8));
            }
            let mut distinct = places.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), places.len());
        }
    }
}
