//! A target's executable mappings: given to the kernel unwinder, and used here
//! to turn code addresses into places in files.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use agent_ebpf::abi::stack::{self, MAX_MAPPINGS, Mappings};
use anyhow::{Result, ensure};

use super::{
    bpf,
    files::{CodeFile, Files},
    object::Object,
    tables::{Piece, UNRULED},
};
use crate::host::{
    mapping::{
        Mapping,
        code::{self, TooMany, View},
    },
    module::Module,
};

/// The next list of mappings: what the kernel remembers of an earlier one is
/// void. 0 is never given, as it is what an empty memory says.
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// One executable mapping.
#[derive(Clone, Debug)]
pub struct Code {
    /// The mapping.
    pub mapping: Mapping,
    /// The file behind it, or why there is none.
    pub file: Result<Arc<CodeFile>, String>,
    /// Address in the process minus address as linked.
    pub bias: u64,
}

/// The executable mappings of one process at one time.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    /// Sorted by address.
    pub code: Vec<Code>,
    /// How often it maps each part of the files among them.
    pub views: Vec<View>,
    /// Pieces of mappings that did not fit the kernel's table, and mappings
    /// that were not kept.
    pub dropped: usize,
}

impl AddressSpace {
    /// Reads the mappings of a process and gives them to the kernel, as those
    /// of the target in a slot.
    ///
    /// # Errors
    /// When the process is gone or the kernel refuses memory.
    pub fn load(object: &Object, files: &mut Files, pid: u32, slot: u32) -> Result<Self> {
        Self::of_mappings(object, files, pid, slot, mapped(pid)?)
    }

    /// As [`Self::load`]; none when the mappings are still these.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_anew(
        &self,
        object: &Object,
        files: &mut Files,
        pid: u32,
        slot: u32,
    ) -> Result<Option<Self>> {
        let mapped = mapped(pid)?;
        let before = self.code.iter().map(|code| &code.mapping);
        if mapped.executable.iter().eq(before) && mapped.views == self.views {
            return Ok(None);
        }
        Self::of_mappings(object, files, pid, slot, mapped).map(Some)
    }

    fn of_mappings(
        object: &Object,
        files: &mut Files,
        pid: u32,
        slot: u32,
        mapped: code::Code,
    ) -> Result<Self> {
        let mut space = Self {
            views: mapped.views,
            ..Self::default()
        };
        for mapping in mapped.executable {
            let file = if mapping.is_file() {
                files.of(object, pid, &mapping)
            } else if mapping.path == b"[vdso]" {
                files
                    .vdso(object, pid, &mapping)
                    .map_err(|error| format!("{error:#}"))
            } else {
                Err("no file".to_owned())
            };
            let bias = file
                .as_ref()
                .ok()
                .and_then(|file| file.bias(&mapping))
                .unwrap_or(mapping.start);
            space.code.push(Code {
                mapping,
                file,
                bias,
            });
        }
        files.flush(object)?;
        space.publish(object, pid, slot)?;
        space.dropped += mapped.left_out;
        Ok(space)
    }

    /// The mapping that holds an address.
    pub fn find(&self, address: u64) -> Option<&Code> {
        let index = self
            .code
            .partition_point(|code| code.mapping.start <= address)
            .checked_sub(1)?;
        self.code
            .get(index)
            .filter(|code| address < code.mapping.end)
    }

    /// Whether the Go runtime is mapped.
    pub fn is_go(&self) -> bool {
        self.code
            .iter()
            .any(|code| code.file.as_ref().is_ok_and(|file| file.is_go))
    }

    /// The mapped file with this path.
    pub fn module(&self, path: &Path) -> Option<&Module> {
        let files = self.code.iter().filter_map(|code| code.file.as_ref().ok());
        files
            .filter_map(|file| file.module.as_ref())
            .find(|module| module.path == path)
    }

    /// Build id of the mapped file with this path.
    pub fn build_id(&self, path: &Path) -> Option<&str> {
        self.module(path)?.build_id.as_deref()
    }

    fn publish(&mut self, object: &Object, pid: u32, slot: u32) -> Result<()> {
        let mut list: Vec<stack::Mapping> = self.code.iter().flat_map(pieces).collect();
        list.sort_unstable_by_key(|piece| piece.start);
        self.dropped = list.len().saturating_sub(MAX_MAPPINGS);
        list.truncate(MAX_MAPPINGS);
        let mut value = Box::new(Mappings {
            len: list.len() as u32,
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            list: [stack::Mapping::default(); MAX_MAPPINGS],
        });
        for (place, piece) in value.list.iter_mut().zip(list) {
            *place = piece;
        }
        // The mappings first: a generation promises that there are some.
        // SAFETY: one map takes a thread group id and mappings, the other a
        // slot and a generation.
        unsafe {
            bpf::update(object.map("MAPPINGS")?, &pid, &*value)?;
            bpf::update(object.map("GENERATIONS")?, &slot, &value.generation)?;
        }
        Ok(())
    }
}

/// What a process has mapped of code, if anything: one that has ended shows an
/// empty list while it waits for its parent.
fn mapped(pid: u32) -> Result<code::Code> {
    let mapped = code::of(pid).map_err(|error| match TooMany::of(&error) {
        Some(too_many) => too_many.into(),
        None => anyhow::Error::new(error),
    })?;
    ensure!(
        !mapped.executable.is_empty(),
        "it has no executable mapping any more"
    );
    Ok(mapped)
}

/// The parts of a mapping with the rows that cover them.
fn pieces(code: &Code) -> Vec<stack::Mapping> {
    let Mapping { start, end, .. } = code.mapping;
    let row = |start: u64, end: u64, bias: u64, piece: &Piece| stack::Mapping {
        start,
        end,
        bias,
        chunk: piece.chunk,
        end_row: piece.end_row,
        index_row: piece.index_row,
        first_page: piece.first_page,
        pages: piece.pages,
        reserved: 0,
    };
    let known = code.file.as_ref().map_or(&[][..], |file| &file.pieces);
    let mut parts: Vec<stack::Mapping> = known
        .iter()
        .filter_map(|piece| {
            let from = start.max(code.bias.wrapping_add(u64::from(piece.start)));
            let to = if piece.end == u32::MAX {
                end
            } else {
                end.min(code.bias.wrapping_add(u64::from(piece.end)))
            };
            (from < to).then(|| row(from, to, code.bias, piece))
        })
        .collect();
    // Code in front of the first row, and code of no known file: the address
    // is known, the rule is not.
    let first = parts.first().map_or(end, |part| part.start);
    if start < first {
        parts.push(row(start, first, start, &UNRULED));
    }
    parts
}
