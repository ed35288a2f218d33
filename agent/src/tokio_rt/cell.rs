//! One task's cell in memory, and whether it is one at all.
//!
//! Layout (tokio/src/runtime/task/core.rs, `repr(C)`): state, queue link,
//! vtable, owner; then at the offsets that the vtable tells the scheduler, the
//! id and the future. Memory that was released may still look like a cell;
//! but the last reference is taken away before a cell is freed, so such a one
//! has none.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::OnceLock,
};

use super::vtable::Vtable;

/// Where the header points at the vtable.
pub const VTABLE: u64 = 16;
/// Bytes of a future that its print is made of.
const PRINTED: u64 = 1024;

/// Bytes from the start that are wanted of a cell: up to the id and the
/// beginning of the future.
pub fn span(vtable: &Vtable) -> u64 {
    let room = vtable.trailer.saturating_sub(vtable.stage());
    let printed = room.min(PRINTED).max(8 * STAGE_WORDS as u64);
    vtable.stage().saturating_add(printed)
}

/// Bytes that will do: up to the first words of the future.
pub fn least_span(vtable: &Vtable) -> u64 {
    vtable.stage().saturating_add(8 * STAGE_WORDS as u64)
}
/// Words of the future that are kept: a boxed one is two.
pub const STAGE_WORDS: usize = 3;

/// References that no real task has.
const MAX_REFERENCES: u64 = 1 << 24;
/// Runtimes that no process starts.
const MAX_OWNER: u64 = 1 << 24;
/// Tasks that no process starts.
const MAX_ID: u64 = 1 << 48;

/// Tokio's state word of a task (tokio/src/runtime/task/state.rs).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State(pub u64);

impl State {
    /// It is being polled, or its blocking function runs.
    pub fn is_running(self) -> bool {
        self.0 & 1 != 0
    }

    /// It has ended.
    pub fn is_complete(self) -> bool {
        self.0 & 2 != 0
    }

    /// It has been woken and waits for a worker.
    pub fn is_notified(self) -> bool {
        self.0 & 4 != 0
    }

    /// A join handle is held.
    pub fn has_join_handle(self) -> bool {
        self.0 & 8 != 0
    }

    /// Somebody waits for its end.
    pub fn has_join_waker(self) -> bool {
        self.0 & 16 != 0
    }

    /// It was told to end.
    pub fn is_cancelled(self) -> bool {
        self.0 & 32 != 0
    }

    /// References to the cell: its runtime's list, its join handle, wakers.
    pub fn references(self) -> u64 {
        self.0 >> 6
    }

    /// In one word; the strongest of the above.
    pub fn name(self) -> &'static str {
        if self.is_complete() {
            "complete"
        } else if self.is_running() {
            "running"
        } else if self.is_notified() {
            "scheduled"
        } else {
            "idle"
        }
    }
}

/// A task's cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Tokio's state word.
    pub state: State,
    /// Number of the runtime or `LocalSet` that owns the task; 0 for work of
    /// the blocking pool, which none owns.
    pub owner: u64,
    /// The task's id.
    pub id: u64,
    /// Address of the spawning code's location, in unstable builds.
    pub spawn_location: Option<u64>,
    /// First words of the future or output; 0 beyond its end.
    pub stage: [u64; STAGE_WORDS],
    /// Changes with the beginning of the future, as far as the same run of
    /// this program reads it; none where less of it was read.
    pub print: Option<u64>,
}

/// Why something that points at a vtable is no task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCell {
    /// It was one and has been freed.
    Freed,
    /// It does not make sense.
    Implausible,
    /// There is less of it than was asked for.
    Short,
}

/// Reads the cell at the start of `bytes`, of which [`span`] are wanted.
///
/// # Errors
/// Why there is no cell.
pub fn read(bytes: &[u8], vtable: &Vtable) -> Result<Cell, NoCell> {
    let word = |offset: u64| -> Option<u64> {
        let from = usize::try_from(offset).ok()?;
        let bytes = bytes.get(from..from.checked_add(8)?)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    };
    let need = |offset: u64| word(offset).ok_or(NoCell::Short);
    let (state, next, owner) = (State(need(0)?), need(8)?, need(24)?);
    let id = need(vtable.id)?;
    if state.references() == 0 {
        return Err(NoCell::Freed);
    }
    // Canonical user address, aligned as cells are.
    let next_is_pointer = next == 0 || (next % 8 == 0 && (1 << 12..1 << 47).contains(&next));
    if state.references() > MAX_REFERENCES
        || !next_is_pointer
        || owner > MAX_OWNER
        || !(1..MAX_ID).contains(&id)
        || (state.is_running() && state.is_complete())
    {
        return Err(NoCell::Implausible);
    }
    let mut first = [0; STAGE_WORDS];
    for (index, place) in first.iter_mut().enumerate() {
        let offset = vtable.stage() + 8 * index as u64;
        if offset < vtable.trailer {
            *place = word(offset).unwrap_or(0);
        }
    }
    Ok(Cell {
        state,
        owner,
        id,
        spawn_location: vtable.spawn_location.and_then(word),
        stage: first,
        print: print(bytes, vtable),
    })
}

