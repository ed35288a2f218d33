//! The current task id's place in Tokio's context, told by debug information.

use std::time::{Duration, Instant};

use gimli::{
    Abbreviations, AttributeValue, DebugAbbrev, DebugInfo, DebugStr, EndianSlice, LittleEndian,
    UnitHeader,
};
use object::read::ReadRef;

use super::slot::Slot;
use crate::elf::{self, Elf};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Debug information that is read at most, all sections together.
const MAX_BYTES: u64 = 160 << 20;
/// Time after which the rest is left unread.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Part of the name of the units that hold Tokio's own code.
const TOKIO: &[u8] = b"tokio";
/// Entries looked at.
const MAX_ENTRIES: usize = 30_000_000;

/// The id's slot relative to the start of the thread-local variable. `None`
/// where there is no debug information with types, or too much to be read.
pub(super) fn slot<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Option<Slot> {
    let names = [".debug_info", ".debug_abbrev", ".debug_str"];
    let size =
        |name| elf::section(elf, name).map_or(0, |header| header.sh_size.get(object::LittleEndian));
    // The sum as stored; compressed sections have a limit of their own each.
    if names.into_iter().map(size).fold(0, u64::saturating_add) > MAX_BYTES {
        return None;
    }
    let [info, abbreviations, strings] =
        names.map(|name| elf::section_data(elf, name).unwrap_or_default());
    let sections = Sections {
        info: DebugInfo::new(&info, LittleEndian),
        abbreviations: DebugAbbrev::new(&abbreviations, LittleEndian),
        strings: DebugStr::new(&strings, LittleEndian),
    };
    Search::over(&sections).slot()
}

/// The parts of the debug information that describe types.
struct Sections<'a> {
    info: DebugInfo<Slice<'a>>,
    abbreviations: DebugAbbrev<Slice<'a>>,
    strings: DebugStr<Slice<'a>>,
}

impl<'a> Sections<'a> {
    fn text(&self, value: AttributeValue<Slice<'a>>) -> &'a [u8] {
        match value {
            AttributeValue::String(text) => text.slice(),
            AttributeValue::DebugStrRef(offset) => self
                .strings
                .get_str(offset)
                .map(|text| text.slice())
                .unwrap_or_default(),
            _ => &[],
        }
    }
}

/// What has been found so far.
#[derive(Default)]
struct Search {
    /// Offset of the id in `tokio::runtime::context::Context` and the bytes of
    /// its type.
    member: Option<(u64, u64)>,
    /// Offset of the context in the standard library's storage.
    storage: Option<u64>,
}

impl Search {
    fn over(sections: &Sections<'_>) -> Self {
        let mut search = Self::default();
        let mut left = MAX_ENTRIES;
        // Tokio's own units come first: they hold what is looked for, and the
        // rest need not be read.
        let end = Instant::now() + MAX_TIME;
        for own in [true, false] {
            let mut headers = sections.info.units();
            while let Ok(Some(header)) = headers.next() {
                if left == 0 || search.is_done() || Instant::now() >= end {
                    break;
                }
                // A damaged unit leaves the others to be read.
                let _ = search.unit(sections, &header, own, &mut left);
            }
            if search.member.is_some() {
                break;
            }
        }
        search
    }

    fn is_done(&self) -> bool {
        self.member.is_some() && self.storage.is_some()
    }

    fn slot(&self) -> Option<Slot> {
        let (offset, size) = self.member?;
        let place = self.storage.unwrap_or(0).checked_add(offset)?;
        // `Cell<Option<Id>>`: a tag and a word before Tokio 1.40, then one
        // word that is never zero for an id.
        match size {
            8 => Some(Slot {
                value: place,
                has_tag: false,
            }),
            16 => Some(Slot {
                value: place.checked_add(8)?,
                has_tag: true,
            }),
            _ => None,
        }
    }

