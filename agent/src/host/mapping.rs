//! The mappings of a process, from `/proc/PID/maps`.

pub mod code;

use std::{
    fs::File,
    io::{self, Read as _},
};

/// Longest list that is read whole: about 100 000 mappings. The kernel's own
/// limit is 65 530 by default; [`code`] reads longer ones.
pub(super) const MAX_BYTES: u64 = 16 << 20;

/// One line of `/proc/PID/maps`.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the kernel's line"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// May be read.
    pub readable: bool,
    /// May be written.
    pub writable: bool,
    /// May be executed.
    pub executable: bool,
    /// Writes are seen by other processes.
    pub shared: bool,
    /// Offset in the file.
    pub offset: u64,
    /// Device as `major:minor`, in hexadecimal.
    pub device: (u32, u32),
    /// Inode; 0 for memory without a file.
    pub inode: u64,
    /// Path as the kernel prints it, raw: chosen by the target. Empty for
    /// anonymous memory, `[vdso]` and the like for special mappings.
    pub path: Vec<u8>,
}

impl Mapping {
    /// Whether it shows a file.
    pub fn is_file(&self) -> bool {
        self.inode != 0 && self.path.starts_with(b"/")
    }
}

/// Reads the mappings of a process, sorted by address.
pub fn of(pid: u32) -> io::Result<Vec<Mapping>> {
    let mut text = Vec::new();
    File::open(format!("/proc/{pid}/maps"))?
        .take(MAX_BYTES)
        .read_to_end(&mut text)?;
    Ok(parse_all(&text))
}

/// Parses the whole file; lines of another shape are left out.
pub fn parse_all(text: &[u8]) -> Vec<Mapping> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect()
}

/// Parses one line; `None` for one of another shape.
pub fn parse(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let from = rest.iter().position(|byte| *byte != b' ')?;
        let tail = rest.get(from..)?;
        let length = tail
            .iter()
            .position(|byte| *byte == b' ')
            .unwrap_or(tail.len());
        rest = tail.get(length..)?;
        std::str::from_utf8(tail.get(..length)?).ok()
    };
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = field()?.split_once('-')?;
    let flags = field()?.as_bytes();
    let offset = hex(field()?)?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?.parse().ok()?;
    let path = rest
        .iter()
        .position(|byte| *byte != b' ')
        .and_then(|from| rest.get(from..))
        .unwrap_or_default();
    let (start, end) = (hex(start)?, hex(end)?);
    if start >= end {
        return None;
    }
    Some(Mapping {
        start,
        end,
        readable: flags.first() == Some(&b'r'),
        writable: flags.get(1) == Some(&b'w'),
        executable: flags.get(2) == Some(&b'x'),
        shared: flags.get(3) == Some(&b's'),
        offset,
        device: (
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        ),
        inode,
        path: path.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_its_own_mappings() {
        let mappings = of(std::process::id()).unwrap();
        let here = reads_its_own_mappings as fn() as usize as u64;
        let code = mappings
            .iter()
            .find(|m| m.start <= here && here < m.end)
            .unwrap();
        assert!(code.executable && code.is_file());
        assert!(mappings.iter().any(|m| m.path == b"[vdso]"));
    }

    #[test]
    fn parses_paths_with_spaces() {
        let line = b"7f0000000000-7f0000001000 r-xp 00002000 fe:01 1234       /tmp/a b (deleted)";
        let mapping = parse(line).unwrap();
        assert_eq!(
            (mapping.offset, mapping.device, mapping.inode),
            (0x2000, (0xfe, 1), 1234)
        );
        assert_eq!(mapping.path, b"/tmp/a b (deleted)");
        assert!(mapping.executable && !mapping.writable && !mapping.shared);
    }

    proptest! {
        #[test]
        fn never_panics(line in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse(&line);
        }
    }
}
