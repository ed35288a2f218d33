//! Call frame information: where functions end and where the return address
//! lies, from `.eh_frame`.

use std::{borrow::Cow, ops::Range};

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, ParsedEhFrameHdr,
    UnwindContext, UnwindSection, X86_64,
};
use object::{
    elf::SectionHeader64,
    read::{ReadRef, elf::SectionHeader as _},
};

use super::Elf;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Functions indexed in a file without a lookup table.
const MAX_FUNCTIONS: usize = 1 << 20;
/// Rows of one function.
const MAX_ROWS: usize = 1 << 16;

/// How the canonical frame address (the stack pointer before the call) is
/// found at an instruction. The return address lies eight bytes below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cfa {
    /// Stack pointer plus this many bytes.
    RspPlus(i64),
    /// Some other way, or unknown.
    Other,
}

/// From this address on, up to the next row, the rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CfaRow {
    /// Linked virtual address.
    pub pc: u64,
    /// The rule.
    pub cfa: Cfa,
}

/// The `.eh_frame` of one file.
pub struct CallFrames<'data> {
    frame: Cow<'data, [u8]>,
    table: Cow<'data, [u8]>,
    bases: BaseAddresses,
    /// Sorted by start; filled only where the file has no lookup table.
    index: Vec<(u64, u64, usize)>,
}

impl<'data> CallFrames<'data> {
    /// Reads the sections. A file without them knows no function.
    pub fn of<R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Self {
        let address = |header: Option<&SectionHeader64<object::LittleEndian>>| {
            header.map_or(0, |header| header.sh_addr(object::LittleEndian))
        };
        let at = |name| address(super::section(elf, name));
        let mut frames = Self {
            frame: super::section_data(elf, ".eh_frame").unwrap_or_default(),
            table: super::section_data(elf, ".eh_frame_hdr").unwrap_or_default(),
            bases: BaseAddresses::default()
                .set_eh_frame(at(".eh_frame"))
                .set_eh_frame_hdr(at(".eh_frame_hdr"))
                .set_text(at(".text"))
                .set_got(at(".got")),
            index: Vec::new(),
        };
        if frames
            .header()
            .is_none_or(|header| header.table().is_none())
        {
            frames.index = frames.indexed();
        }
        frames
    }

    fn section(&self) -> EhFrame<Slice<'_>> {
        let mut section = EhFrame::new(&self.frame, LittleEndian);
        section.set_address_size(8);
        section
    }

    fn header(&self) -> Option<ParsedEhFrameHdr<Slice<'_>>> {
        EhFrameHdr::new(&self.table, LittleEndian)
            .parse(&self.bases, 8)
            .ok()
    }

    fn indexed(&self) -> Vec<(u64, u64, usize)> {
        let section = self.section();
        let mut entries = section.entries(&self.bases);
        let mut index = Vec::new();
        while let (Ok(Some(entry)), true) = (entries.next(), index.len() < MAX_FUNCTIONS) {
            let gimli::CieOrFde::Fde(partial) = entry else {
                continue;
            };
            if let Ok(fde) = partial.parse(EhFrame::cie_from_offset) {
                index.push((fde.initial_address(), fde.end_address(), fde.offset()));
            }
        }
        index.sort_unstable();
        index
    }

    fn entry(&self, address: u64) -> Option<gimli::FrameDescriptionEntry<Slice<'_>>> {
        let section = self.section();
        let fde = if let Some(header) = self.header()
            && let Some(table) = header.table()
        {
            // Not `fde_for_address`: it subtracts without a check, and a
            // damaged table points to before the section.
            let found = table.lookup(address, &self.bases).ok()?.direct().ok()?;
            let start = header.eh_frame_ptr().direct().ok()?;
            let offset = usize::try_from(found.checked_sub(start)?).ok()?;
            section
                .fde_from_offset(
                    &self.bases,
                    gimli::EhFrameOffset(offset),
                    EhFrame::cie_from_offset,
                )
                .ok()?
        } else {
            let after = self
                .index
                .partition_point(|(start, _, _)| *start <= address);
            let (_, _, offset) = self.index.get(after.checked_sub(1)?)?;
            section
                .fde_from_offset(
                    &self.bases,
                    gimli::EhFrameOffset(*offset),
                    EhFrame::cie_from_offset,
                )
                .ok()?
        };
        fde.contains(address).then_some(fde)
    }

    /// First address and end of the function, or part of one, at this address.
    pub fn extent(&self, address: u64) -> Option<Range<u64>> {
        self.entry(address)
            .map(|fde| fde.initial_address()..fde.end_address())
    }

    /// The rules from `address` for `size` bytes, in order. Empty when nothing
    /// is known; where knowledge ends, a row says [`Cfa::Other`].
    pub fn rows(&self, address: u64, size: u64) -> Vec<CfaRow> {
        let end = address.saturating_add(size);
        let section = self.section();
        let mut rows = Vec::new();
        let Some(fde) = self.entry(address) else {
            return rows;
        };
        let mut context = UnwindContext::new();
        let Ok(mut table) = fde.rows(&section, &self.bases, &mut context) else {
            return rows;
        };
        loop {
            match table.next_row() {
                Ok(Some(row)) if row.start_address() < end && rows.len() < MAX_ROWS => {
                    if row.end_address() > address {
                        rows.push(CfaRow {
                            pc: row.start_address().max(address),
                            cfa: rule(row.cfa()),
                        });
                    }
                }
                Ok(_) => break,
                // Half a table proves nothing.
                Err(_) => return Vec::new(),
            }
        }
        if !rows.is_empty() && fde.end_address() < end {
            rows.push(CfaRow {
                pc: fde.end_address(),
                cfa: Cfa::Other,
            });
        }
        rows
    }
}

fn rule(rule: &CfaRule<usize>) -> Cfa {
    match rule {
        CfaRule::RegisterAndOffset { register, offset } if *register == X86_64::RSP => {
            Cfa::RspPlus(*offset)
        }
        _ => Cfa::Other,
    }
}
