//! Tokio's task vtables in a file: one for each type of future and scheduler.
//!
//! The structure is private to Tokio and its words may come in any order; two
//! orders are known. Tokio 1.23 and later: seven functions and three offsets
//! (tokio/src/runtime/task/raw.rs). No vtable of a trait object looks like
//! that: behind its functions comes the next one's drop, size and alignment.

use serde::{Deserialize, Serialize};

use crate::elf::image::Pointer;

/// Functions of a vtable.
const FUNCTIONS: usize = 7;
/// Offsets of a vtable, without the one that only unstable builds have.
const OFFSETS: u64 = 3;
/// Largest offset in a cell that is believed: futures are smaller.
const MAX_OFFSET: u64 = 1 << 26;
/// Largest alignment of a future that is believed.
const MAX_ALIGN: u64 = 4096;
/// Largest scheduler handle in a cell: a pointer, or little more.
const MAX_SCHEDULER: u64 = 64;
/// Bytes of a cell's header.
pub const HEADER: u64 = 32;
/// Vtables of one file.
pub const MAX_VTABLES: usize = 1 << 16;

/// One vtable. Addresses are as linked, offsets are from a cell's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vtable {
    /// What the headers of its cells point at.
    pub address: u64,
    /// In Tokio's order: poll, schedule, dealloc, try_read_output,
    /// drop_join_handle_slow, drop_abort_handle, shutdown.
    pub functions: [u64; FUNCTIONS],
    /// Behind the future.
    pub trailer: u64,
    /// The scheduler's handle.
    pub scheduler: u64,
    /// The task's id.
    pub id: u64,
    /// A pointer to where the task was spawned; unstable builds have it.
    pub spawn_location: Option<u64>,
}

impl Vtable {
    /// Whether its offsets are such as [`find`] believes.
    pub fn is_sound(&self) -> bool {
        (HEADER..=self.id).contains(&self.scheduler)
            && self.id < self.trailer
            && self.trailer < MAX_OFFSET
            && self.spawn_location.is_none_or(|place| place < self.trailer)
    }

    /// Polls the future.
    pub fn poll(&self) -> u64 {
        self.functions.first().copied().unwrap_or(0)
    }

    /// The functions that the future's own code hangs on: dealloc, shutdown
    /// and poll.
    pub fn owners(&self) -> [u64; 3] {
        let [poll, _, dealloc, _, _, _, shutdown] = self.functions;
        [dealloc, shutdown, poll]
    }

    /// Where the future, or its output, begins.
    pub fn stage(&self) -> u64 {
        self.spawn_location.unwrap_or(self.id).saturating_add(8)
    }
}

/// Finds all vtables. `pointers` are the file's words that point at code,
/// sorted by place; `number` tells other words.
///
/// An array of vtables in one order looks like one in the other order too,
/// shifted by three words. Both are returned: no cell points at the wrong
/// ones.
pub fn find(pointers: &[Pointer], number: impl Fn(u64) -> Option<u64>) -> Vec<Vtable> {
    let mut found = Vec::new();
    for window in pointers.windows(FUNCTIONS) {
        let (Some(first), Some(last)) = (window.first(), window.last()) else {
            continue;
        };
        // Sorted and distinct: so far apart only if all are neighbours.
        let span = 8 * (FUNCTIONS as u64 - 1);
        if first.place.checked_add(span) != Some(last.place) || first.place % 8 != 0 {
            continue;
        }
        let mut functions = [0; FUNCTIONS];
        for (function, pointer) in functions.iter_mut().zip(window) {
            *function = pointer.target;
        }
        let behind = last.place.saturating_add(8);
        if let Some(offsets) = offsets(&number, behind) {
            let spawn_location = number(behind.saturating_add(8 * OFFSETS));
            found.push(offsets.vtable(first.place, functions, spawn_location));
        }
        if let Some(before) = first.place.checked_sub(8 * OFFSETS)
            && let Some(offsets) = offsets(&number, before)
        {
            found.push(offsets.vtable(before, functions, None));
        }
        if found.len() >= MAX_VTABLES {
            break;
        }
    }
    found
}

struct Offsets {
    trailer: u64,
    scheduler: u64,
    id: u64,
}

impl Offsets {
    fn vtable(self, address: u64, functions: [u64; FUNCTIONS], next: Option<u64>) -> Vtable {
        Vtable {
            address,
            functions,
            trailer: self.trailer,
            scheduler: self.scheduler,
            id: self.id,
            spawn_location: next.filter(|next| *next == self.id + 8 && *next < self.trailer),
        }
    }
}

