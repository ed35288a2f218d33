//! Unwind tables in the kernel: rows of all files, packed into chunks.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use agent_ebpf::{
    abi::stack::{CHUNK_ROWS, MAX_CHUNKS, Row},
    logic::rows,
};
use anyhow::{Context as _, Result, bail};

use super::{bpf, object::Object};

/// A run of rows in one chunk, with its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Virtual address of the first row.
    pub start: u32,
    /// Virtual address where the next piece goes on; `u32::MAX` for the last.
    pub end: u32,
    /// Index of the chunk.
    pub chunk: u32,
    /// One past the last row in the chunk.
    pub end_row: u32,
    /// First index entry in the chunk.
    pub index_row: u32,
    /// Page of that entry.
    pub first_page: u32,
    /// Pages that have an entry.
    pub pages: u32,
}

/// One chunk as the kernel takes it.
#[repr(C)]
struct Chunk([Row; CHUNK_ROWS]);

/// Fills chunks one after the other. Files share chunks; large ones span
/// several.
pub struct Tables {
    /// Rows of the chunk that is being filled.
    open: Vec<Row>,
    /// Its index.
    at: usize,
    /// The kernel programs can find it.
    shown: bool,
    /// It has rows that its map has not.
    dirty: bool,
    /// The chunks' maps; none where a chunk was given back.
    maps: Vec<Option<OwnedFd>>,
}

/// Code without a rule, for mappings that no file stands behind.
pub const UNRULED: Piece = Piece {
    start: 0,
    end: u32::MAX,
    chunk: 0,
    end_row: 1,
    index_row: 0,
    first_page: 0,
    pages: 0,
};

/// Fewer rows are not worth the rest of a chunk.
const LEAST_ROWS: usize = 64;

impl Tables {
    /// No rows yet but the one for unruled code.
    pub fn new() -> Self {
        let unruled = Row {
            pc: 0,
            cfa_offset: 0,
            rbp_offset: Row::RBP_KEPT,
            kind: Row::NONE,
        };
        Self {
            open: vec![unruled],
            at: 0,
            shown: false,
            dirty: true,
            maps: vec![None],
        }
    }

    /// Chunks in use.
    pub fn chunks(&self) -> usize {
        self.maps.iter().flatten().count()
    }

    /// Gives a chunk back that none of `used` is. One at a time: the kernel
    /// waits for a grace period.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn free_one(&mut self, object: &Object, used: &HashSet<u32>) -> Result<()> {
        // The first one holds the row for unruled code.
        let idle = self
            .maps
            .iter_mut()
            .enumerate()
            .skip(1)
            .find(|(index, map)| {
                map.is_some() && *index != self.at && !used.contains(&(*index as u32))
            });
        if let Some((index, map)) = idle {
            // SAFETY: the outer map takes an index.
            unsafe { bpf::delete(object.map("TABLES")?, &(index as u32)) }?;
            *map = None;
        }
        Ok(())
    }

    /// Begins a chunk.
    fn begin(&mut self) -> Result<()> {
        let free = self.maps.iter().position(Option::is_none);
        let at = free.unwrap_or(self.maps.len());
        if at >= MAX_CHUNKS as usize {
            bail!("the unwind tables are full ({MAX_CHUNKS} chunks of {CHUNK_ROWS} rows)");
        }
        let map = Some(new_chunk()?);
        match self.maps.get_mut(at) {
            Some(place) => *place = map,
            None => self.maps.push(map),
        }
        (self.at, self.shown) = (at, false);
        self.open.clear();
        Ok(())
    }

    /// Takes a file's rows in; [`Self::flush`] makes them visible.
    ///
    /// # Errors
    /// When the kernel refuses memory, or all chunks are full.
    pub fn add(&mut self, object: &Object, rows: &[Row]) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut rest = rows;
        while !rest.is_empty() {
            let room = CHUNK_ROWS - self.open.len();
            let taken = fitting(rest, room);
            if taken < rest.len().min(LEAST_ROWS) {
                if room == CHUNK_ROWS {
                    bail!("its code is spread too thinly for the unwind tables");
                }
                self.flush(object)?;
                self.begin()?;
                continue;
            }
            let (now, later) = rest.split_at(taken);
            let chunk = self.at as u32;
            let end = later.first().map_or(u32::MAX, |row| row.pc);
            pieces.push(lay_out(
                &mut self.open,
                now,
                Piece {
                    end,
                    chunk,
                    ..UNRULED
                },
            ));
            self.dirty = true;
            rest = later;
        }
        Ok(pieces)
    }

    /// Writes the open chunk to the kernel.
    pub fn flush(&mut self, object: &Object) -> Result<()> {
        if !self.dirty {
            return Ok(());
        }
        let map = match self.maps.get_mut(self.at) {
            Some(Some(map)) => map,
            Some(place) => place.insert(new_chunk()?),
            None => return Ok(()),
        };
        let end = Row {
            pc: u32::MAX,
            cfa_offset: 0,
            rbp_offset: Row::RBP_KEPT,
            kind: Row::NONE,
        };
        let mut rows = self.open.clone();
        rows.resize(CHUNK_ROWS, end);
        // SAFETY: the map holds one value of `CHUNK_ROWS` rows.
        unsafe { bpf::update(map.as_fd(), &0u32, rows.as_slice()) }
            .context("cannot fill unwind tables")?;
        // Only once a chunk: the kernel waits for a grace period, which takes
        // longer than a program takes to start. Later rows go into the map
        // that it knows, behind those that it may be reading.
        if !self.shown {
            let index = self.at as u32;
            // SAFETY: the outer map takes an index and a descriptor.
            unsafe { bpf::update(object.map("TABLES")?, &index, &map.as_raw_fd()) }
                .context("cannot add unwind tables")?;
            self.shown = true;
        }
        self.dirty = false;
        Ok(())
    }
}

