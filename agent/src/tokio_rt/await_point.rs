//! The `.await` that a suspended future is at, told by debug information.
//!
//! The compiler makes an async function a type with one variant per `.await`
//! and says in the debug information which member tells the variant and in
//! which line each one is. The function behind a vtable's `poll` names the
//! future's type, and Tokio's `Stage` of that type where in a cell it lies.
//! What does not fit together exactly is left unknown.

mod units;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use gimli::{
    AttributeValue, DebugInfoOffset, Dwarf, DwarfSections, EndianSlice, EntriesTreeNode,
    LittleEndian, UnitOffset,
};
use object::read::ReadRef;
use serde::{Deserialize, Serialize};

use self::units::{Entry, Slice, Unit, Units, number, reference};
use super::vtable::Vtable;
use crate::{
    elf::{self, Elf},
    reader::bounded::map,
};

/// Debug information that is read at most, all sections together.
const MAX_BYTES: u64 = 256 << 20;
/// Entries looked at.
const MAX_ENTRIES: usize = 20_000_000;
/// Time after which the rest is left unread: damaged files may take it over
/// and over.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Points of one future.
const MAX_POINTS: usize = 4096;
/// Longest path.
const MAX_PATH: usize = 512;
/// So far apart are the two ways to read the words of one vtable.
const OTHER_ORDER: u64 = 24;
/// Largest place in a cell.
const MAX_OFFSET: u64 = 1 << 26;

/// A line of source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceLine {
    /// As the compiler was given it.
    pub file: String,
    /// From 1.
    pub line: u32,
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Where the futures of one type may be suspended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitPoints {
    /// Where in a cell it stands at which point the future is.
    pub offset: u64,
    /// Bytes there: 1, 2 or 4.
    pub size: u8,
    /// The points by what stands there.
    #[serde(deserialize_with = "map::<_, _, _, MAX_POINTS>")]
    pub points: BTreeMap<u64, SourceLine>,
}

impl AwaitPoints {
    /// Whether it keeps to the bounds.
    pub fn is_bounded(&self) -> bool {
        self.offset < MAX_OFFSET
            && [1, 2, 4].contains(&self.size)
            && self.points.len() <= MAX_POINTS
            && self
                .points
                .values()
                .all(|point| point.file.len() <= MAX_PATH)
    }
}

/// Finds the points of the futures behind vtables, by the vtables' addresses;
/// `all` are the file's vtables, in use or not.
pub fn find<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    vtables: &[Vtable],
    all: &[Vtable],
) -> BTreeMap<u64, AwaitPoints> {
    let mut places: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for vtable in all.iter().chain(vtables) {
        let place = places.entry(vtable.poll());
        let (low, high) = place.or_insert((vtable.address, vtable.address));
        (*low, *high) = ((*low).min(vtable.address), (*high).max(vtable.address));
    }
    // Where the compiler has made one function of several, debug information
    // names the future of one of them.
    let is_alone = |vtable: &&Vtable| {
        let place = places.get(&vtable.poll());
        place.is_some_and(|(low, high)| high - low <= OTHER_ORDER)
    };
    let vtables: Vec<Vtable> = vtables.iter().filter(is_alone).cloned().collect();
    let vtables = vtables.as_slice();
    if vtables.is_empty() || elf::section(elf, ".debug_info").is_none() {
        return BTreeMap::new();
    }
    let mut left = MAX_BYTES;
    let sections = DwarfSections::load(|id| {
        let data = elf::section_data(elf, id.name()).unwrap_or_default();
        left = left
            .checked_sub(data.len() as u64)
            .ok_or(gimli::Error::OffsetOutOfBounds(0))?;
        Ok(data)
    });
    let Ok(sections): gimli::Result<_> = sections else {
        return BTreeMap::new();
    };
    let dwarf = sections.borrow(|data| EndianSlice::new(data, LittleEndian));
    let mut budget = Budget {
        steps: MAX_ENTRIES,
        end: Instant::now() + MAX_TIME,
    };
    let mut found = look(&mut Units::of(&dwarf), vtables, &mut budget);
    found.retain(|_, points| points.is_bounded());
    found
}

/// What may still be spent.
struct Budget {
    steps: usize,
    end: Instant,
}

impl Budget {
    /// For loops whose steps may be long.
    fn is_left(&self) -> bool {
        self.steps > 0 && Instant::now() < self.end
    }

    /// For short steps.
    fn step(&mut self) -> bool {
        self.steps = self.steps.saturating_sub(1);
        self.steps > 0
    }
}

