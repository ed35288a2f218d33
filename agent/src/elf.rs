//! Reading ELF64 little-endian images: the few questions that allocator
//! discovery, probe placement and the Tokio recipe ask of a file. Every answer
//! about a damaged or hostile file is "nothing", never a panic.

pub mod frames;
pub mod functions;
pub mod image;
pub mod lookup;
pub mod mini;

use std::borrow::Cow;

use object::{
    LittleEndian,
    elf::{
        DT_NULL, DT_SONAME, DT_STRSZ, DT_STRTAB, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, SHN_UNDEF,
        SHT_NOBITS, SHT_RELA, STT_FUNC, STT_GNU_IFUNC, STT_TLS, SectionHeader64, Sym64,
    },
    read::{
        ReadRef,
        elf::{
            ElfFile64, ProgramHeader as _, Rela as _, SectionHeader as _, Sym as _, SymbolTable,
        },
    },
};

/// A parsed image.
pub type Elf<'data, R> = ElfFile64<'data, LittleEndian, R>;

/// One that is in memory as a whole, mapped or read.
pub type Loaded<'data> = Elf<'data, &'data [u8]>;

/// Symbols looked at per table.
const MAX_SYMBOLS: usize = 4 << 20;
/// Largest string table that is read.
const MAX_STRINGS: u64 = 192 << 20;
/// Relocations looked at per file.
const MAX_RELOCATIONS: usize = 2 << 20;
/// Largest section that is read whole.
pub(crate) const MAX_SECTION: u64 = 96 << 20;
/// Bytes of the dynamic segment looked at.
const MAX_DYNAMIC: u64 = 64 << 10;
/// Longest path that the kernel takes.
const MAX_PATH: u64 = 4096;

const LE: LittleEndian = LittleEndian;

/// Which of the two symbol tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `.dynsym`: what the dynamic linker sees.
    Dynamic,
    /// `.symtab`: everything, removed by `strip`.
    Full,
}

/// What a symbol stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    /// Code.
    Function,
    /// Code that chooses another function at load time; its address is not
    /// that of the function in use.
    Indirect,
    /// Offset in the thread-local block.
    Tls,
}

/// A defined symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'data> {
    /// As in the string table, mangled.
    pub name: &'data [u8],
    /// Virtual address as linked; for TLS the offset in the block.
    pub address: u64,
    /// Bytes, 0 when the file does not tell.
    pub size: u64,
    /// Function or thread-local.
    pub kind: SymbolKind,
}

/// A relocation of the dynamic linker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation<'data> {
    /// `R_X86_64_*`.
    pub kind: u32,
    /// Virtual address of the word that it changes.
    pub place: u64,
    /// Added to the symbol's value.
    pub addend: i64,
    /// Name of the symbol, empty for none.
    pub name: &'data [u8],
    /// Linked address of the symbol, if this file defines it.
    pub address: Option<u64>,
}

/// Symbol names of one table, read in one piece: name by name, a lazily read
/// file would cost a system call and a cache entry each.
struct Names<'data>(&'data [u8]);

impl<'data> Names<'data> {
    fn of<R: ReadRef<'data>>(
        elf: &Elf<'data, R>,
        table: &SymbolTable<'data, object::elf::FileHeader64<LittleEndian>, R>,
    ) -> Option<Self> {
        let header = elf
            .elf_section_table()
            .section(table.string_section())
            .ok()?;
        let (offset, size) = header.file_range(LE)?;
        if size > MAX_STRINGS {
            return None;
        }
        elf.data().read_bytes_at(offset, size).ok().map(Self)
    }

    fn get(&self, offset: u32) -> &'data [u8] {
        let rest = self.0.get(offset as usize..).unwrap_or_default();
        // A name without an end, or longer than any real one, names nothing.
        let limit = rest.len().min(1 << 16);
        let rest = rest.get(..limit).unwrap_or_default();
        rest.iter()
            .position(|byte| *byte == 0)
            .and_then(|end| rest.get(..end))
            .unwrap_or_default()
    }
}

fn table<'elf, 'data, R: ReadRef<'data>>(
    elf: &'elf Elf<'data, R>,
    which: Table,
) -> &'elf SymbolTable<'data, object::elf::FileHeader64<LittleEndian>, R> {
    match which {
        Table::Dynamic => elf.elf_dynamic_symbol_table(),
        Table::Full => elf.elf_symbol_table(),
    }
}

