//! Address ranges whose pages somebody else fills in.

use std::{
    fs::{self, File},
    io::{self, Read as _},
};

use super::mapping;

/// Descriptors looked at.
const MAX_DESCRIPTORS: usize = 4096;
/// Longest smaps that is read.
const MAX_BYTES: u64 = 64 << 20;
/// Flags of mappings that are not read (Documentation/filesystems/proc.rst):
/// userfaultfd in its three modes, device memory, raw page frames, huge pages
/// of hugetlbfs.
const FLAGS: [&[u8]; 6] = [b"um", b"uw", b"ui", b"io", b"pf", b"ht"];

/// Ranges that must not be read in a process that holds a userfaultfd. In
/// others nothing is looked up: smaps stalls its target.
pub(super) fn ranges(pid: u32) -> io::Result<Vec<(u64, u64)>> {
    if !has_userfaultfd(pid) {
        return Ok(Vec::new());
    }
    let mut text = Vec::new();
    File::open(format!("/proc/{pid}/smaps"))?
        .take(MAX_BYTES)
        .read_to_end(&mut text)?;
    if text.len() as u64 == MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(parse(&text))
}

fn has_userfaultfd(pid: u32) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .take(MAX_DESCRIPTORS)
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|link| link.as_os_str() == "anon_inode:[userfaultfd]")
}

fn parse(text: &[u8]) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut range = None;
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let guarded = flags
                .split(|byte| *byte == b' ')
                .any(|flag| FLAGS.contains(&flag));
            found.extend(range.take().filter(|_| guarded));
        } else if let Some(mapping) = mapping::parse(line) {
            range = Some((mapping.start, mapping.end));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_ranges_by_their_flags() {
        let text = b"1000-2000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr mr mw me ac \n\
            2000-3000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr um ac \n";
        assert_eq!(parse(text), [(0x2000, 0x3000)]);
    }

    #[test]
    fn most_processes_have_none() {
        assert_eq!(ranges(std::process::id()).unwrap(), []);
    }
}