fn new_chunk() -> Result<OwnedFd> {
    bpf::create_single::<Chunk>().context("no memory for unwind tables")
}

/// How many of `rows`, with their index, fit into `room` entries.
fn fitting(rows: &[Row], room: usize) -> usize {
    let mut taken = rows.len().min(room);
    while let (Some(first), Some(last)) = (
        rows.first(),
        taken.checked_sub(1).and_then(|last| rows.get(last)),
    ) {
        let index = (rows::page(last.pc) - rows::page(first.pc)) as usize + 2;
        if taken + index <= room {
            break;
        }
        // Closer at each turn; a code page has far fewer than 256 rows.
        taken = (taken * room / (taken + index)).min(taken - 1);
    }
    taken
}

/// Appends rows and their index to a chunk.
fn lay_out(chunk: &mut Vec<Row>, rows: &[Row], piece: Piece) -> Piece {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return piece;
    };
    let first_row = chunk.len();
    chunk.extend_from_slice(rows);
    let index_row = chunk.len() as u32;
    let first_page = rows::page(first.pc);
    let pages = rows::page(last.pc) - first_page + 1;
    for page in 0..=pages {
        let begins = u64::from(first_page + page) << rows::PAGE_SHIFT;
        let at = rows
            .partition_point(|row| u64::from(row.pc) <= begins)
            .saturating_sub(1);
        chunk.push(Row {
            pc: (first_row + at) as u32,
            ..Row::default()
        });
    }
    Piece {
        start: first.pc,
        end_row: index_row,
        index_row,
        first_page,
        pages,
        ..piece
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::object;
    use agent_ebpf::abi::stack::Mapping;
    use proptest::prelude::*;

    #[test]
    fn chunks_that_nobody_uses_are_filled_again() {
        if !object::is_embedded() || !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs the kernel object and root");
            return;
        }
        let object = Object::load(object::Sizes { live_blocks: 1024 }).unwrap();
        let mut tables = Tables::new();
        let file = |tables: &mut Tables, rows: usize| {
            let row = |pc| Row {
                pc,
                ..Row::default()
            };
            let rows: Vec<Row> = (1..=rows as u32).map(row).collect();
            let pieces = tables.add(&object, &rows).unwrap();
            tables.flush(&object).unwrap();
            pieces
        };
        let large = file(&mut tables, CHUNK_ROWS * 3);
        let small = file(&mut tables, 100);
        let chunks = |pieces: &[Piece]| pieces.iter().map(|piece| piece.chunk).collect::<Vec<_>>();
        assert_eq!(chunks(&large), [0, 1, 2, 3]);
        assert_eq!(chunks(&small), [3]);
        let used: HashSet<u32> = chunks(&small).into_iter().collect();
        for left in [3, 2, 2] {
            tables.free_one(&object, &used).unwrap();
            assert_eq!(tables.chunks(), left);
        }
        // The first and the one that is being filled stay.
        tables.free_one(&object, &HashSet::new()).unwrap();
        assert_eq!(tables.chunks(), 2);
        assert_eq!(chunks(&file(&mut tables, CHUNK_ROWS * 2)), [3, 1, 2]);
    }

    fn mapping(piece: &Piece) -> Mapping {
        Mapping {
            end_row: piece.end_row,
            index_row: piece.index_row,
            first_page: piece.first_page,
            pages: piece.pages,
            ..Mapping::default()
        }
    }

    proptest! {
        #[test]
        fn the_index_leads_to_the_row(
            gaps in proptest::collection::vec(1u32..2000, 1..400),
            before in 0usize..50,
            start in 0u32..100_000,
            probes in proptest::collection::vec(0u32..1_000_000, 50),
        ) {
            let mut pc = start;
            let rows: Vec<Row> = gaps.iter().map(|gap| { pc += gap; Row { pc, ..Row::default() } }).collect();
            let mut chunk = vec![Row::default(); before];
            let piece = lay_out(&mut chunk, &rows, UNRULED);
            for probe in probes {
                let probe = rows[0].pc + probe % (pc - rows[0].pc + 3000);
                let expected = before + rows.partition_point(|row| row.pc <= probe) - 1;
                let found = rows::find(&mapping(&piece), probe, |index| chunk[index as usize].pc);
                prop_assert_eq!(found as usize, expected);
            }
        }

        #[test]
        fn what_fits_fits(gaps in proptest::collection::vec(1u32..5000, 1..400), room in 0usize..600) {
            let mut pc = 0;
            let rows: Vec<Row> = gaps.iter().map(|gap| { pc += gap; Row { pc, ..Row::default() } }).collect();
            let taken = fitting(&rows, room);
            let mut chunk = Vec::new();
            lay_out(&mut chunk, &rows[..taken], UNRULED);
            prop_assert!(chunk.len() <= room);
        }
    }
}
