//! The current task id's place in Tokio's context, told by the code that
//! exchanges it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use iced_x86::Register;

use super::access::Access;

/// Where the id is in the module's thread-local block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot {
    /// Byte offset of the id's word.
    pub(super) value: u64,
    /// The word before it is a tag: 0 for none, 1 for an id (Tokio 1.22 to
    /// 1.39). Otherwise the word itself is 0 for none.
    pub(super) has_tag: bool,
}

/// One word, or two neighbours: a slot.
fn slot(words: &BTreeSet<i64>) -> Option<Slot> {
    let mut words = words.iter().copied();
    match (words.next(), words.next(), words.next()) {
        (Some(value), None, None) => Some(Slot {
            value: u64::try_from(value).ok()?,
            has_tag: false,
        }),
        (Some(tag), Some(value), None) if value == tag + 8 => Some(Slot {
            value: u64::try_from(value).ok()?,
            has_tag: true,
        }),
        _ => None,
    }
}

/// Words of eight bytes that an access covers. Narrower and unaligned ones
/// cover none.
fn words(access: &Access) -> impl Iterator<Item = i64> + use<> {
    let count = if access.place % 8 == 0 && matches!(access.size, 8 | 16) {
        access.size as i64 / 8
    } else {
        0
    };
    let place = access.place;
    (0..count).map(move |word| place + 8 * word)
}

/// The slot that `TaskIdGuard::enter` or its `drop` writes: nothing else of
/// the context is written there in whole words.
pub(super) fn written(accesses: &[Access], context: &Range<i64>) -> Option<Slot> {
    let stored = accesses
        .iter()
        .filter(|access| access.write && context.contains(&access.place));
    slot(&stored.flat_map(words).collect())
}

/// The slot that a function exchanges.
pub(super) fn exchanged(accesses: &[Access], context: &Range<i64>) -> Option<Slot> {
    slot(&exchanged_words(accesses, context))
}

/// The words that a function exchanges: reads into one register and overwrites
/// from another, or with a constant. What entering a task does wherever it was
/// inlined.
pub(super) fn exchanged_words(accesses: &[Access], context: &Range<i64>) -> BTreeSet<i64> {
    let mut reads: BTreeMap<i64, BTreeSet<Register>> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for access in accesses
        .iter()
        .filter(|access| context.contains(&access.place))
    {
        for word in words(access) {
            if !access.write {
                reads.entry(word).or_default().insert(access.register);
            } else if reads
                .get(&word)
                .is_some_and(|into| !into.contains(&access.register))
            {
                found.insert(word);
            }
        }
    }
    found
}

/// The slot that most functions agree on, if that is a clear majority of at
/// least two.
pub(super) fn elected(votes: &[Slot]) -> Option<Slot> {
    let mut counts: BTreeMap<Slot, usize> = BTreeMap::new();
    for vote in votes {
        *counts.entry(*vote).or_default() += 1;
    }
    let (slot, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    (count >= 2 && count * 4 >= votes.len() * 3).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: Range<i64> = 0x20..0x70;

    fn access(place: i64, size: usize, write: bool, register: Register) -> Access {
        Access {
            place,
            size,
            write,
            register,
        }
    }

    #[test]
    fn one_word_or_a_tagged_pair() {
        let state = access(0x68, 1, true, Register::None);
        let value = access(0x50, 8, true, Register::RBX);
        assert_eq!(
            written(&[state, value], &CONTEXT),
            Some(Slot {
                value: 0x50,
                has_tag: false
            })
        );
        let tag = access(0x48, 8, true, Register::None);
        assert_eq!(
            written(&[tag, value], &CONTEXT),
            Some(Slot {
                value: 0x50,
                has_tag: true
            })
        );
        let both = access(0x48, 16, true, Register::ZMM0);
        assert_eq!(
            written(&[both], &CONTEXT),
            Some(Slot {
                value: 0x50,
                has_tag: true
            })
        );
        let far = access(0x30, 8, true, Register::RBX);
        assert_eq!(written(&[far, value], &CONTEXT), None);
        assert_eq!(
            written(&[access(0x78, 8, true, Register::RBX)], &CONTEXT),
            None,
            "outside the context"
        );
        assert_eq!(written(&[], &CONTEXT), None);
    }

    #[test]
    fn an_exchange_reads_before_it_writes_something_else() {
        let read = access(0x50, 8, false, Register::R15);
        let write = access(0x50, 8, true, Register::R12);
        let restore = access(0x50, 8, true, Register::R15);
        assert_eq!(
            exchanged(&[read, write, restore], &CONTEXT),
            Some(Slot {
                value: 0x50,
                has_tag: false
            })
        );
        assert_eq!(exchanged(&[read, restore], &CONTEXT), None, "only put back");
        assert_eq!(exchanged(&[write, read], &CONTEXT), None);
    }

    #[test]
    fn a_vote_needs_a_clear_majority() {
        let (right, wrong) = (
            Slot {
                value: 48,
                has_tag: false,
            },
            Slot {
                value: 32,
                has_tag: false,
            },
        );
        assert_eq!(elected(&[right, right, right, wrong]), Some(right));
        assert_eq!(elected(&[right, right, wrong]), None);
        assert_eq!(elected(&[right]), None);
        assert_eq!(elected(&[]), None);
    }
}
