//! Compiles `.eh_frame` of an ELF file to the rows that the kernel unwinder
//! searches.
//!
//! `.eh_frame` is present in every file that rustc, gcc or clang make for
//! x86-64, also in stripped ones, and it is exact at every instruction. A row
//! keeps what the kernel program can follow: the canonical frame address from
//! rsp or rbp, and where the caller's rbp is. Anything else becomes a row
//! without a rule, where the stack is marked as truncated.

pub mod walk;

use agent_ebpf::abi::stack::Row;
use anyhow::{Context as _, Result, ensure};
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, LittleEndian as Little, Register, RegisterRule,
    UnwindContext, UnwindSection as _, UnwindTableRow,
};
use object::{LittleEndian, Object as _, ObjectSection as _, ReadRef, read::elf::ElfFile64};

/// Largest `.eh_frame` that is read: the largest known one has 40 MiB.
const MAX_SECTION: u64 = 256 << 20;
/// Most rows of one file; 32 MiB.
pub const MAX_ROWS: usize = 4 << 20;

/// DWARF register numbers of x86-64 (System V ABI, figure 3.36).
const RBP: Register = Register(6);
const RSP: Register = Register(7);
const RETURN_ADDRESS: Register = Register(16);

/// The rows of one file.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Sorted by address; each holds until the next one.
    pub rows: Vec<Row>,
    /// Rows without a rule that stand for code with one that cannot be
    /// followed.
    pub unsupported: usize,
}

/// Compiles a file. A file without `.eh_frame` has no rows.
///
/// # Errors
/// When the section is damaged or too large.
pub fn compile<'data, R: ReadRef<'data>>(elf: &ElfFile64<'data, LittleEndian, R>) -> Result<Table> {
    let Some(section) = elf.section_by_name(".eh_frame") else {
        return Ok(Table::default());
    };
    ensure!(
        section.size() <= MAX_SECTION,
        ".eh_frame is larger than {MAX_SECTION} bytes"
    );
    let data = section
        .uncompressed_data()
        .context("cannot read .eh_frame")?;
    let address = |name| {
        elf.section_by_name(name)
            .map_or(0, |section| section.address())
    };
    let bases = BaseAddresses::default()
        .set_eh_frame(section.address())
        .set_text(address(".text"))
        .set_got(address(".got"));
    // The linker writes one expression for all entries of a linkage table.
    let linkage: Vec<(u64, u64)> = elf
        .sections()
        .filter(|section| section.name().is_ok_and(|name| name.starts_with(".plt")))
        .map(|section| {
            (
                section.address(),
                section.address().saturating_add(section.size()),
            )
        })
        .collect();

    let eh_frame = EhFrame::new(&data, Little);
    let mut context = UnwindContext::new();
    let mut builder = Builder::default();
    let mut entries = eh_frame.entries(&bases);
    while let Some(entry) = entries.next().context(".eh_frame is damaged")? {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let Ok(function) = partial.parse(EhFrame::cie_from_offset) else {
            continue;
        };
        let (start, end) = (function.initial_address(), function.end_address());
        // Functions that the linker has dropped stay behind at address 0.
        if start == 0 || end > u64::from(u32::MAX) {
            continue;
        }
        let trampoline = function.is_signal_trampoline();
        let Ok(mut table) = function.rows(&eh_frame, &bases, &mut context) else {
            continue;
        };
        while let Ok(Some(row)) = table.next_row() {
            let in_linkage = linkage
                .iter()
                .any(|(from, to)| (*from..*to).contains(&row.start_address()));
            builder.add(row.start_address(), rule(row, trampoline, in_linkage));
            ensure!(
                builder.rows.len() <= MAX_ROWS,
                "more than {MAX_ROWS} unwind rows"
            );
        }
        builder.functions.push((start, end));
    }
    Ok(builder.finish())
}

#[derive(Default)]
struct Builder {
    rows: Vec<Row>,
    functions: Vec<(u64, u64)>,
    unsupported: usize,
}

impl Builder {
    fn add(&mut self, address: u64, row: Option<Row>) {
        let Ok(pc) = u32::try_from(address) else {
            return;
        };
        self.unsupported += usize::from(row.is_none());
        self.rows.push(Row {
            pc,
            ..row.unwrap_or(NO_RULE)
        });
    }

    /// Marks the gaps between functions, sorts, and drops rows that change
    /// nothing.
    fn finish(mut self) -> Table {
        self.functions.sort_unstable();
        for (index, (_, end)) in self.functions.iter().enumerate() {
            if self
                .functions
                .get(index + 1)
                .is_none_or(|(next, _)| next > end)
            {
                self.rows.push(Row {
                    pc: *end as u32,
                    ..NO_RULE
                });
            }
        }
        // At one address a rule wins over a gap.
        self.rows.sort_by_key(|row| (row.pc, row.kind == Row::NONE));
        self.rows.dedup_by_key(|row| row.pc);
        self.rows.dedup_by(|next, row| {
            Row {
                pc: row.pc,
                ..*next
            } == *row
        });
        Table {
            rows: self.rows,
            unsupported: self.unsupported,
        }
    }
}

