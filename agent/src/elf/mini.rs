//! `.gnu_debugdata`: an ELF file within an ELF file, packed by xz, with the
//! symbols that a stripped program of some distributions (Fedora and its kin)
//! keeps beside those of `.dynsym`. MiniDebugInfo in the manual of gdb.

use std::{
    io::Read as _,
    panic::{AssertUnwindSafe, catch_unwind},
};

use lzma_rust2::XzReader;
use object::read::ReadRef;

use super::Elf;

/// Largest image that is unpacked; the files of a browser have a tenth.
const MAX_IMAGE: u64 = 64 << 20;
/// Most memory that unpacking may ask for, in KiB: the dictionary of the
/// strongest preset has 64 MiB.
const MAX_MEMORY_KIB: u32 = 80 << 10;

/// Whether the file carries such symbols.
pub fn is_present<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> bool {
    super::section(elf, ".gnu_debugdata").is_some()
}

/// The image; `None` when there is none, or it is damaged or too large.
pub fn image<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Option<Vec<u8>> {
    unpack(&super::section_data(elf, ".gnu_debugdata")?)
}

fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let work = || {
        let mut image = Vec::new();
        XzReader::new_mem_limit(packed, false, MAX_MEMORY_KIB)
            .take(MAX_IMAGE + 1)
            .read_to_end(&mut image)
            .ok()?;
        (image.len() as u64 <= MAX_IMAGE).then_some(image)
    };
    // A target has chosen these bytes; a fault of the library costs the
    // symbols of one file.
    catch_unwind(AssertUnwindSafe(work)).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    /// By the tool that distributions use.
    fn packed(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut xz = Command::new("xz")
            .args(["-c", "-9"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut input = xz.stdin.take()?;
        let bytes = bytes.to_vec();
        let feeder = std::thread::spawn(move || input.write_all(&bytes));
        let output = xz.wait_with_output().ok()?.stdout;
        feeder.join().ok()?.ok()?;
        Some(output)
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let Some(bomb) = packed(&vec![0; MAX_IMAGE as usize + 1]) else {
            println!("skipped: xz is not installed");
            return;
        };
        assert!(bomb.len() < 100_000);
        assert_eq!(unpack(&bomb), None);
        let image = vec![7; 100_000];
        assert_eq!(unpack(&packed(&image).unwrap()), Some(image));
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
            if magic && bytes.len() >= 6 {
                bytes[..6].copy_from_slice(b"\xfd7zXZ\0");
            }
            let _ = unpack(&bytes);
        }
    }
}
