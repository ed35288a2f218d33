//! Which memory of a process page faults made resident.

use std::collections::{HashMap, HashSet};

use crate::{
    analysis::{FaultStack, Region, Residence},
    capture::{address_space::AddressSpace, faults::Faults},
    host::{
        arguments,
        mapping::{self, Mapping},
        memory::Memory,
        process::Process,
    },
    ledger::StackId,
};

/// Allocators take memory in pieces of about this size.
const GRANULE_SHIFT: u32 = 20;
/// Pieces that are remembered: 64 GiB.
const MAX_GRANULES: usize = 65_536;
/// Stacks with most faults that are looked at.
const MAX_STACKS: usize = 64;

/// Page faults of a process since its observation began, and where followed
/// allocators were seen to hand out blocks.
#[derive(Debug, Default)]
pub(super) struct Growth {
    before: HashMap<u64, u64>,
    now: Vec<Faults>,
    owned: HashSet<u64>,
}

impl Growth {
    /// What was counted so far is no part of the observation.
    pub(super) fn begin_again(&mut self) {
        self.before = self
            .now
            .drain(..)
            .map(|faults| (faults.stack, faults.recorded))
            .collect();
        self.owned.clear();
    }

    /// Takes the counters as they stand.
    pub(super) fn faults(&mut self, faults: Vec<Faults>) {
        self.now = faults;
    }

    /// Notes that an allocator hands out blocks at an address.
    pub(super) fn block(&mut self, address: u64) {
        if self.owned.len() < MAX_GRANULES {
            self.owned.insert(address >> GRANULE_SHIFT);
        }
    }

    /// The stacks with most faults.
    fn largest(&self) -> Vec<Faults> {
        let mut faults: Vec<Faults> = self
            .now
            .iter()
            .filter_map(|faults| {
                let before = self.before.get(&faults.stack).copied().unwrap_or(0);
                let recorded = faults.recorded.saturating_sub(before);
                (recorded > 0).then_some(Faults {
                    recorded,
                    ..*faults
                })
            })
            .collect();
        faults.sort_by_key(|faults| std::cmp::Reverse(faults.recorded));
        faults.truncate(MAX_STACKS);
        faults
    }

    /// What analysis needs to know of them.
    /// `known`: memory in which no block was seen belongs to no allocator.
    pub(super) fn residence(
        &self,
        process: &Process,
        space: &AddressSpace,
        known: bool,
    ) -> Residence {
        let faults = self.largest();
        if faults.is_empty() {
            return Residence::default();
        }
        let runtime = runtime(space);
        let mappings = if process.is_running() {
            mapping::of(process.pid).unwrap_or_default()
        } else {
            Vec::new()
        };
        let runtime_limit = match (runtime, Memory::open(process.pid)) {
            (Some(_), Ok(memory)) => heap_limit(&arguments::of(process.pid, &memory, &mappings)),
            _ => None,
        };
        Residence {
            stacks: faults
                .into_iter()
                .map(|faults| FaultStack {
                    stack: StackId(faults.stack),
                    recorded: faults.recorded,
                    region: match self.region(faults.address, &mappings) {
                        Region::Anonymous if !known => Region::Unknown,
                        region => region,
                    },
                })
                .collect(),
            runtime,
            runtime_limit,
        }
    }

    fn region(&self, address: u64, mappings: &[Mapping]) -> Region {
        if self.owned.contains(&(address >> GRANULE_SHIFT)) {
            return Region::Allocator;
        }
        let index = mappings.partition_point(|mapping| mapping.end <= address);
        match mappings
            .get(index)
            .filter(|mapping| mapping.start <= address)
        {
            Some(mapping) if mapping.path == b"[heap]" => Region::Allocator,
            Some(mapping) if mapping.inode == 0 && !mapping.path.starts_with(b"[stack") => {
                Region::Anonymous
            }
            Some(_) => Region::Other,
            None => Region::Unknown,
        }
    }
}

/// The language runtime whose code is mapped.
fn runtime(space: &AddressSpace) -> Option<&'static str> {
    let name_of = |name: &str| -> Option<&'static str> {
        match name {
            "libjvm.so" => Some("the Java virtual machine"),
            "node" | "nodejs" | "libnode.so" => Some("Node's V8"),
            "libcoreclr.so" => Some("the .NET runtime"),
            _ if name.starts_with("libnode.so.") => Some("Node's V8"),
            _ if name.starts_with("libpython") || name.starts_with("python") => Some("Python"),
            _ => None,
        }
    };
    space.code.iter().find_map(|code| {
        let path = &code.mapping.path;
        let name = path.rsplit(|byte| *byte == b'/').next()?;
        name_of(std::str::from_utf8(name).ok()?)
    })
}

/// The limit of the heap that a runtime was given on its command line: Java's
/// `-Xmx`, V8's `--max-old-space-size` (in MiB).
fn heap_limit(arguments: &[Vec<u8>]) -> Option<u64> {
    arguments.iter().find_map(|argument| {
        let text = std::str::from_utf8(argument).ok()?;
        if let Some(mebibytes) = text.strip_prefix("--max-old-space-size=") {
            return mebibytes.parse::<u64>().ok()?.checked_mul(1 << 20);
        }
        let size = text.strip_prefix("-Xmx")?;
        let digits = size.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let unit: u64 = match size.get(digits.len()..)?.to_ascii_lowercase().as_str() {
            "" => 1,
            "k" => 1 << 10,
            "m" => 1 << 20,
            "g" => 1 << 30,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_heap_limits() {
        let of = |text: &str| heap_limit(&[b"java".to_vec(), text.as_bytes().to_vec()]);
        assert_eq!(of("-Xmx512m"), Some(512 << 20));
        assert_eq!(of("-Xmx2G"), Some(2 << 30));
        assert_eq!(of("--max-old-space-size=256"), Some(256 << 20));
        for other in ["-Xmx", "-Xmxm", "-Xmx99999999999999999999g", "-Xms1g"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn counts_from_the_beginning_of_the_observation() {
        let faults = |recorded| Faults {
            stack: 7,
            recorded,
            address: 0x5000_0000,
        };
        let mut growth = Growth::default();
        growth.faults(vec![faults(10)]);
        growth.begin_again();
        growth.faults(vec![faults(25)]);
        assert_eq!(growth.largest(), [faults(15)]);
        growth.block(0x5000_1000);
        assert_eq!(growth.region(0x5000_0000, &[]), Region::Allocator);
        assert_eq!(growth.region(0x7000_0000, &[]), Region::Unknown);
    }
}