/// Functions and thread-local variables that the file defines. `None` when the
/// table is too large to be read, an empty iterator when there is none.
pub fn symbols<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    which: Table,
) -> Option<impl Iterator<Item = Symbol<'data>> + use<'data, R>> {
    let table = table(elf, which);
    let symbols: &'data [Sym64<LittleEndian>] = table.symbols();
    if symbols.len() > MAX_SYMBOLS {
        return None;
    }
    let names = if symbols.is_empty() {
        Names(&[])
    } else {
        Names::of(elf, table)?
    };
    Some(symbols.iter().filter_map(move |symbol| {
        let kind = match symbol.st_type() {
            STT_FUNC => SymbolKind::Function,
            STT_GNU_IFUNC => SymbolKind::Indirect,
            STT_TLS => SymbolKind::Tls,
            _ => return None,
        };
        let defined = symbol.st_shndx(LE) != SHN_UNDEF;
        if !defined || (kind != SymbolKind::Tls && symbol.st_value(LE) == 0) {
            return None;
        }
        let name = names.get(symbol.st_name(LE));
        (!name.is_empty()).then(|| Symbol {
            name,
            address: symbol.st_value(LE),
            size: symbol.st_size(LE),
            kind,
        })
    }))
}

/// Whether the file has a `.symtab`.
pub fn has_full_symbols<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> bool {
    !elf.elf_symbol_table().is_empty()
}

/// Relocations that the dynamic linker applies, as far as they are listed in
/// `SHT_RELA` sections.
pub fn relocations<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
) -> impl Iterator<Item = Relocation<'data>> {
    let dynamic = elf.elf_dynamic_symbol_table();
    let symbols = dynamic.symbols();
    let names = Names::of(elf, dynamic).unwrap_or(Names(&[]));
    let sections = elf.elf_section_table().iter().filter(move |section| {
        section.sh_type(LE) == SHT_RELA
            && section.sh_flags(LE) & u64::from(object::elf::SHF_ALLOC) != 0
            && section.sh_size(LE) <= MAX_SECTION
    });
    sections
        .filter_map(|section| section.rela(LE, elf.data()).ok().flatten())
        .flat_map(|(entries, _)| entries)
        .take(MAX_RELOCATIONS)
        .map(move |entry| {
            let symbol = usize::try_from(entry.r_sym(LE, false))
                .ok()
                .filter(|index| *index != 0)
                .and_then(|index| symbols.get(index));
            Relocation {
                kind: entry.r_type(LE, false),
                place: entry.r_offset.get(LE),
                addend: entry.r_addend(LE),
                name: symbol
                    .map(|symbol| names.get(symbol.st_name(LE)))
                    .unwrap_or_default(),
                address: symbol
                    .filter(|symbol| symbol.st_shndx(LE) != SHN_UNDEF)
                    .map(|symbol| symbol.st_value(LE)),
            }
        })
}

/// Bytes of the file at a linked virtual address: at most `limit`, fewer where
/// the segment's file part ends, none where nothing is mapped.
pub fn bytes_at<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    address: u64,
    limit: u64,
) -> &'data [u8] {
    let Some((offset, rest)) = locate(elf, address, false) else {
        return &[];
    };
    elf.data()
        .read_bytes_at(offset, rest.min(limit))
        .unwrap_or_default()
}

/// Like [`bytes_at`], but only in executable segments.
pub fn code_at<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    address: u64,
    limit: u64,
) -> &'data [u8] {
    let Some((offset, rest)) = locate(elf, address, true) else {
        return &[];
    };
    elf.data()
        .read_bytes_at(offset, rest.min(limit))
        .unwrap_or_default()
}

/// The word of eight bytes at a linked virtual address, as it is in the file.
pub fn word_at<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, address: u64) -> Option<u64> {
    let bytes = bytes_at(elf, address, 8);
    bytes.try_into().ok().map(u64::from_le_bytes)
}

/// File offset of an address in an executable segment; what an uprobe is
/// named by.
pub fn code_offset<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, address: u64) -> Option<u64> {
    locate(elf, address, true).map(|(offset, _)| offset)
}

/// File offset of an address and how many bytes of its segment follow in the
/// file.
fn locate<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    address: u64,
    executable: bool,
) -> Option<(u64, u64)> {
    elf.elf_program_headers().iter().find_map(|segment| {
        if segment.p_type(LE) != PT_LOAD || (executable && segment.p_flags(LE) & PF_X == 0) {
            return None;
        }
        let into = address.checked_sub(segment.p_vaddr(LE))?;
        let rest = segment
            .p_filesz(LE)
            .checked_sub(into)
            .filter(|rest| *rest > 0)?;
        Some((segment.p_offset(LE).checked_add(into)?, rest))
    })
}