const NO_RULE: Row = Row {
    pc: 0,
    cfa_offset: 0,
    rbp_offset: Row::RBP_KEPT,
    kind: Row::NONE,
};

/// The row for one rule, `None` for one that cannot be followed.
fn rule(row: &UnwindTableRow<usize>, trampoline: bool, in_linkage: bool) -> Option<Row> {
    if trampoline {
        return Some(Row {
            kind: Row::SIGNAL,
            ..NO_RULE
        });
    }
    match row
        .register(RETURN_ADDRESS)
        .unwrap_or(RegisterRule::SameValue)
    {
        RegisterRule::Offset(-8) => {}
        RegisterRule::Undefined => {
            return Some(Row {
                kind: Row::END,
                ..NO_RULE
            });
        }
        _ => return None,
    }
    let rbp_offset = match row.register(RBP).unwrap_or(RegisterRule::SameValue) {
        RegisterRule::Undefined | RegisterRule::SameValue => Row::RBP_KEPT,
        RegisterRule::Offset(offset) if offset % 8 == 0 => i8::try_from(offset / 8)
            .ok()
            .filter(|words| *words != Row::RBP_KEPT)?,
        _ => return None,
    };
    let (kind, cfa_offset) = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let kind = match *register {
                RSP => Row::RSP,
                RBP => Row::RBP,
                _ => return None,
            };
            (kind, u16::try_from(*offset).ok()?)
        }
        CfaRule::Expression(_) if in_linkage => (Row::PLT, 0),
        CfaRule::Expression(_) => return None,
    };
    Some(Row {
        pc: 0,
        cfa_offset,
        rbp_offset,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file that every Linux host has and that has code of all shapes.
    fn own_executable() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn covers_the_functions_of_a_real_program() {
        let data = own_executable();
        let elf = ElfFile64::<LittleEndian>::parse(&*data).unwrap();
        let table = compile(&elf).unwrap();
        assert!(table.rows.len() > 10_000, "{} rows", table.rows.len());
        assert!(table.rows.is_sorted_by_key(|row| row.pc));
        assert!(
            table.unsupported * 1000 < table.rows.len(),
            "{} unsupported",
            table.unsupported
        );
        // At a function's first byte only the return address is on the stack.
        let here = covers_the_functions_of_a_real_program as fn() as usize as u64;
        let maps = crate::host::mapping::of(std::process::id()).unwrap();
        let map = maps
            .iter()
            .find(|m| m.start <= here && here < m.end)
            .unwrap();
        let segment = elf
            .elf_program_headers()
            .iter()
            .find(|s| {
                s.p_offset.get(LittleEndian) & !0xfff == map.offset
                    && s.p_flags.get(LittleEndian) & 1 != 0
            })
            .unwrap();
        let offset = here - map.start + map.offset;
        let pc = (offset - segment.p_offset.get(LittleEndian) + segment.p_vaddr.get(LittleEndian))
            as u32;
        let row = table.rows[table.rows.partition_point(|row| row.pc <= pc) - 1];
        assert_eq!((row.pc, row.kind, row.cfa_offset), (pc, Row::RSP, 8));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_sections_do_not_panic(at in 0.0f64..1.0, bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
            thread_local!(static FILE: Vec<u8> = std::fs::read("/proc/self/exe").unwrap_or_default());
            FILE.with(|file| {
                let elf = ElfFile64::<LittleEndian>::parse(&**file).unwrap();
                let section = elf.section_by_name(".eh_frame").unwrap();
                // A small file around the first part of a real section.
                let part = section.data().unwrap();
                let mut part = part[..part.len().min(20_000)].to_vec();
                let from = (at * part.len() as f64) as usize;
                for (place, byte) in part[from..].iter_mut().zip(&bytes) {
                    *place = *byte;
                }
                let eh_frame = EhFrame::new(&part, Little);
                let bases = BaseAddresses::default().set_eh_frame(section.address());
                let mut context = UnwindContext::new();
                let mut entries = eh_frame.entries(&bases);
                while let Ok(Some(entry)) = entries.next() {
                    let CieOrFde::Fde(partial) = entry else { continue };
                    let Ok(function) = partial.parse(EhFrame::cie_from_offset) else { continue };
                    let Ok(mut rows) = function.rows(&eh_frame, &bases, &mut context) else { continue };
                    while let Ok(Some(row)) = rows.next_row() {
                        rule(row, false, false);
                    }
                }
            });
        }
    }
}
