//! Which symbol an address belongs to.

use std::cmp::Reverse;

use object::{
    elf::{SHN_UNDEF, STB_LOCAL, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, Sym64},
    read::{ReadRef, elf::Sym as _},
};

use super::{Elf, LE, Names, Table, table};

/// Symbols kept per table: 24 bytes each.
const MAX_SYMBOLS: usize = 2 << 20;

/// A symbol that names code.
#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    size: u64,
    name: u32,
    /// Known in its own object file only: musl's `default_malloc` is `malloc`
    /// to everybody else.
    is_local: bool,
}

/// The symbols of one table that may name code, sorted by address.
pub struct Lookup<'data> {
    entries: Vec<Entry>,
    names: Names<'data>,
    /// A symbol without a size goes on up to the next one. Not in `.dynsym`,
    /// where most functions are missing.
    goes_on: bool,
}

impl<'data> Lookup<'data> {
    /// Reads a table; `None` when it is too large or damaged.
    pub fn of<R: ReadRef<'data>>(elf: &Elf<'data, R>, which: Table) -> Option<Self> {
        let table = table(elf, which);
        let symbols: &'data [Sym64<_>] = table.symbols();
        let is_code = |symbol: &&Sym64<_>| {
            let kind = symbol.st_type();
            [STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE].contains(&kind)
                && symbol.st_shndx(LE) != SHN_UNDEF
                && symbol.st_name(LE) != 0
        };
        if symbols.len() > super::MAX_SYMBOLS {
            return None;
        }
        let names = if symbols.is_empty() {
            Names(&[])
        } else {
            Names::of(elf, table)?
        };
        let mut entries = Vec::new();
        for symbol in symbols.iter().filter(is_code) {
            if entries.len() >= MAX_SYMBOLS {
                return None;
            }
            entries.push(Entry {
                address: symbol.st_value(LE),
                size: symbol.st_size(LE),
                name: symbol.st_name(LE),
                is_local: symbol.st_bind() == STB_LOCAL,
            });
        }
        // The largest first of those that begin at one place.
        entries.sort_by_key(|entry| (entry.address, Reverse(entry.size), entry.is_local));
        Some(Self {
            entries,
            names,
            goes_on: which == Table::Full,
        })
    }

    /// The name of the symbol that holds this address.
    pub fn find(&self, address: u64) -> Option<&'data [u8]> {
        let after = self
            .entries
            .partition_point(|entry| entry.address <= address);
        let nearest = self.entries.get(after.checked_sub(1)?)?.address;
        let first = self
            .entries
            .partition_point(|entry| entry.address < nearest);
        let holds = |entry: &&Entry| match entry.size {
            0 => self.goes_on || entry.address == address,
            size => address - entry.address < size,
        };
        let found = self.entries.get(first..after)?.iter().find(holds)?;
        Some(self.names.get(found.name)).filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_symbol_that_reaches_so_far() {
        let entry = |address, size, name| Entry {
            address,
            size,
            name,
            is_local: false,
        };
        let mut lookup = Lookup {
            entries: vec![
                entry(16, 8, 1),
                entry(32, 16, 3),
                entry(32, 4, 5),
                entry(64, 0, 7),
            ],
            names: Names(b"\0a\0b\0c\0d\0"),
            goes_on: true,
        };
        let found = |lookup: &Lookup<'static>, address| lookup.find(address).map(|name| name[0]);
        assert_eq!(found(&lookup, 15), None);
        assert_eq!(found(&lookup, 23), Some(b'a'));
        assert_eq!(found(&lookup, 24), None);
        assert_eq!(found(&lookup, 47), Some(b'b'));
        assert_eq!(found(&lookup, 1000), Some(b'd'));
        lookup.goes_on = false;
        assert_eq!(found(&lookup, 64), Some(b'd'));
        assert_eq!(found(&lookup, 65), None);
    }
}