/// Header of a section.
pub fn section<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    name: &str,
) -> Option<&'data SectionHeader64<LittleEndian>> {
    elf.elf_section_table()
        .section_by_name(LE, name.as_bytes())
        .map(|(_, header)| header)
}

/// Contents of a section, unpacked if they are compressed. `None` when it is
/// absent, has no contents or is too large.
pub fn section_data<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    name: &str,
) -> Option<Cow<'data, [u8]>> {
    use object::{Object as _, ObjectSection as _};
    let header = section(elf, name)?;
    if header.sh_type(LE) == SHT_NOBITS || header.sh_size(LE) > MAX_SECTION {
        return None;
    }
    let contents = elf
        .section_by_name_bytes(name.as_bytes())?
        .compressed_data()
        .ok()?;
    if contents.uncompressed_size > MAX_SECTION {
        return None;
    }
    contents.decompress().ok()
}

/// As [`section_data`], of any size where it lies in the file as it is;
/// unpacking takes from `left`, in bytes.
///
/// # Errors
/// When it would take more than is left.
pub fn debug_section<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    name: &str,
    left: &mut u64,
) -> Result<Cow<'data, [u8]>, &'static str> {
    use object::{CompressionFormat, Object as _, ObjectSection as _};
    let contents = section(elf, name)
        .filter(|header| header.sh_type(LE) != SHT_NOBITS)
        .and_then(|_| elf.section_by_name_bytes(name.as_bytes()))
        .and_then(|section| section.compressed_data().ok());
    let Some(contents) = contents else {
        return Ok(Cow::default());
    };
    if contents.format != CompressionFormat::None {
        *left = left
            .checked_sub(contents.uncompressed_size)
            .ok_or("its packed debug information is too large")?;
    }
    Ok(contents.decompress().unwrap_or_default())
}

/// `DT_SONAME`, empty for none.
pub fn soname<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> &'data [u8] {
    dynamic_strings(elf, DT_SONAME)
        .into_iter()
        .next()
        .unwrap_or_default()
}

/// Strings of all entries of the dynamic segment with this tag, in order.
pub fn dynamic_strings<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    tag: i64,
) -> Vec<&'data [u8]> {
    let Some(segment) = elf
        .elf_program_headers()
        .iter()
        .find(|segment| segment.p_type(LE) == PT_DYNAMIC)
    else {
        return Vec::new();
    };
    let size = segment.p_filesz(LE).min(MAX_DYNAMIC);
    let Ok(bytes) = elf.data().read_bytes_at(segment.p_offset(LE), size) else {
        return Vec::new();
    };
    let (entries, _) = bytes.as_chunks::<16>();
    let entries = entries.iter().map(|entry| {
        let (words, _) = entry.as_chunks::<8>();
        let word = |index: usize| words.get(index).map_or(0, |word| u64::from_le_bytes(*word));
        (word(0) as i64, word(1))
    });
    let entries: Vec<(i64, u64)> = entries.take_while(|(tag, _)| *tag != DT_NULL).collect();
    let value = |wanted: i64| {
        entries
            .iter()
            .find(|(tag, _)| *tag == wanted)
            .map(|(_, value)| *value)
    };
    let (Some(strings), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else {
        return Vec::new();
    };
    let names = Names(bytes_at(elf, strings, size.min(MAX_STRINGS)));
    let offsets = entries
        .iter()
        .filter(|(known, _)| *known == tag)
        .filter_map(|(_, value)| u32::try_from(*value).ok());
    offsets
        .map(|offset| names.get(offset))
        .filter(|name| !name.is_empty())
        .collect()
}

/// The program interpreter that the kernel starts, if the file names one.
pub fn interpreter<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Option<&'data [u8]> {
    let segment = elf
        .elf_program_headers()
        .iter()
        .find(|segment| segment.p_type(LE) == PT_INTERP)?;
    let bytes = elf
        .data()
        .read_bytes_at(segment.p_offset(LE), segment.p_filesz(LE).min(MAX_PATH))
        .ok()?;
    bytes
        .split(|byte| *byte == 0)
        .next()
        .filter(|path| !path.is_empty())
}