/// What the units tell.
#[derive(Default)]
struct Facts {
    /// The type of future that a vtable's `poll` polls, by the vtable's place
    /// in the list.
    polled: BTreeMap<usize, DebugInfoOffset>,
    /// Tokio's stages by their type of future.
    stages: BTreeMap<DebugInfoOffset, Stage>,
}

impl Facts {
    fn are_complete(&self) -> bool {
        let mut futures = self.polled.values();
        futures.all(|future| self.stages.contains_key(future))
    }
}

/// Tokio's stage of one type of future.
#[derive(Clone, Copy)]
struct Stage {
    size: u64,
    align: u64,
    /// Where in it the future is.
    running: u64,
}

fn look(
    units: &mut Units<'_>,
    vtables: &[Vtable],
    budget: &mut Budget,
) -> BTreeMap<u64, AwaitPoints> {
    let mut facts = Facts::default();
    let mut others = Vec::new();
    for index in 0..units.len() {
        let Some(unit) = units.unit(index).filter(|_| budget.is_left()) else {
            continue;
        };
        let own = own_vtables(units.dwarf, &unit, vtables, budget).unwrap_or_default();
        if own.is_empty() {
            others.push(index);
        } else {
            // A damaged unit leaves the others to be read.
            let _ = add_facts(&mut facts, units, &unit, &own, budget);
        }
    }
    for index in others {
        if facts.are_complete() || !budget.is_left() {
            break;
        }
        if let Some(unit) = units.unit(index) {
            let _ = add_facts(&mut facts, units, &unit, &BTreeMap::new(), budget);
        }
    }
    let mut found = BTreeMap::new();
    for (index, future) in facts.polled.iter().take_while(|_| budget.is_left()) {
        let (Some(vtable), Some(stage)) = (vtables.get(*index), facts.stages.get(future)) else {
            continue;
        };
        let Some(place) = place(vtable, *stage) else {
            continue;
        };
        if let Ok(Some(mut points)) = points(units, *future) {
            points.offset = points.offset.saturating_add(place);
            found.insert(vtable.address, points);
        }
    }
    found
}

/// The vtables whose `poll` is in a unit: address and place in the list.
fn own_vtables(
    dwarf: &Dwarf<Slice<'_>>,
    unit: &Unit<'_>,
    vtables: &[Vtable],
    budget: &mut Budget,
) -> gimli::Result<BTreeMap<u64, BTreeSet<usize>>> {
    let mut all: Vec<(u64, usize)> = vtables.iter().map(Vtable::poll).zip(0..).collect();
    all.sort_unstable();
    let mut own: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
    let mut ranges = dwarf.unit_ranges(unit)?;
    while let (Some(range), true) = (ranges.next()?, budget.step()) {
        let first = all.partition_point(|(poll, _)| *poll < range.begin);
        let inside = all.iter().skip(first);
        for (poll, index) in inside.take_while(|(poll, _)| *poll < range.end) {
            if !budget.step() {
                return Ok(own);
            }
            own.entry(*poll).or_default().insert(*index);
        }
    }
    Ok(own)
}

/// One pass over a unit's entries. Of functions and stages only their place
/// is noted in the pass; what is below them is looked at afterwards.
fn add_facts(
    facts: &mut Facts,
    units: &mut Units<'_>,
    unit: &Unit<'_>,
    own: &BTreeMap<u64, BTreeSet<usize>>,
    budget: &mut Budget,
) -> gimli::Result<()> {
    let dwarf = units.dwarf;
    let (mut polls, mut stages) = (Vec::new(), Vec::new());
    let mut entries = unit.entries_raw(None)?;
    while !entries.is_empty() && budget.step() {
        let offset = entries.next_offset();
        let Some(abbreviation) = entries.read_abbreviation()? else {
            continue;
        };
        let tag = abbreviation.tag();
        if ![gimli::DW_TAG_subprogram, gimli::DW_TAG_structure_type].contains(&tag) {
            entries.skip_attributes(abbreviation.attributes())?;
            continue;
        }
        for specification in abbreviation.attributes() {
            let attribute = entries.read_attribute(*specification)?;
            match (tag, attribute.name()) {
                (gimli::DW_TAG_subprogram, gimli::DW_AT_low_pc) => {
                    let address = dwarf.attr_address(unit, attribute.value())?;
                    polls.extend(
                        address
                            .and_then(|address| own.get(&address))
                            .map(|own| (offset, own)),
                    );
                }
                (gimli::DW_TAG_structure_type, gimli::DW_AT_name) => {
                    let name = dwarf.attr_string(unit, attribute.value())?;
                    if name.slice().starts_with(b"Stage<") {
                        stages.push(offset);
                    }
                }
                _ => {}
            }
        }
    }
    for (offset, own) in polls.into_iter().take_while(|_| budget.is_left()) {
        let polled = polled(units, unit, offset)?;
        facts.polled.extend(
            polled
                .into_iter()
                .flat_map(|future| own.iter().map(move |index| (*index, future))),
        );
    }
    for offset in stages.into_iter().take_while(|_| budget.is_left()) {
        facts.stages.extend(stage(dwarf, unit, offset)?);
    }
    Ok(())
}

