//! A file as it is once it is loaded, told without loading it: its data with
//! the pointers that the dynamic linker will write there.

use std::ops::Range;

use object::{
    LittleEndian,
    elf::{
        ET_EXEC, PF_X, PT_LOAD, R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT,
        R_X86_64_RELATIVE, SHT_RELR,
    },
    read::{
        ReadRef,
        elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _},
    },
};

use super::Elf;

const LE: LittleEndian = LittleEndian;

/// Most data that is read, all segments together.
const MAX_DATA: u64 = 256 << 20;
/// Segments of one file: linkers make a handful.
const MAX_SEGMENTS: usize = 64;
/// Relocations of the packed form that are looked at.
const MAX_PACKED: usize = 8 << 20;
/// Sections of them.
const MAX_PACKED_SECTIONS: usize = 4;
/// Pointers kept per file.
const MAX_POINTERS: usize = 4 << 20;

/// A word of data that will hold an address of the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pointer {
    /// Linked address of the word.
    pub place: u64,
    /// Linked address that it points at.
    pub target: u64,
}

/// Data and pointers of one file. All addresses are as linked.
pub struct Image<'elf, 'data, R: ReadRef<'data>> {
    elf: &'elf Elf<'data, R>,
    /// Start and contents of the segments without code.
    data: Vec<(u64, &'data [u8])>,
    /// Where segments without code are, with what has no contents in the file.
    spans: Vec<Range<u64>>,
    code: Vec<Range<u64>>,
    /// Sorted by place, one per place.
    pointers: Vec<Pointer>,
    /// Linked to a fixed address: words are pointers without a relocation.
    fixed: bool,
}

impl<'elf, 'data, R: ReadRef<'data>> Image<'elf, 'data, R> {
    /// Reads data and relocations. `None` when there is too much of either.
    pub fn of(elf: &'elf Elf<'data, R>) -> Option<Self> {
        let mut image = Self {
            elf,
            data: Vec::new(),
            spans: Vec::new(),
            code: Vec::new(),
            pointers: Vec::new(),
            fixed: elf.elf_header().e_type(LE) == ET_EXEC,
        };
        let mut left = MAX_DATA;
        for segment in elf.elf_program_headers() {
            if segment.p_type(LE) != PT_LOAD {
                continue;
            }
            let start = segment.p_vaddr(LE);
            let span = start..start.saturating_add(segment.p_memsz(LE));
            if segment.p_flags(LE) & PF_X != 0 {
                if image.code.len() >= MAX_SEGMENTS {
                    return None;
                }
                image.code.push(span);
                continue;
            }
            image.spans.push(span);
            let size = segment.p_filesz(LE);
            left = left.checked_sub(size)?;
            if image.data.len() >= MAX_SEGMENTS {
                return None;
            }
            let contents = elf.data().read_bytes_at(segment.p_offset(LE), size);
            image.data.push((start, contents.unwrap_or_default()));
        }
        if image.fixed {
            image.collect_fixed();
        }
        image.collect_relocated()?;
        // What a relocation says counts more than what the file holds.
        image.pointers.sort_by_key(|pointer| pointer.place);
        image.pointers.dedup_by_key(|pointer| pointer.place);
        Some(image)
    }

    /// Whether an address is in a segment of code.
    pub fn is_code(&self, address: u64) -> bool {
        self.code.iter().any(|range| range.contains(&address))
    }

    /// Whether an address is in a segment without code.
    pub fn is_data(&self, address: u64) -> bool {
        self.spans.iter().any(|range| range.contains(&address))
    }

    /// Where segments without code are.
    pub fn data_spans(&self) -> &[Range<u64>] {
        &self.spans
    }

    /// Whether the file is linked to fixed addresses.
    pub fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// All pointers into code, sorted by place.
    pub fn code_pointers(&self) -> Vec<Pointer> {
        self.pointers
            .iter()
            .copied()
            .filter(|pointer| self.is_code(pointer.target))
            .collect()
    }

    /// The linked address that the word at `place` will point at.
    pub fn pointer(&self, place: u64) -> Option<u64> {
        let index = self
            .pointers
            .binary_search_by_key(&place, |pointer| pointer.place)
            .ok();
        match index {
            Some(index) => self.pointers.get(index).map(|pointer| pointer.target),
            None if self.fixed => self.word(place),
            None => None,
        }
    }

    /// The number at `place`; `None` where a pointer will be.
    pub fn number(&self, place: u64) -> Option<u64> {
        let known = |pointer: &Pointer| pointer.place.cmp(&place);
        match self.pointers.binary_search_by(known) {
            Ok(_) => None,
            Err(_) => self.word(place),
        }
    }

    fn word(&self, place: u64) -> Option<u64> {
        let bytes = self.bytes(place, 8)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    }

    /// Data as it is in the file.
    pub fn bytes(&self, address: u64, size: u64) -> Option<&'data [u8]> {
        self.data.iter().find_map(|(start, contents)| {
            let from = usize::try_from(address.checked_sub(*start)?).ok()?;
            let to = from.checked_add(usize::try_from(size).ok()?)?;
            contents.get(from..to)
        })
    }

    /// Code as it is in the file: at most `limit` bytes.
    pub fn code(&self, address: u64, limit: u64) -> &'data [u8] {
        super::code_at(self.elf, address, limit)
    }

    /// Words that look like addresses of code, where no relocation tells.
    fn collect_fixed(&mut self) {
        for (start, contents) in &self.data {
            let skip = (start.wrapping_neg() & 7) as usize;
            let (words, _) = contents.get(skip..).unwrap_or_default().as_chunks::<8>();
            let mut place = start.wrapping_add(skip as u64);
            for word in words {
                let target = u64::from_le_bytes(*word);
                let is_code = self.code.iter().any(|range| range.contains(&target));
                if is_code && self.pointers.len() < MAX_POINTERS {
                    self.pointers.push(Pointer { place, target });
                }
                place = place.wrapping_add(8);
            }
        }
    }

    fn collect_relocated(&mut self) -> Option<()> {
        let mut packed = MAX_PACKED;
        for relocation in super::relocations(self.elf) {
            let base = match relocation.kind {
                R_X86_64_RELATIVE => 0,
                R_X86_64_64 | R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT => {
                    let Some(address) = relocation.address else {
                        continue;
                    };
                    address
                }
                _ => continue,
            };
            self.push(
                relocation.place,
                base.wrapping_add(relocation.addend as u64),
            )?;
        }
        let sections = self.elf.elf_section_table().iter().filter(|section| {
            section.sh_type(LE) == SHT_RELR && section.sh_size(LE) <= super::MAX_SECTION
        });
        for section in sections.take(MAX_PACKED_SECTIONS) {
            let Ok(Some(places)) = section.relr(LE, self.elf.data()) else {
                continue;
            };
            for place in places {
                packed = packed.checked_sub(1)?;
                if let Some(target) = self.word(place) {
                    self.push(place, target)?;
                }
            }
        }
        Some(())
    }

    fn push(&mut self, place: u64, target: u64) -> Option<()> {
        if self.pointers.len() >= MAX_POINTERS {
            return None;
        }
        self.pointers.push(Pointer { place, target });
        Some(())
    }
}

