//! Damaged copies of a library, each with one absurdity.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// Size of a section header, and of a symbol.
const SECTION: usize = 64;
const SYMBOL: usize = 24;
/// Places in a section header.
const FLAGS: usize = 8;
const OFFSET: usize = 24;
const SIZE: usize = 32;
const LINK: usize = 40;
const ENTRY_SIZE: usize = 56;
const TYPE: usize = 4;
/// What a section is when its contents are packed.
const SHF_COMPRESSED: u64 = 0x800;

/// A library's bytes, and where its sections are.
pub(crate) struct Library<'data> {
    data: &'data [u8],
    headers: usize,
    sections: Vec<(String, usize)>,
}

fn word(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().unwrap())
}

fn half(data: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(data[at..at + 2].try_into().unwrap()))
}

fn put(data: &mut [u8], at: usize, bytes: &[u8]) {
    data[at..at + bytes.len()].copy_from_slice(bytes);
}

impl<'data> Library<'data> {
    pub(crate) fn of(data: &'data [u8]) -> Self {
        let (headers, count, names) = (word(data, 40) as usize, half(data, 60), half(data, 62));
        let names = word(data, headers + names * SECTION + OFFSET) as usize;
        let name = |index: usize| {
            let at = headers + index * SECTION;
            let name = u32::from_le_bytes(data[at..at + 4].try_into().unwrap()) as usize;
            let bytes = data[names + name..]
                .split(|byte| *byte == 0)
                .next()
                .unwrap();
            (String::from_utf8(bytes.to_vec()).unwrap(), at)
        };
        Self {
            data,
            headers,
            sections: (0..count).map(name).collect(),
        }
    }

    /// Where a section's header is.
    fn header(&self, name: &str) -> usize {
        let found = self.sections.iter().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("no {name}")).1
    }

    fn offset(&self, name: &str) -> usize {
        word(self.data, self.header(name) + OFFSET) as usize
    }

    fn size(&self, name: &str) -> usize {
        word(self.data, self.header(name) + SIZE) as usize
    }

    /// A copy in which a section's header has other words.
    fn with(&self, name: &str, changes: &[(usize, u64)]) -> Vec<u8> {
        let mut copy = self.data.to_vec();
        for (field, value) in changes {
            // Type and link have four bytes, and a neighbour.
            let bytes = value.to_le_bytes();
            let length = if [TYPE, LINK].contains(field) { 4 } else { 8 };
            put(&mut copy, self.header(name) + field, &bytes[..length]);
        }
        copy
    }

    fn patched(&self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut copy = self.data.to_vec();
        put(&mut copy, at, bytes);
        copy
    }

    /// The address of a symbol.
    pub(crate) fn symbol(&self, name: &[u8]) -> Option<u64> {
        let (symbols, names) = (self.offset(".symtab"), self.offset(".strtab"));
        (0..self.size(".symtab") / SYMBOL).find_map(|index| {
            let at = symbols + index * SYMBOL;
            let text = u32::from_le_bytes(self.data[at..at + 4].try_into().unwrap()) as usize;
            let text = self.data[names + text..].split(|byte| *byte == 0).next()?;
            (text == name).then(|| word(self.data, at + 8))
        })
    }
}

/// Writes every damaged copy into a directory.
pub(crate) fn write_all(good: &[u8], directory: &Path) -> Vec<PathBuf> {
    fs::create_dir_all(directory).unwrap();
    let library = Library::of(good);
    let mut files = headers(&library);
    files.extend(sections(&library));
    files.extend(symbols(&library));
    files.extend(unwind_tables(&library));
    files.extend(random(&library));
    files.extend(bombs(&library));
    let mut paths: Vec<PathBuf> = files
        .into_iter()
        .map(|(name, bytes)| {
            let path = directory.join(name);
            fs::write(&path, bytes).unwrap();
            path
        })
        .collect();
    // Mostly holes: an absurd table that takes no space.
    for (name, section, size) in [
        ("symtab_sparse", ".symtab", 40_000_000 * SYMBOL as u64),
        ("eh_sparse", ".eh_frame", 1 << 30),
        ("strtab_sparse", ".strtab", 1 << 30),
        ("debug_sparse", ".debug_info", 1 << 30),
    ] {
        let start = 1 << 20;
        let path = directory.join(name);
        fs::write(
            &path,
            library.with(section, &[(OFFSET, start), (SIZE, size)]),
        )
        .unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(start + size).unwrap();
        paths.push(path);
    }
    paths
}

type Named = (String, Vec<u8>);

fn headers(library: &Library<'_>) -> Vec<Named> {
    let good = library.data;
    let patched = |at, bytes: &[u8]| library.patched(at, bytes);
    let files = [
        ("empty", Vec::new()),
        ("short", good[..40].to_vec()),
        ("header_only", good[..64].to_vec()),
        ("half", good[..good.len() / 2].to_vec()),
        ("all_sections", patched(60, &[0xff; 2])),
        ("no_sections", patched(60, &[0; 2])),
        (
            "sections_nowhere",
            patched(40, &(64_u64.wrapping_neg()).to_le_bytes()),
        ),
        ("all_segments", patched(56, &[0xff; 2])),
        (
            "segments_nowhere",
            patched(32, &(1_u64 << 63).to_le_bytes()),
        ),
        ("no_header_size", patched(58, &[0; 2])),
    ];
    files.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}

