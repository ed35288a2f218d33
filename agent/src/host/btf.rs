//! Field offsets of kernel structures, from the kernel's own type information.
//!
//! Format: Documentation/bpf/btf.rst of the kernel. Only what leads to a
//! member's offset is read.

use anyhow::{Context as _, Result, bail, ensure};

/// Where the running kernel shows its type information.
pub const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// typedef, volatile, const, restrict, type tag: names for another type.
const KIND_ALIASES: [u32; 5] = [8, 9, 10, 11, 18];
/// Typedefs and anonymous members nest a few levels deep.
const MAX_DEPTH: usize = 16;

/// Parsed type information.
pub struct Btf {
    data: Vec<u8>,
    /// Offset of each type's record; type ids start at 1.
    types: Vec<usize>,
    strings: usize,
}

impl Btf {
    /// Parses `data`; an error when it is damaged.
    pub fn parse(data: Vec<u8>) -> Result<Self> {
        let mut btf = Self {
            data,
            types: vec![0],
            strings: 0,
        };
        ensure!(btf.word(0)? & 0xffff == 0xeb9f, "no BTF");
        let header = btf.word(4)? as usize;
        let (types, types_len, strings) = (
            btf.word(8)? as usize,
            btf.word(12)? as usize,
            btf.word(16)? as usize,
        );
        btf.strings = header + strings;
        let mut at = header + types;
        let end = (at + types_len).min(btf.data.len());
        while at < end {
            btf.types.push(at);
            let info = btf.word(at + 4)?;
            let count = (info & 0xffff) as usize;
            at += 12
                + match kind(info) {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    4 | 5 | 15 | 19 => count * 12,
                    6 | 13 => count * 8,
                    _ => 0,
                };
        }
        Ok(btf)
    }

    /// Byte offset of a member; `path` is dotted: `"thread.fsbase"`.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u64> {
        let mut id = self
            .find(structure)
            .with_context(|| format!("kernel has no struct {structure}"))?;
        let mut bits = 0u64;
        for name in path.split('.') {
            let (member, offset) = self
                .member(id, name, 0)?
                .with_context(|| format!("kernel's {structure} has no member {name}"))?;
            bits += offset;
            id = self.resolve(member)?;
        }
        Ok(bits / 8)
    }

    fn find(&self, structure: &str) -> Option<u32> {
        (1..self.types.len() as u32).find(|id| {
            let Some(at) = self.types.get(*id as usize) else {
                return false;
            };
            let is_struct = self
                .word(at + 4)
                .is_ok_and(|info| kind(info) == KIND_STRUCT);
            is_struct
                && self
                    .name(*at)
                    .is_ok_and(|name| name == structure.as_bytes())
        })
    }

    /// Type and bit offset of a member, also of anonymous inner structures.
    fn member(&self, id: u32, name: &str, depth: usize) -> Result<Option<(u32, u64)>> {
        ensure!(depth < MAX_DEPTH, "BTF nests too deep");
        let at = self.record(id)?;
        let info = self.word(at + 4)?;
        if !matches!(kind(info), KIND_STRUCT | KIND_UNION) {
            return Ok(None);
        }
        for i in 0..(info & 0xffff) as usize {
            let member = at + 12 + i * 12;
            let offset = self.word(member + 8)?;
            // With the kind flag the upper byte is the size of a bit field.
            let offset = u64::from(if info >> 31 == 1 {
                offset & 0x00ff_ffff
            } else {
                offset
            });
            let type_id = self.word(member + 4)?;
            let found = self.name(member)?;
            if found == name.as_bytes() {
                return Ok(Some((type_id, offset)));
            }
            if found.is_empty()
                && let Some((inner, inner_offset)) =
                    self.member(self.resolve(type_id)?, name, depth + 1)?
            {
                return Ok(Some((inner, offset + inner_offset)));
            }
        }
        Ok(None)
    }

    fn resolve(&self, mut id: u32) -> Result<u32> {
        for _ in 0..MAX_DEPTH {
            let at = self.record(id)?;
            if !KIND_ALIASES.contains(&kind(self.word(at + 4)?)) {
                return Ok(id);
            }
            id = self.word(at + 8)?;
        }
        bail!("BTF nests too deep")
    }

    fn record(&self, id: u32) -> Result<usize> {
        self.types
            .get(id as usize)
            .copied()
            .context("BTF names a type that does not exist")
    }

    fn name(&self, at: usize) -> Result<&[u8]> {
        let start = self.strings + self.word(at)? as usize;
        let tail = self.data.get(start..).context("BTF string out of range")?;
        tail.split(|byte| *byte == 0)
            .next()
            .context("BTF string without end")
    }

    fn word(&self, at: usize) -> Result<u32> {
        let bytes = self.data.get(at..at + 4).context("BTF ends early")?;
        Ok(u32::from_ne_bytes(bytes.try_into()?))
    }
}

fn kind(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_members_of_the_running_kernel() {
        let Ok(data) = std::fs::read(KERNEL) else {
            println!("skipped: {KERNEL} is not readable here");
            return;
        };
        let btf = Btf::parse(data).unwrap();
        let pid = btf.offset("task_struct", "pid").unwrap();
        // The two ids stand side by side since 2.6.
        assert_eq!(btf.offset("task_struct", "tgid").unwrap(), pid + 4);
        assert!(btf.offset("task_struct", "thread.fsbase").unwrap() > 0);
        assert!(btf.offset("task_struct", "no_such_member").is_err());
    }

    proptest! {
        #[test]
        fn damaged_input_is_an_error(mut data in proptest::collection::vec(any::<u8>(), 0..400)) {
            if data.len() > 2 {
                data[0] = 0x9f;
                data[1] = 0xeb;
            }
            if let Ok(btf) = Btf::parse(data) {
                let _ = btf.offset("task_struct", "pid");
            }
        }
    }
}
