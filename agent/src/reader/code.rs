//! What following allocations takes of one file, read in the reader process.

use std::fmt::Write as _;

use agent_ebpf::abi::stack::Row;
use object::{
    LittleEndian as LE, Object as _,
    elf::{PF_X, PT_LOAD},
    read::elf::ProgramHeader as _,
};

use super::question::{Code, MAX_SEGMENTS};
use crate::{
    capture::{allocators, files::Segment, probes},
    elf::{self, Loaded},
    tokio_rt::{
        current_task::FileRecipes,
        tls::{self, WhyNot},
    },
    unwind,
};

/// Longest build id that is believed, in bytes.
const MAX_BUILD_ID: usize = 64;

/// The build id in hexadecimal digits.
pub(super) fn build_id(elf: &Loaded<'_>) -> Option<String> {
    let id = elf.build_id().ok().flatten()?;
    let sound = (1..=MAX_BUILD_ID).contains(&id.len());
    sound.then(|| hexadecimal(id))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Everything at once, and the unwind rows.
pub(super) fn read(elf: &Loaded<'_>) -> (Code, Vec<Row>) {
    let discovery = allocators::discover(elf);
    let not_read = discovery.not_read;
    let (table, no_rows) = match unwind::compile(elf) {
        Ok(table) => (table, None),
        Err(error) => (unwind::Table::default(), Some(format!("{error:#}"))),
    };
    let code = Code {
        build_id: build_id(elf),
        segments: segments(elf),
        families: probes::families(elf, discovery),
        is_go: elf.section_by_name(".gopclntab").is_some(),
        task_ids: task_recipes(elf),
        not_read,
        unsupported: table.unsupported as u64,
        no_rows,
        debug_link: debug_link(elf),
    };
    (code, table.rows)
}

fn segments(elf: &Loaded<'_>) -> Vec<Segment> {
    elf.elf_program_headers()
        .iter()
        .filter(|header| header.p_type(LE) == PT_LOAD)
        .map(|header| Segment {
            offset: header.p_offset(LE),
            address: header.p_vaddr(LE),
            size: header.p_filesz(LE),
            executable: header.p_flags(LE) & PF_X != 0,
        })
        // No such part can be mapped.
        .filter(|segment| {
            let end = segment.offset.checked_add(segment.size);
            end.is_some_and(|end| i64::try_from(end).is_ok())
        })
        .take(MAX_SEGMENTS)
        .collect()
}

/// Tokio's recipes; `None` where there is no Tokio, as in almost every file.
fn task_recipes(elf: &Loaded<'_>) -> Option<FileRecipes> {
    let as_main = tls::recipe(elf, true);
    if as_main == Err(WhyNot::NoTokio) {
        return None;
    }
    Some(FileRecipes {
        as_main,
        as_library: tls::recipe(elf, false),
    })
}

/// The name in `.gnu_debuglink`, if it is one that a linker would write.
fn debug_link(elf: &Loaded<'_>) -> Option<String> {
    let data = elf::section_data(elf, ".gnu_debuglink")?;
    let name = data.split(|byte| *byte == 0).next()?;
    let name = std::str::from_utf8(name).ok()?;
    let sound = (1..=255).contains(&name.len()) && !name.contains('/') && name != "..";
    sound.then(|| name.to_owned())
}