/// The three offsets at `place`, if they are such.
fn offsets(number: impl Fn(u64) -> Option<u64>, place: u64) -> Option<Offsets> {
    let trailer = number(place)?;
    let scheduler = number(place.checked_add(8)?)?;
    let id = number(place.checked_add(16)?)?;
    let aligned = [trailer, scheduler, id]
        .iter()
        .all(|offset| offset % 8 == 0 && *offset < MAX_OFFSET);
    let ordered = (HEADER..=HEADER + MAX_ALIGN).contains(&scheduler)
        && (scheduler..=scheduler + MAX_SCHEDULER).contains(&id)
        && trailer >= id + 8;
    (aligned && ordered).then_some(Offsets {
        trailer,
        scheduler,
        id,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const CODE: u64 = 0x5_0000;

    fn pointers(places: impl IntoIterator<Item = u64>) -> Vec<Pointer> {
        places
            .into_iter()
            .map(|place| Pointer {
                place,
                target: CODE + place,
            })
            .collect()
    }

    fn found(pointers: &[Pointer], numbers: &[(u64, u64)]) -> Vec<Vtable> {
        let numbers: HashMap<u64, u64> = numbers.iter().copied().collect();
        find(pointers, |place| numbers.get(&place).copied())
    }

    #[test]
    fn functions_first() {
        let list = pointers((0..7).map(|word| 0x1000 + 8 * word));
        let numbers = [(0x1038, 400), (0x1040, 32), (0x1048, 40), (0x1050, 99)];
        let vtables = found(&list, &numbers);
        assert_eq!(vtables.len(), 1);
        let vtable = &vtables[0];
        assert_eq!((vtable.address, vtable.poll()), (0x1000, CODE + 0x1000));
        assert_eq!((vtable.trailer, vtable.scheduler, vtable.id), (400, 32, 40));
        assert_eq!((vtable.spawn_location, vtable.stage()), (None, 48));
        let unstable = [(0x1038, 400), (0x1040, 32), (0x1048, 40), (0x1050, 48)];
        let vtable = found(&list, &unstable).remove(0);
        assert_eq!((vtable.spawn_location, vtable.stage()), (Some(48), 56));
    }

    #[test]
    fn offsets_first() {
        let list = pointers((3..10).map(|word| 0x1000 + 8 * word));
        let vtables = found(&list, &[(0x1000, 400), (0x1008, 32), (0x1010, 48)]);
        assert_eq!(vtables.len(), 1);
        assert_eq!(vtables[0].address, 0x1000);
        assert_eq!(vtables[0].poll(), CODE + 0x1018);
    }

    #[test]
    fn neighbours_give_both_readings() {
        let places = (0..7).chain(10..17).map(|word| 0x1000 + 8 * word);
        let offsets = [(7, 400), (8, 32), (9, 40), (17, 400), (18, 32), (19, 40)];
        let numbers = offsets.map(|(word, value)| (0x1000 + 8 * word, value));
        let mut addresses: Vec<u64> = found(&pointers(places), &numbers)
            .iter()
            .map(|vtable| vtable.address)
            .collect();
        addresses.sort_unstable();
        assert_eq!(addresses, [0x1000, 0x1038, 0x1050]);
    }

    #[test]
    fn trait_objects_are_none() {
        // seven methods, then the next vtable: no drop, size 24, alignment 8
        let list = pointers((0..7).map(|word| 0x1000 + 8 * word));
        assert!(found(&list, &[(0x1038, 0), (0x1040, 24), (0x1048, 8)]).is_empty());
        for wrong in [
            [(0x1038, 401), (0x1040, 32), (0x1048, 40)],
            [(0x1038, 400), (0x1040, 24), (0x1048, 40)],
            [(0x1038, 400), (0x1040, 32), (0x1048, 24)],
            [(0x1038, 400), (0x1040, 32), (0x1048, 400)],
            [(0x1038, 40), (0x1040, 32), (0x1048, 40)],
            [(0x1038, 1 << 40), (0x1040, 32), (0x1048, 40)],
        ] {
            assert!(found(&list, &wrong).is_empty(), "{wrong:?}");
        }
        let gap = pointers(
            (0..8)
                .filter(|word| *word != 3)
                .map(|word| 0x1000 + 8 * word),
        );
        assert!(found(&gap, &[(0x1040, 400), (0x1048, 32), (0x1050, 40)]).is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_words_are_no_trouble(
            places in proptest::collection::btree_set(any::<u64>(), 0..64),
            words in proptest::collection::vec(any::<u64>(), 64),
        ) {
            let list = pointers_of(&places.into_iter().collect::<Vec<_>>());
            for vtable in find(&list, |place| words.get((place / 8 % 64) as usize).copied()) {
                prop_assert!(vtable.id >= HEADER && vtable.trailer >= vtable.stage());
            }
        }

        #[test]
        fn dense_words_are_no_trouble(kinds in proptest::collection::vec(0u64..600, 0..200)) {
            // small numbers are offsets, the rest pointers
            let word = |index: usize| 0x1000 + 8 * index as u64;
            let list = pointers(kinds.iter().enumerate().filter(|(_, kind)| **kind > 100).map(|(index, _)| word(index)));
            for vtable in find(&list, |place| {
                let kind = kinds.get((place.checked_sub(0x1000)? / 8) as usize)?;
                (*kind <= 100).then_some(*kind * 8)
            }) {
                prop_assert!(vtable.id >= vtable.scheduler && vtable.trailer >= vtable.stage());
            }
        }
    }

    fn pointers_of(places: &[u64]) -> Vec<Pointer> {
        places
            .iter()
            .map(|place| Pointer {
                place: *place,
                target: place.wrapping_mul(3),
            })
            .collect()
    }
}
