//! Task cells and thread control blocks seen in memory, piece by piece.

use std::collections::HashMap;

use super::{
    cell::{self, Cell, NoCell},
    thread,
    vtable::Vtable,
};

/// Most cells that are kept: servers have some 100 000.
pub const MAX_CELLS: usize = 1 << 20;
/// Most possible control blocks and cells at the edge of a piece.
const MAX_OTHERS: usize = 1 << 18;

/// A vtable in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VtableId {
    /// Index of its file.
    pub module: usize,
    /// Index among the file's vtables.
    pub vtable: usize,
}

/// A cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Address of the cell.
    pub address: u64,
    /// What it points at.
    pub vtable: VtableId,
    /// What was in it.
    pub cell: Cell,
}

/// Everything seen so far.
#[derive(Default)]
pub struct Sightings<'a> {
    vtables: HashMap<u64, (VtableId, &'a Vtable)>,
    lowest: u64,
    span: u64,
    /// Cells with a plausible content.
    pub cells: Vec<Sighting>,
    /// Addresses of cells that were not whole in one piece.
    pub torn: Vec<u64>,
    /// Addresses of possible thread control blocks.
    pub blocks: Vec<u64>,
    /// Cells that were freed, and words that only look like one.
    pub no_cells: u64,
    /// Cells beyond [`MAX_CELLS`].
    pub dropped: u64,
}

impl<'a> Sightings<'a> {
    /// To look for cells of these vtables, by address in the process.
    pub fn of(vtables: impl IntoIterator<Item = (u64, VtableId, &'a Vtable)>) -> Self {
        let vtables: HashMap<u64, (VtableId, &Vtable)> = vtables
            .into_iter()
            .map(|(address, id, vtable)| (address, (id, vtable)))
            .collect();
        let lowest = vtables.keys().copied().min().unwrap_or(u64::MAX);
        let highest = vtables.keys().copied().max().unwrap_or(u64::MAX);
        Self {
            vtables,
            lowest,
            span: highest.wrapping_sub(lowest),
            ..Self::default()
        }
    }

    /// Looks through one piece of memory; `start` is a multiple of 8.
    pub fn look(&mut self, start: u64, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<8>();
        let mut address = start;
        for (index, word) in words.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            if word.wrapping_sub(self.lowest) <= self.span {
                self.look_at_vtable(start, bytes, address, word);
            }
            if word == address {
                self.look_at_block(address, words.get(index..).unwrap_or_default());
            }
            address = address.wrapping_add(8);
        }
    }

    /// Looks at the one cell whose bytes these are.
    pub fn look_at_cell(&mut self, address: u64, bytes: &[u8]) {
        let at = cell::VTABLE as usize;
        let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) else {
            self.no_cells += 1;
            return;
        };
        let Some((id, vtable)) = self.vtables.get(&u64::from_le_bytes(*word)).copied() else {
            self.no_cells += 1;
            return;
        };
        match cell::read(bytes, vtable) {
            Ok(_) if self.cells.len() >= MAX_CELLS => self.dropped += 1,
            Ok(cell) => self.cells.push(Sighting {
                address,
                vtable: id,
                cell,
            }),
            Err(_) => self.no_cells += 1,
        }
    }

    fn look_at_vtable(&mut self, start: u64, bytes: &[u8], place: u64, word: u64) {
        let Some((_, vtable)) = self.vtables.get(&word).copied() else {
            return;
        };
        let Some(address) = place.checked_sub(cell::VTABLE) else {
            return;
        };
        let from = address
            .checked_sub(start)
            .and_then(|from| usize::try_from(from).ok());
        let whole = from.and_then(|from| bytes.get(from..));
        match whole.map(|bytes| (bytes, cell::read(bytes, vtable))) {
            Some((bytes, Ok(_) | Err(NoCell::Freed | NoCell::Implausible)))
                if bytes.len() as u64 >= cell::span(vtable) =>
            {
                self.look_at_cell(address, bytes);
            }
            _ if self.torn.len() < MAX_OTHERS => self.torn.push(address),
            _ => self.dropped += 1,
        }
    }

    fn look_at_block(&mut self, address: u64, words: &[[u8; 8]]) {
        let first: Option<&[[u8; 8]; 4]> = words.first_chunk();
        // One at the edge of a piece is looked at later.
        let may_begin = first.is_none_or(|first| {
            let words = first.map(u64::from_le_bytes);
            thread::may_begin(address, words)
        });
        if may_begin && self.blocks.len() < MAX_OTHERS {
            self.blocks.push(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 0x7f00_0000_0000;

    fn vtable() -> Vtable {
        Vtable {
            address: 0,
            functions: [0; 7],
            trailer: 64,
            scheduler: 32,
            id: 40,
            spawn_location: None,
        }
    }

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn sightings(vtable: &Vtable) -> Sightings<'_> {
        let id = VtableId {
            module: 0,
            vtable: 0,
        };
        Sightings::of([(0x5000_0000, id, vtable)])
    }

    #[test]
    fn cells_and_blocks_are_seen() {
        let vtable = vtable();
        let mut seen = sightings(&vtable);
        let cell = [2 << 6, 0, 0x5000_0000, 1, 0, 9, 0, 0, 0];
        let mut memory = vec![0x5000_0000, 0];
        memory.extend(cell);
        let block = START + 8 * memory.len() as u64;
        memory.extend([block, 0x1000, block, 0]);
        memory.extend([2 << 6, 0, 0x5000_0000]);
        seen.look(START, &bytes(&memory));
        assert_eq!(seen.cells.len(), 1);
        assert_eq!(
            (seen.cells[0].address, seen.cells[0].cell.id),
            (START + 16, 9)
        );
        assert_eq!(seen.blocks, [block]);
        // what begins before the piece, and what ends behind it
        let end = START + 8 * (memory.len() as u64 - 3);
        assert_eq!(seen.torn, [START - 16, end]);
        seen.look_at_cell(end, &bytes(&cell));
        assert_eq!((seen.cells.len(), seen.no_cells), (2, 0));
        seen.look_at_cell(end, &bytes(&[0; 9]));
        assert_eq!(seen.no_cells, 1);
    }

    #[test]
    fn without_vtables_nothing_is_a_cell() {
        let mut seen = Sightings::of([]);
        seen.look(START, &bytes(&[u64::MAX, 0, u64::MAX, 1, 2, 3, 4, 5, 6]));
        assert!(seen.cells.is_empty() && seen.torn.is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_memory_is_no_trouble(words in proptest::collection::vec(prop_oneof![Just(0x5000_0000), Just(START), any::<u64>(), 0u64..200], 0..80), high in any::<bool>()) {
            let vtable = vtable();
            let mut seen = sightings(&vtable);
            seen.look(if high { u64::MAX - 15 } else { START }, &bytes(&words));
            seen.look(0, &bytes(&words));
            prop_assert!(seen.cells.len() + seen.torn.len() <= 2 * words.len());
        }
    }
}