    /// Looks through one unit, up to its end or to where all is found.
    /// Passes over it if it is not as `own` says.
    fn unit(
        &mut self,
        sections: &Sections<'_>,
        unit: &UnitHeader<Slice<'_>>,
        own: bool,
        left: &mut usize,
    ) -> gimli::Result<()> {
        let abbreviations = unit.abbreviations(&sections.abbreviations)?;
        let root = unit.entry(&abbreviations, unit.root_offset())?;
        let name = root
            .attr_value(gimli::DW_AT_name)
            .map(|name| sections.text(name))
            .unwrap_or_default();
        if name.windows(TOKIO.len()).any(|part| part == TOKIO) != own {
            return Ok(());
        }
        // Names of the namespaces around, each with its depth.
        let mut path: Vec<(isize, &[u8])> = Vec::new();
        // The structure whose members come next.
        let mut inside = None;
        let mut entries = unit.entries_raw(&abbreviations, None)?;
        while !entries.is_empty() && *left > 0 && !self.is_done() {
            *left -= 1;
            let depth = entries.next_depth();
            let Some(abbreviation) = entries.read_abbreviation()? else {
                continue;
            };
            inside = inside.filter(|(structure, _)| depth > *structure);
            let tag = abbreviation.tag();
            let wanted = match tag {
                gimli::DW_TAG_namespace => path.len() < MAX_DEPTH,
                gimli::DW_TAG_structure_type => true,
                gimli::DW_TAG_member => inside.is_some_and(|(structure, _)| depth == structure + 1),
                _ => false,
            };
            if !wanted {
                entries.skip_attributes(abbreviation.attributes())?;
                continue;
            }
            let (mut name, mut offset, mut kind): (&[u8], _, _) = (&[], None, None);
            for specification in abbreviation.attributes() {
                let attribute = entries.read_attribute(*specification)?;
                match attribute.name() {
                    gimli::DW_AT_name => name = sections.text(attribute.value()),
                    gimli::DW_AT_data_member_location => offset = attribute.udata_value(),
                    gimli::DW_AT_type => kind = Some(attribute.value()),
                    _ => {}
                }
            }
            if tag == gimli::DW_TAG_member {
                match (inside, name, offset) {
                    (Some((_, Structure::Context)), b"current_task_id", Some(offset)) => {
                        self.member =
                            size_of(unit, &abbreviations, kind).map(|size| (offset, size));
                    }
                    (Some((_, Structure::Storage)), b"val" | b"value", Some(offset)) => {
                        self.storage = Some(offset);
                    }
                    _ => {}
                }
                continue;
            }
            path.retain(|(around, _)| *around < depth);
            if tag == gimli::DW_TAG_namespace {
                path.push((depth, name));
            } else {
                inside = structure(&path, name).map(|structure| (depth, structure));
            }
        }
        Ok(())
    }
}

/// Namespaces inside each other that are followed.
const MAX_DEPTH: usize = 64;

/// A structure whose members matter.
#[derive(Clone, Copy)]
enum Structure {
    Context,
    Storage,
}

fn structure(path: &[(isize, &[u8])], name: &[u8]) -> Option<Structure> {
    let around = |names: &[&[u8]]| path.iter().map(|(_, name)| *name).eq(names.iter().copied());
    if name == b"Context" && around(&[b"tokio", b"runtime", b"context"]) {
        return Some(Structure::Context);
    }
    let standard = path.first().is_some_and(|(_, name)| *name == b"std");
    (standard && name.starts_with(b"Storage<tokio::runtime::context::Context"))
        .then_some(Structure::Storage)
}

/// Bytes of a type.
fn size_of(
    unit: &UnitHeader<Slice<'_>>,
    abbreviations: &Abbreviations,
    kind: Option<AttributeValue<Slice<'_>>>,
) -> Option<u64> {
    let AttributeValue::UnitRef(offset) = kind? else {
        return None;
    };
    unit.entry(abbreviations, offset)
        .ok()?
        .attr_value(gimli::DW_AT_byte_size)?
        .udata_value()
}
