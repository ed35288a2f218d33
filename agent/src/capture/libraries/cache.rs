//! `/etc/ld.so.cache`, which names the libraries of the standard directories
//! (glibc, `sysdeps/generic/dl-cache.h`, format `glibc-ld.so.cache1.1`).

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::PathBuf};

/// As much of a cache is looked at.
const MAX_SIZE: usize = 16 << 20;
/// Entries of one name, one for each kind of processor.
const MAX_PATHS: usize = 8;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const OLD_ENTRY: usize = 12;
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// A library for glibc 2 on 64-bit x86.
const FLAGS: u32 = 0x0303;

/// Paths of the library of this name. A damaged cache names none.
pub(super) fn paths(cache: &[u8], name: &[u8]) -> Vec<PathBuf> {
    let cache = cache.get(..MAX_SIZE).unwrap_or(cache);
    let Some(cache) = new_format(cache) else {
        return Vec::new();
    };
    let count = number(cache, 20).unwrap_or(0) as usize;
    let entries = cache
        .get(HEADER..)
        .unwrap_or_default()
        .as_chunks::<ENTRY>()
        .0
        .iter()
        .take(count);
    let matching = entries.filter(|entry| {
        number(*entry, 0) == Some(FLAGS)
            && number(*entry, 4).and_then(|offset| text(cache, offset)) == Some(name)
    });
    let paths = matching.filter_map(|entry| text(cache, number(entry, 8)?));
    paths
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .filter(|path| path.is_absolute())
        .take(MAX_PATHS)
        .collect()
}

/// The part in the new format; older glibc puts an old one in front.
fn new_format(cache: &[u8]) -> Option<&[u8]> {
    if cache.starts_with(MAGIC) {
        return Some(cache);
    }
    cache.starts_with(OLD_MAGIC).then_some(())?;
    let count = number(cache, OLD_MAGIC.len())? as usize;
    let end = count
        .checked_mul(OLD_ENTRY)?
        .checked_add(OLD_MAGIC.len() + 4)?;
    cache
        .get(end.checked_next_multiple_of(8)?..)
        .filter(|rest| rest.starts_with(MAGIC))
}

fn number(data: &[u8], offset: usize) -> Option<u32> {
    data.get(offset..)?
        .first_chunk::<4>()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

/// The string at an offset.
fn text(cache: &[u8], offset: u32) -> Option<&[u8]> {
    let rest = cache.get(offset as usize..)?;
    let rest = rest.get(..rest.len().min(4096))?;
    rest.get(..rest.iter().position(|byte| *byte == 0)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cache(entries: &[(u32, &str, &str)]) -> Vec<u8> {
        let strings_at = HEADER + ENTRY * entries.len();
        let (mut table, mut strings) = (Vec::new(), Vec::new());
        for (flags, name, path) in entries {
            let mut place = |text: &str| {
                let offset = (strings_at + strings.len()) as u32;
                strings.extend_from_slice(text.as_bytes());
                strings.push(0);
                offset
            };
            let words = [*flags, place(name), place(path), 0, 0, 0];
            table.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        let mut data = MAGIC.to_vec();
        data.extend((entries.len() as u32).to_le_bytes());
        data.resize(HEADER, 0);
        [data, table, strings].concat()
    }

    #[test]
    fn names_lead_to_paths() {
        let data = cache(&[
            (FLAGS, "libz.so.1", "/usr/lib/libz.so.1"),
            (3, "libz.so.1", "/usr/lib32/libz.so.1"),
            (FLAGS, "liba.so", "/a/liba.so"),
        ]);
        assert_eq!(
            paths(&data, b"libz.so.1"),
            [PathBuf::from("/usr/lib/libz.so.1")]
        );
        assert!(paths(&data, b"libz.so").is_empty());
    }

    #[test]
    fn the_old_format_in_front_is_passed_over() {
        let mut data = OLD_MAGIC.to_vec();
        data.extend(1_u32.to_le_bytes());
        data.resize(32, 0);
        data.extend(cache(&[(FLAGS, "liba.so", "/a/liba.so")]));
        assert_eq!(paths(&data, b"liba.so"), [PathBuf::from("/a/liba.so")]);
    }

    proptest! {
        #[test]
        fn damage_is_survived(place in 0_usize..140, byte: u8, cut in 0_usize..140) {
            let mut data = cache(&[(FLAGS, "liba.so", "/a/liba.so"), (FLAGS, "libb.so", "/b/libb.so")]);
            let place = place % data.len();
            data[place] = byte;
            data.truncate(data.len() - cut.min(data.len()));
            for path in paths(&data, b"liba.so") {
                prop_assert!(path.is_absolute());
            }
        }
    }
}