/// The first type argument of a function; an out-of-line copy of an inlined
/// one names the original.
fn polled(
    units: &mut Units<'_>,
    unit: &Unit<'_>,
    function: UnitOffset,
) -> gimli::Result<Option<DebugInfoOffset>> {
    let mut tree = unit.entries_tree(Some(function))?;
    let root = tree.root()?;
    let original = [gimli::DW_AT_abstract_origin, gimli::DW_AT_specification]
        .into_iter()
        .find_map(|name| reference(unit, root.entry().attr_value(name)));
    if let Some(future) = type_argument(unit, root)? {
        return Ok(Some(future));
    }
    let Some((unit, original)) = original.and_then(|place| units.holding(place)) else {
        return Ok(None);
    };
    type_argument(&unit, unit.entries_tree(Some(original))?.root()?)
}

fn type_argument(
    unit: &Unit<'_>,
    node: EntriesTreeNode<'_, '_, Slice<'_>>,
) -> gimli::Result<Option<DebugInfoOffset>> {
    let mut children = node.children();
    while let Some(child) = children.next()? {
        let entry = child.entry();
        if entry.tag() == gimli::DW_TAG_template_type_parameter {
            return Ok(reference(unit, entry.attr_value(gimli::DW_AT_type)));
        }
    }
    Ok(None)
}

fn is_named(dwarf: &Dwarf<Slice<'_>>, unit: &Unit<'_>, entry: &Entry<'_>, expected: &[u8]) -> bool {
    let name = entry.attr_value(gimli::DW_AT_name);
    name.and_then(|name| dwarf.attr_string(unit, name).ok())
        .is_some_and(|name| name.slice() == expected)
}

/// A stage with its type of future, if it is one.
fn stage(
    dwarf: &Dwarf<Slice<'_>>,
    unit: &Unit<'_>,
    offset: UnitOffset,
) -> gimli::Result<Option<(DebugInfoOffset, Stage)>> {
    let mut tree = unit.entries_tree(Some(offset))?;
    let root = tree.root()?;
    let size = number(root.entry(), gimli::DW_AT_byte_size);
    let align = number(root.entry(), gimli::DW_AT_alignment);
    let (Some(size), Some(align)) = (size, align) else {
        return Ok(None);
    };
    let mut variants = root.children();
    while let Some(variant) = variants.next()? {
        let entry = variant.entry();
        if entry.tag() != gimli::DW_TAG_structure_type || !is_named(dwarf, unit, entry, b"Running")
        {
            continue;
        }
        let mut members = variant.children();
        while let Some(member) = members.next()? {
            let entry = member.entry();
            if !is_named(dwarf, unit, entry, b"__0") {
                continue;
            }
            let future = reference(unit, entry.attr_value(gimli::DW_AT_type));
            let running = number(entry, gimli::DW_AT_data_member_location);
            return Ok(future.zip(running).map(|(future, running)| {
                (
                    future,
                    Stage {
                        size,
                        align,
                        running,
                    },
                )
            }));
        }
    }
    Ok(None)
}

/// Where in a cell a future begins, if stage and vtable agree on its size.
fn place(vtable: &Vtable, stage: Stage) -> Option<u64> {
    if !stage.align.is_power_of_two() || stage.align > 4096 {
        return None;
    }
    let start = vtable.stage().checked_next_multiple_of(stage.align)?;
    let end = start.checked_add(stage.size)?;
    let trailer = end.checked_next_multiple_of(stage.align.max(8))?;
    (trailer == vtable.trailer && stage.running < stage.size)
        .then(|| start.saturating_add(stage.running))
}

/// The points of a future, with its own offsets; `None` for a future that no
/// async function or block is.
fn points(units: &mut Units<'_>, future: DebugInfoOffset) -> gimli::Result<Option<AwaitPoints>> {
    let Some((unit, future)) = units.holding(future) else {
        return Ok(None);
    };
    let mut tree = unit.entries_tree(Some(future))?;
    let mut children = tree.root()?.children();
    while let Some(child) = children.next()? {
        if child.entry().tag() == gimli::DW_TAG_variant_part {
            return of_variants(units, &unit, child);
        }
    }
    Ok(None)
}

