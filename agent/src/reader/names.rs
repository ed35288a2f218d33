//! Code addresses to functions, files and lines, in the reader process: from
//! symbol tables, `.gnu_debugdata` and debug information.

use std::{borrow::Cow, fmt};

use addr2line::{Context, gimli};
use gimli::{EndianSlice, LittleEndian};
use object::Object as _;

use super::{
    MAX_HEAP,
    question::{At, MAX_DEPTH, MAX_TEXT, Name},
    serve::Mapping,
};
use crate::elf::{self, Loaded, Table, lookup::Lookup, mini};

/// Files kept: a process's own program and its libraries are asked about in
/// turn.
const MAX_SOURCES: usize = 6;
/// Heap from which on they are dropped, the oldest first: what they take is
/// kept between questions.
const MUCH_HEAP: u64 = MAX_HEAP / 8 * 3;
/// Packed debug information of one file that is unpacked.
const MAX_UNPACKED: u64 = 64 << 20;
/// Symbol tables that every file has, empty or not, before those that are
/// looked at where debug information names nothing.
const OWN_TABLES: usize = 2;
/// Longest symbol that is demangled.
const MAX_SYMBOL: usize = 16 << 10;

type Slice = EndianSlice<'static, LittleEndian>;

/// Files that were asked about lately, the latest last.
#[derive(Default)]
pub(super) struct Sources(Vec<Source>);

impl Sources {
    /// Names at linked addresses of the first file; a second one may hold the
    /// debug information. Stops where the answer gets large.
    pub(super) fn names(
        &mut self,
        key: [u64; 5],
        debug: bool,
        files: Vec<Mapping>,
        addresses: &[u64],
    ) -> Result<Vec<At>, String> {
        let known = |source: &Source| (source.key, source.debug) == (key, debug);
        let source = if let Some(index) = self.0.iter().position(known) {
            self.0.remove(index)
        } else {
            if self.0.len() >= MAX_SOURCES {
                self.0.remove(0);
            }
            if heap() > MUCH_HEAP {
                self.0.clear();
            }
            Source::of(key, debug, files)?
        };
        let mut names = Vec::new();
        let mut bytes = 0;
        for address in addresses {
            let at = source.at(*address);
            bytes += at.0.iter().map(Name::bytes).sum::<usize>();
            names.push(at);
            // The bound of an answer, less the largest step.
            if bytes > 2 << 20 {
                break;
            }
        }
        self.0.push(source);
        while self.0.len() > 1 && heap() > MUCH_HEAP {
            self.0.remove(0);
        }
        if heap() > MUCH_HEAP {
            self.0.clear();
        }
        give_back();
        Ok(names)
    }
}

/// Bytes of heap in use.
fn heap() -> u64 {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: reads counters of the allocator.
        let info = unsafe { libc::mallinfo2() };
        info.uordblks as u64 + info.hblkhd as u64
    }
    #[cfg(not(target_env = "gnu"))]
    0
}

/// Gives the kernel back what the heap does not use.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

impl Name {
    /// About as many as it takes in an answer.
    fn bytes(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        16 + length(&self.function) + length(&self.file)
    }
}

/// What one file knows of addresses. The fields are dropped in order, and
/// the last two are what the others point into.
struct Source {
    key: [u64; 5],
    debug: bool,
    symbols: Vec<Lookup<'static>>,
    context: Option<Context<Slice>>,
    /// Unpacked sections and images.
    _unpacked: Vec<Vec<u8>>,
    _files: Vec<Mapping>,
}