/// A keyed hash of the beginning of the future: a poll that goes on to another
/// `.await`, or counts something, changes it.
fn print(bytes: &[u8], vtable: &Vtable) -> Option<u64> {
    static KEY: OnceLock<u64> = OnceLock::new();
    let key = *KEY.get_or_init(|| RandomState::new().hash_one(0));
    let from = usize::try_from(vtable.stage()).ok()?;
    let end = usize::try_from(span(vtable).min(vtable.trailer)).ok()?;
    let (words, _) = bytes.get(from..end.max(from))?.as_chunks::<8>();
    Some(words.iter().fold(key, |hash, word| {
        (hash.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(key | 1)
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vtable() -> Vtable {
        Vtable {
            address: 0x1000,
            functions: [0; 7],
            trailer: 72,
            scheduler: 32,
            id: 40,
            spawn_location: None,
        }
    }

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_parked_task() {
        let words = [2 << 6, 0, 0x1000, 1, 0x7f00_0000_1000, 17, 5, 6, 7];
        let cell = read(&bytes(&words), &vtable()).unwrap();
        assert_eq!((cell.id, cell.owner, cell.state.references()), (17, 1, 2));
        assert_eq!(cell.state.name(), "idle");
        assert_eq!(cell.stage, [5, 6, 7]);
        assert_eq!(cell.spawn_location, None);
    }

    #[test]
    fn freed_and_overwritten_ones_are_told_apart() {
        let with = |at: usize, word: u64| {
            let mut words = [2 << 6, 0, 0x1000, 1, 0, 17, 5, 6, 7];
            words[at] = word;
            read(&bytes(&words), &vtable())
        };
        assert_eq!(with(0, 0x3f), Err(NoCell::Freed));
        for (at, word) in [
            (0, 0x7f12_3456_7000), // a free list's link
            (0, 2 << 6 | 3),       // both running and complete
            (1, 0x1234_5678_9abc_def1),
            (1, 64),
            (3, 0x7f12_3456_7000),
            (5, 0),
            (5, 1 << 60),
        ] {
            assert_eq!(with(at, word), Err(NoCell::Implausible), "{at} {word:#x}");
        }
        assert_eq!(read(&[0; 24], &vtable()), Err(NoCell::Short));
    }

    #[test]
    fn the_print_changes_with_the_future() {
        let print = |words: &[u64]| read(&bytes(words), &vtable()).unwrap().print;
        let words = [2 << 6, 0, 0x1000, 1, 0x7f00_0000_1000, 17, 5, 6, 7];
        let first = print(&words).unwrap();
        let mut others = words;
        (others[0], others[3]) = (3 << 6, 2);
        assert_eq!(
            print(&others),
            Some(first),
            "header and owner are not in it"
        );
        others[8] = 8;
        assert_ne!(print(&others), Some(first));
        assert_eq!(print(&words[..8]), None, "less was read");
    }

    #[test]
    fn states_have_names() {
        for (state, name) in [
            (1, "running"),
            (2, "complete"),
            (4, "scheduled"),
            (0x28, "idle"),
        ] {
            assert_eq!(State(state | 64).name(), name);
        }
        let state = State(0b11_1000 | 3 << 6);
        assert!(state.has_join_handle() && state.has_join_waker() && state.is_cancelled());
        assert_eq!(state.references(), 3);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_trouble(
            bytes in proptest::collection::vec(any::<u8>(), 0..160),
            id in 32u64..200,
            length in 0u64..1 << 26,
        ) {
            let vtable = Vtable { id, trailer: id + 8 + length, ..vtable() };
            if let Ok(cell) = read(&bytes, &vtable) {
                prop_assert!(cell.id != 0 && cell.state.references() != 0);
            }
        }
    }
}