fn sections(library: &Library<'_>) -> Vec<Named> {
    const NAMES: [&str; 10] = [
        ".symtab",
        ".dynsym",
        ".strtab",
        ".eh_frame",
        ".eh_frame_hdr",
        ".debug_info",
        ".debug_line",
        ".debug_abbrev",
        ".note.gnu.build-id",
        ".text",
    ];
    let mut files = Vec::new();
    for name in NAMES {
        let index = (library.header(name) - library.headers) / SECTION;
        for (what, field, value) in [
            ("size_huge", SIZE, 1 << 63),
            ("offset_huge", OFFSET, 8_u64.wrapping_neg()),
            ("entries_zero", ENTRY_SIZE, 0),
            ("link_itself", LINK, index as u64),
            ("no_bits", TYPE, 8),
        ] {
            files.push((
                format!("{what}{name}"),
                library.with(name, &[(field, value)]),
            ));
        }
    }
    files
}

/// `malloc` at absurd places, many times.
fn symbols(library: &Library<'_>) -> Vec<Named> {
    let text = (library.header(".text") - library.headers) / SECTION;
    let start = word(library.data, library.header(".text") + 16);
    let end = library.data.len() as u64 - 1;
    let mut files = Vec::new();
    for (name, address, size) in [
        ("symbols_at_end", end, 1 << 63),
        ("symbols_negative", u64::MAX, u64::MAX),
        ("symbols_zero", 0, 0),
        ("symbols_inside", start + 1, 3),
    ] {
        let mut copy = library.patched(library.offset(".strtab") + 1, b"malloc\0");
        for index in 0..library.size(".symtab") / SYMBOL {
            let mut symbol = vec![1, 0, 0, 0, 0x12, 0, text as u8, 0];
            symbol.extend(address.to_le_bytes());
            symbol.extend(u64::to_le_bytes(size));
            put(
                &mut copy,
                library.offset(".symtab") + index * SYMBOL,
                &symbol,
            );
        }
        files.push((name.to_owned(), copy));
    }
    files
}

fn unwind_tables(library: &Library<'_>) -> Vec<Named> {
    let (at, size) = (library.offset(".eh_frame"), library.size(".eh_frame"));
    let mut draw = Draw(1);
    let noise: Vec<u8> = (0..size).map(|_| draw.next() as u8).collect();
    vec![
        (
            "unwind_ones".to_owned(),
            library.patched(at, &vec![0xff; size]),
        ),
        (
            "unwind_long".to_owned(),
            library.patched(at, &0xffff_fff0_u32.to_le_bytes()),
        ),
        ("unwind_noise".to_owned(), library.patched(at, &noise)),
    ]
}

fn random(library: &Library<'_>) -> Vec<Named> {
    let damaged = |number: u64| {
        let mut draw = Draw(number + 1);
        let mut copy = library.data.to_vec();
        for _ in 0..400 {
            let at = 64 + draw.next() as usize % (copy.len() - 64);
            copy[at] = draw.next() as u8;
        }
        (format!("random{number}"), copy)
    };
    (0..12).map(damaged).collect()
}

/// Little that unpacks to much, and lies about how much.
fn bombs(library: &Library<'_>) -> Vec<Named> {
    const UNPACKED: u64 = 200 << 20;
    let mut zeros = io::repeat(0).take(UNPACKED);
    let gzip = super::packed("gzip", &["-9nc"], &mut zeros);
    // Between gzip's header and its checksum; zlib has its own.
    let mut zlib = vec![0x78, 0xda];
    zlib.extend(&gzip[10..gzip.len() - 8]);
    zlib.extend((((UNPACKED % 65521) as u32) << 16 | 1).to_be_bytes());
    let mut files = Vec::new();
    for (name, told) in [
        ("zlib_bomb", UNPACKED),
        ("zlib_lie_more", 1 << 62),
        ("zlib_lie_less", 1 << 20),
    ] {
        let mut chunk: Vec<u8> = [1_u32.to_le_bytes(), [0; 4]].concat();
        chunk.extend(u64::to_le_bytes(told));
        chunk.extend(1_u64.to_le_bytes());
        chunk.extend(&zlib);
        let mut copy = library.with(
            ".debug_info",
            &[
                (FLAGS, SHF_COMPRESSED),
                (OFFSET, library.data.len() as u64),
                (SIZE, chunk.len() as u64),
            ],
        );
        copy.extend(chunk);
        files.push((name.to_owned(), copy));
    }
    let mut zeros = io::repeat(0).take(300 << 20);
    let xz = super::packed("xz", &["-6c"], &mut zeros);
    files.push(("xz_bomb".to_owned(), with_debugdata(library, &xz)));
    files
}

/// A copy without `.symtab`, whose `.comment` is `.gnu_debugdata`.
fn with_debugdata(library: &Library<'_>, packed: &[u8]) -> Vec<u8> {
    let names = library.header(".shstrtab");
    let mut copy = library.with(".symtab", &[(TYPE, 8)]);
    let (old, size) = (library.offset(".shstrtab"), library.size(".shstrtab"));
    let mut table = library.data[old..old + size].to_vec();
    table.extend(b".gnu_debugdata\0");
    let place = copy.len() as u64;
    put(&mut copy, names + OFFSET, &place.to_le_bytes());
    put(&mut copy, names + SIZE, &(table.len() as u64).to_le_bytes());
    let comment = library.header(".comment");
    put(&mut copy, comment, &(size as u32).to_le_bytes());
    let place = place + table.len() as u64;
    put(&mut copy, comment + OFFSET, &place.to_le_bytes());
    put(
        &mut copy,
        comment + SIZE,
        &(packed.len() as u64).to_le_bytes(),
    );
    copy.extend(table);
    copy.extend(packed);
    copy
}

/// A small generator (xorshift64*).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20
    }
}
