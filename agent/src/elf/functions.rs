//! Where functions are and what they are called.

use std::ops::Range;

use object::read::ReadRef;

use super::{Elf, Symbol, SymbolKind, Table, frames::CallFrames};

/// Symbols kept per file.
const MAX_SYMBOLS: usize = 2 << 20;

/// The functions of one file, by symbols and, where it is stripped, by call
/// frame information. All addresses are as linked.
pub struct Functions<'data> {
    /// Sorted by address.
    symbols: Vec<Symbol<'data>>,
    frames: CallFrames<'data>,
}

impl<'data> Functions<'data> {
    /// Reads symbol table and frame information; what is missing or too large
    /// leaves functions unknown.
    pub fn of<R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Self {
        let mut symbols: Vec<Symbol<'data>> = super::symbols(elf, Table::Full)
            .into_iter()
            .flatten()
            .filter(|symbol| symbol.kind == SymbolKind::Function)
            .take(MAX_SYMBOLS)
            .collect();
        symbols.sort_by_key(|symbol| symbol.address);
        Self {
            symbols,
            frames: CallFrames::of(elf),
        }
    }

    /// Symbols that name the function at exactly this address.
    pub fn symbols(&self, address: u64) -> &[Symbol<'data>] {
        let start = self
            .symbols
            .partition_point(|symbol| symbol.address < address);
        let end = self
            .symbols
            .partition_point(|symbol| symbol.address <= address);
        self.symbols.get(start..end).unwrap_or_default()
    }

    /// From here to the end of the function at this address; `None` where
    /// nothing tells its end.
    pub fn extent(&self, address: u64) -> Option<Range<u64>> {
        let size = self.symbols(address).iter().map(|symbol| symbol.size).max();
        let end = match size.filter(|size| *size > 0) {
            Some(size) => address.checked_add(size)?,
            None => self.frames.extent(address)?.end,
        };
        (address < end).then_some(address..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn here() -> u32 {
        std::hint::black_box(7)
    }

    #[test]
    fn finds_the_extent_with_and_without_symbols() {
        assert_eq!(here(), 7);
        let data = std::fs::read("/proc/self/exe").unwrap();
        let elf = Elf::parse(data.as_slice()).unwrap();
        let mut functions = Functions::of(&elf);
        let symbol = functions
            .symbols
            .iter()
            .find(|symbol| {
                let name = String::from_utf8_lossy(symbol.name);
                name.contains("elf9functions5tests4here") || name.contains("functions5tests4here")
            })
            .copied()
            .unwrap();
        let by_symbol = functions.extent(symbol.address).unwrap();
        assert_eq!(functions.symbols(symbol.address).first(), Some(&symbol));
        functions.symbols.clear();
        assert_eq!(functions.extent(symbol.address), Some(by_symbol));
        assert_eq!(functions.extent(3), None);
    }
}