/// Address in a process minus address as linked, for a mapping of the file
/// that begins at `start` and shows it from `offset` on.
pub fn bias<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    start: u64,
    offset: u64,
    executable: bool,
) -> Option<u64> {
    let segments = elf.elf_program_headers().iter().filter(|segment| {
        let first = segment.p_offset(LE) & !0xfff;
        let end = segment.p_offset(LE).saturating_add(segment.p_filesz(LE));
        segment.p_type(LE) == PT_LOAD && (first..end).contains(&offset)
    });
    let segment = segments.max_by_key(|segment| {
        let is_code = segment.p_flags(LE) & PF_X != 0;
        (is_code == executable, segment.p_offset(LE))
    })?;
    let into = offset.wrapping_sub(segment.p_offset(LE));
    Some(start.wrapping_sub(segment.p_vaddr(LE).wrapping_add(into)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A table of functions, as vtables are.
    static TABLE: [fn() -> u32; 3] = [|| 1, || 2, || 3];

    #[test]
    fn knows_the_pointers_of_this_program() {
        let data = std::fs::read("/proc/self/exe").unwrap();
        let elf = Elf::parse(data.as_slice()).unwrap();
        let image = Image::of(&elf).unwrap();
        let mappings = crate::host::mapping::of(std::process::id()).unwrap();
        let table = (&raw const TABLE) as u64;
        let mapping = mappings
            .iter()
            .find(|mapping| mapping.executable && mapping.is_file())
            .unwrap();
        let bias = bias(&elf, mapping.start, mapping.offset, true).unwrap();
        for (index, function) in TABLE.iter().enumerate() {
            let place = table - bias + 8 * index as u64;
            let target = (*function as usize as u64) - bias;
            assert_eq!(image.pointer(place), Some(target));
            assert_eq!(image.number(place), None);
            assert!(image.is_code(target) && image.is_data(place));
            assert!(!image.code(target, 4).is_empty());
        }
        assert!(image.code_pointers().is_sorted());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_files_are_no_trouble(
            hits in proptest::collection::vec((0usize..4096, any::<u8>()), 1..40),
            address in any::<u64>(),
        ) {
            let mut data = std::fs::read("/bin/true").unwrap();
            for (at, value) in hits {
                if let Some(byte) = data.get_mut(at) {
                    *byte = value;
                }
            }
            if let Ok(elf) = Elf::parse(data.as_slice())
                && let Some(image) = Image::of(&elf)
            {
                let _ = image.pointer(address);
                let _ = image.number(address);
                let _ = image.bytes(address, 64);
                let _ = image.code_pointers();
                let _ = bias(&elf, address, address & 0xffff, true);
            }
        }
    }
}
