//! Unwind tables in the kernel: rows of all files, packed into chunks.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use agent_ebpf::abi::stack::{CHUNK_ROWS, MAX_CHUNKS, Row};
use anyhow::{Context as _, Result, bail};

use super::{bpf, object::Object};

/// A run of rows in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Virtual address of the first row.
    pub start: u32,
    /// Virtual address where the next piece goes on; `u32::MAX` for the last.
    pub end: u32,
    /// Index of the chunk.
    pub chunk: u32,
    /// First row in the chunk.
    pub first_row: u32,
    /// One past the last row.
    pub end_row: u32,
}

/// One chunk as the kernel takes it.
#[repr(C)]
struct Chunk([Row; CHUNK_ROWS]);

/// Fills chunks one after the other. Files share chunks; large ones span
/// several.
pub struct Tables {
    /// Rows of the chunk that is being filled.
    open: Vec<Row>,
    /// Its map, and those of the chunks before it.
    maps: Vec<OwnedFd>,
    dirty: bool,
}

/// Code without a rule, for mappings that no file stands behind.
pub const UNRULED: Piece = Piece {
    start: 0,
    end: u32::MAX,
    chunk: 0,
    first_row: 0,
    end_row: 1,
};

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
            maps: Vec::new(),
            dirty: true,
        }
    }

    /// Takes a file's rows in; [`Self::flush`] makes them visible.
    ///
    /// # Errors
    /// When the kernel refuses memory, or all chunks are full.
    pub fn add(&mut self, object: &Object, rows: &[Row]) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut rest = rows;
        while let Some(first) = rest.first() {
            if self.open.len() >= CHUNK_ROWS {
                self.flush(object)?;
                self.open.clear();
                self.maps
                    .push(bpf::create_single::<Chunk>().context("no memory for unwind tables")?);
            }
            let taken = rest.len().min(CHUNK_ROWS - self.open.len());
            let (now, later) = rest.split_at(taken);
            let chunk = self.maps.len().saturating_sub(1) as u32;
            if chunk >= MAX_CHUNKS {
                bail!("the unwind tables are full ({MAX_CHUNKS} chunks of {CHUNK_ROWS} rows)");
            }
            let first_row = self.open.len() as u32;
            self.open.extend_from_slice(now);
            self.dirty = true;
            pieces.push(Piece {
                start: first.pc,
                end: later.first().map_or(u32::MAX, |row| row.pc),
                chunk,
                first_row,
                end_row: first_row + taken as u32,
            });
            rest = later;
        }
        Ok(pieces)
    }

    /// Writes the open chunk to the kernel.
    pub fn flush(&mut self, object: &Object) -> Result<()> {
        if !self.dirty {
            return Ok(());
        }
        if self.maps.is_empty() {
            self.maps
                .push(bpf::create_single::<Chunk>().context("no memory for unwind tables")?);
        }
        let index = (self.maps.len() - 1) as u32;
        let Some(map) = self.maps.last() else {
            return Ok(());
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
        // SAFETY: the outer map takes an index and a descriptor.
        unsafe { bpf::update(object.map("TABLES")?, &index, &map.as_raw_fd()) }
            .context("cannot add unwind tables")?;
        self.dirty = false;
        Ok(())
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}