impl Source {
    fn of(key: [u64; 5], debug: bool, files: Vec<Mapping>) -> Result<Self, String> {
        let mut unpacked = Vec::new();
        let [file, rest @ ..] = files.as_slice() else {
            return Err("no file".to_owned());
        };
        let parse = |file: &Mapping| {
            // SAFETY: kept, where it is, for as long as what points into it.
            let bytes: &'static [u8] = unsafe { forever(file) };
            Loaded::parse(bytes).ok()
        };
        let elf = parse(file).ok_or("it is no 64-bit ELF file")?;
        // Another build's would name other functions.
        let separate = rest.first().and_then(parse).filter(|separate| {
            let id = |elf: &Loaded<'static>| elf.build_id().ok().flatten().map(<[u8]>::to_vec);
            id(separate).is_some() && id(separate) == id(&elf)
        });
        let mut symbols = Vec::new();
        let mut add = |elf: &Loaded<'static>, table| -> Result<(), String> {
            let lookup = Lookup::of(elf, table);
            symbols.push(lookup.ok_or("its symbol table is too large or damaged")?);
            Ok(())
        };
        add(&elf, Table::Full)?;
        add(&elf, Table::Dynamic)?;
        if !elf::has_full_symbols(&elf) {
            if let Some(separate) = &separate {
                add(separate, Table::Full)?;
            } else if let Some(image) = mini::image(&elf) {
                // SAFETY: as above.
                let bytes: &'static [u8] = unsafe { forever(&image) };
                if let Ok(elf) = Loaded::parse(bytes) {
                    add(&elf, Table::Full)?;
                }
                unpacked.push(image);
            }
        }
        let context = if debug {
            context(separate.as_ref().unwrap_or(&elf), &mut unpacked)?
        } else {
            None
        };
        Ok(Self {
            key,
            debug,
            symbols,
            context,
            _unpacked: unpacked,
            _files: files,
        })
    }

    fn at(&self, address: u64) -> At {
        let (own, apart) = self.symbols.split_at(OWN_TABLES.min(self.symbols.len()));
        let find = |tables: &[Lookup<'static>]| {
            let name = tables.iter().find_map(|table| table.find(address));
            name.map(demangled)
        };
        // Debug information often names functions without their path; the
        // symbol table has that.
        let symbol = find(own);
        let mut names = self.told(address).unwrap_or_default();
        if names.is_empty() {
            names.push(Name::default());
        }
        if let Some(last) = names.last_mut() {
            last.function = symbol.or(last.function.take()).or_else(|| find(apart));
            if last.function.is_none() {
                // A line without a function says too little.
                names.pop();
            }
        }
        At(names)
    }

    /// What debug information tells.
    fn told(&self, address: u64) -> Option<Vec<Name>> {
        let mut frames = self
            .context
            .as_ref()?
            .find_frames(address)
            .skip_all_loads()
            .ok()?;
        let mut names: Vec<Name> = Vec::new();
        while let Ok(Some(frame)) = frames.next() {
            if names.len() >= MAX_DEPTH {
                // The outermost has the place of the last one inside.
                names.pop();
            }
            if let Some(before) = names.last_mut() {
                before.inlined = true;
            }
            let function = frame
                .function
                .as_ref()
                .map(|function| demangled(function.name.slice()));
            let location = frame.location.as_ref();
            names.push(Name {
                function,
                file: location
                    .and_then(|location| location.file)
                    .map(|file| cut(file).to_owned()),
                line: location.and_then(|location| location.line),
                inlined: false,
            });
        }
        Some(names)
    }
}

/// The same bytes for any lifetime.
///
/// # Safety
/// They must be neither moved nor freed while they are used.
unsafe fn forever(bytes: &[u8]) -> &'static [u8] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr(), bytes.len()) }
}

/// Debug information, if there is any that can be read.
fn context(
    elf: &Loaded<'static>,
    unpacked: &mut Vec<Vec<u8>>,
) -> Result<Option<Context<Slice>>, String> {
    let mut left = MAX_UNPACKED;
    let section = |id: gimli::SectionId| -> Result<Slice, String> {
        let bytes = match elf::debug_section(elf, id.name(), &mut left)? {
            Cow::Borrowed(bytes) => bytes,
            Cow::Owned(bytes) => {
                // SAFETY: kept beside what points into it; moving the list
                // does not move what is in it.
                let slice = unsafe { forever(&bytes) };
                unpacked.push(bytes);
                slice
            }
        };
        Ok(EndianSlice::new(bytes, LittleEndian))
    };
    let dwarf = gimli::Dwarf::load(section)?;
    if dwarf
        .debug_info
        .units()
        .next()
        .is_ok_and(|unit| unit.is_none())
    {
        return Ok(None);
    }
    // Damaged: symbols are left.
    Ok(Context::from_dwarf(dwarf).ok())
}

/// A name as people write it, if it is mangled by Rust or C++.
fn demangled(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name.get(..MAX_SYMBOL).unwrap_or(name));
    let mut text = Cut(String::new());
    if let Ok(symbol) = rustc_demangle::try_demangle(&name) {
        // An error is the cut.
        let _ = fmt::Write::write_fmt(&mut text, format_args!("{symbol:#}"));
    } else if let Ok(symbol) = cpp_demangle::Symbol::new(name.as_ref()) {
        let options = cpp_demangle::DemangleOptions::default();
        if symbol.structured_demangle(&mut text, &options).is_err() && text.0.len() < MAX_TEXT {
            text.0.clear();
        }
    }
    if text.0.is_empty() {
        return cut(&name).to_owned();
    }
    text.0
}

/// Text up to the bound: what a name unfolds to may be any size.
struct Cut(String);

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_TEXT - self.0.len();
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(
            text.get(..text.floor_char_boundary(room))
                .unwrap_or_default(),
        );
        // Full, even where the last character did not fit.
        while self.0.len() < MAX_TEXT {
            self.0.push('.');
        }
        Err(fmt::Error)
    }
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_as_people_write_them() {
        let name = |text: &str| demangled(text.as_bytes());
        assert_eq!(name("_Znwm"), "operator new(unsigned long)");
        assert_eq!(
            name("_ZN4core3fmt5write17h0123456789abcdefE"),
            "core::fmt::write"
        );
        assert_eq!(name("_RNvC5alloc4free"), "alloc::free");
        assert_eq!(name("malloc"), "malloc");
        assert_eq!(name("_Z"), "_Z");
    }

    #[test]
    fn no_name_unfolds_without_end() {
        // Each argument is a pair of the one before.
        let mut name = String::from("_Z1fI");
        for _ in 0..40 {
            name.push_str("S_IS_S_E");
        }
        name.push_str("EvT_");
        assert!(demangled(name.as_bytes()).len() <= MAX_TEXT);
        assert!(demangled(&vec![b'x'; 1 << 20]).len() <= MAX_TEXT);
    }
}
