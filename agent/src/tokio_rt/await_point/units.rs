//! The units of a file's debug information, by place: optimised builds have
//! types in other units than the functions that use them.

use std::{collections::HashMap, rc::Rc};

use gimli::{
    AttributeValue, DebugInfoOffset, DebuggingInformationEntry, Dwarf, EndianSlice, LittleEndian,
    UnitHeader, UnitOffset,
};

pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;
pub(super) type Unit<'a> = gimli::Unit<Slice<'a>>;
pub(super) type Entry<'a> = DebuggingInformationEntry<Slice<'a>>;

/// Units of one file.
const MAX_UNITS: usize = 1 << 17;
/// Parsed units that are kept at a time.
const MAX_PARSED: usize = 32;

/// All units, parsed when they are asked for.
pub(super) struct Units<'a> {
    pub(super) dwarf: &'a Dwarf<Slice<'a>>,
    /// By place.
    headers: Vec<UnitHeader<Slice<'a>>>,
    parsed: HashMap<usize, Rc<Unit<'a>>>,
}

impl<'a> Units<'a> {
    /// Reads the headers, up to one that is damaged.
    pub(super) fn of(dwarf: &'a Dwarf<Slice<'a>>) -> Self {
        let mut headers = Vec::new();
        let mut rest = dwarf.units();
        while let (Ok(Some(header)), true) = (rest.next(), headers.len() < MAX_UNITS) {
            headers.push(header);
        }
        Self {
            dwarf,
            headers,
            parsed: HashMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.headers.len()
    }

    /// A unit; none for a damaged one.
    pub(super) fn unit(&mut self, index: usize) -> Option<Rc<Unit<'a>>> {
        if let Some(known) = self.parsed.get(&index) {
            return Some(Rc::clone(known));
        }
        let header = self.headers.get(index)?;
        let unit = Rc::new(self.dwarf.unit(*header).ok()?);
        if self.parsed.len() >= MAX_PARSED {
            self.parsed.clear();
        }
        self.parsed.insert(index, Rc::clone(&unit));
        Some(unit)
    }

    /// The unit that holds an entry.
    pub(super) fn holding(&mut self, place: DebugInfoOffset) -> Option<(Rc<Unit<'a>>, UnitOffset)> {
        let begins = |header: &UnitHeader<Slice<'a>>| {
            let begin = header.debug_info_offset();
            begin.is_some_and(|begin| begin.0 <= place.0)
        };
        let index = self.headers.partition_point(begins).checked_sub(1)?;
        let unit = self.unit(index)?;
        let offset = place.to_unit_offset(&unit.header)?;
        Some((unit, offset))
    }
}

/// The entry that an attribute of an entry in `unit` refers to.
pub(super) fn reference(
    unit: &Unit<'_>,
    value: Option<AttributeValue<Slice<'_>>>,
) -> Option<DebugInfoOffset> {
    match value? {
        AttributeValue::UnitRef(offset) => offset.to_debug_info_offset(&unit.header),
        AttributeValue::DebugInfoRef(place) => Some(place),
        _ => None,
    }
}

pub(super) fn number(entry: &Entry<'_>, name: gimli::DwAt) -> Option<u64> {
    entry.attr_value(name)?.udata_value()
}