fn of_variants(
    units: &mut Units<'_>,
    unit: &Unit<'_>,
    part: EntriesTreeNode<'_, '_, Slice<'_>>,
) -> gimli::Result<Option<AwaitPoints>> {
    let (mut told_by, mut points) = (None, BTreeMap::new());
    let mut children = part.children();
    while let Some(child) = children.next()? {
        let entry = child.entry();
        match entry.tag() {
            gimli::DW_TAG_member if is_named(units.dwarf, unit, entry, b"__state") => {
                let kind = reference(unit, entry.attr_value(gimli::DW_AT_type));
                let size = match kind.and_then(|kind| units.holding(kind)) {
                    Some((unit, kind)) => number(&unit.entry(kind)?, gimli::DW_AT_byte_size),
                    None => None,
                };
                told_by = number(entry, gimli::DW_AT_data_member_location).zip(size);
            }
            gimli::DW_TAG_variant => {
                let value = number(entry, gimli::DW_AT_discr_value);
                let point = point(units, unit, child)?;
                if let Some((value, point)) = value.zip(point)
                    && points.len() < MAX_POINTS
                {
                    points.insert(value, point);
                }
            }
            _ => {}
        }
    }
    Ok(told_by.and_then(|(offset, size)| {
        Some(AwaitPoints {
            offset,
            size: u8::try_from(size).ok()?,
            points,
        })
    }))
}

/// The line of a variant, if the future is suspended in it: before its first
/// poll, after its end and after a panic it is not.
fn point(
    units: &mut Units<'_>,
    unit: &Unit<'_>,
    variant: EntriesTreeNode<'_, '_, Slice<'_>>,
) -> gimli::Result<Option<SourceLine>> {
    let mut members = variant.children();
    let Some(member) = members.next()? else {
        return Ok(None);
    };
    let entry = member.entry();
    let kind = reference(unit, entry.attr_value(gimli::DW_AT_type));
    let Some((kinds, kind)) = kind.and_then(|kind| units.holding(kind)) else {
        return Ok(None);
    };
    let dwarf = units.dwarf;
    let name = kinds.entry(kind)?.attr_value(gimli::DW_AT_name);
    let suspended = name
        .and_then(|name| dwarf.attr_string(&kinds, name).ok())
        .is_some_and(|name| name.slice().starts_with(b"Suspend"));
    let line = number(entry, gimli::DW_AT_decl_line).and_then(|line| u32::try_from(line).ok());
    let file = match entry.attr_value(gimli::DW_AT_decl_file) {
        Some(AttributeValue::FileIndex(file)) => path(dwarf, unit, file),
        _ => None,
    };
    Ok(file
        .zip(line.filter(|line| suspended && *line > 0))
        .map(|(file, line)| SourceLine { file, line }))
}

fn path(dwarf: &Dwarf<Slice<'_>>, unit: &Unit<'_>, file: u64) -> Option<String> {
    let program = unit.line_program.as_ref()?.header();
    let file = program.file(file)?;
    let text = |value| {
        let text = dwarf.attr_string(unit, value).ok()?;
        Some(String::from_utf8_lossy(text.slice()).into_owned())
    };
    let name = text(file.path_name())?;
    // Directory 0 is where the compiler ran.
    let directory = (file.directory_index() != 0)
        .then(|| file.directory(program).and_then(text))
        .flatten();
    let path = match directory {
        Some(directory) if !name.starts_with('/') => format!("{directory}/{name}"),
        _ => name,
    };
    (path.len() <= MAX_PATH).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vtable(trailer: u64) -> Vtable {
        Vtable {
            address: 0x5000,
            functions: [0; 7],
            trailer,
            scheduler: 32,
            id: 40,
            spawn_location: None,
        }
    }

    #[test]
    fn a_stage_must_fill_the_room_between_id_and_trailer() {
        let stage = |size, align| Stage {
            size,
            align,
            running: 8,
        };
        assert_eq!(place(&vtable(112), stage(64, 8)), Some(56));
        assert_eq!(place(&vtable(112), stage(60, 4)), Some(56));
        assert_eq!(place(&vtable(128), stage(64, 32)), Some(72));
        assert_eq!(place(&vtable(120), stage(64, 8)), None);
        assert_eq!(place(&vtable(112), stage(u64::MAX, 8)), None);
        assert_eq!(place(&vtable(112), stage(64, 3)), None);
    }
}
