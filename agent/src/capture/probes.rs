//! The instructions to probe in a file: its allocator families, each function
//! with the place that the kernel can probe safely and cheaply.

use agent_ebpf::abi::heap::FunctionKind;

use super::{
    allocators::{self, Discovery, Family, ResultPoint},
    probe_point,
};
use crate::{elf::frames::CallFrames, host::module::Elf};

/// An allocator function with the instruction to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionProbe {
    /// What it does with its arguments.
    pub kind: FunctionKind,
    /// It may call another probed function.
    pub may_nest: bool,
    /// Registers of its first three arguments there, `rax` 0 to `r15` 15.
    pub arguments: [u8; 3],
    /// The probed instruction, as an offset in the file.
    pub offset: u64,
    /// The kernel must single-step it.
    pub stepped: bool,
}

/// An allocator family, ready to be probed as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyProbes {
    /// `glibc`, `jemalloc` …
    pub kind: &'static str,
    /// Its functions.
    pub functions: Vec<FunctionProbe>,
    /// Where their results can be read.
    pub results: Vec<ResultPoint>,
    /// Functions that deal in blocks and cannot be followed.
    pub uncovered: Vec<String>,
    /// Why it cannot be probed.
    pub why_not: Option<String>,
}

/// The allocator families of a file with the instruction to probe in each
/// function. A family is probed as a whole or not at all. One that only hands
/// over to another is none: its calls are seen there.
pub(super) fn families(elf: &Elf<'_>, mut discovery: Discovery) -> Vec<FamilyProbes> {
    discovery
        .families
        .retain(|family| !family.only_hands_over());
    if discovery.families.is_empty() {
        return Vec::new();
    }
    let call_frames = CallFrames::of(elf);
    discovery
        .families
        .into_iter()
        .map(|family| probes(elf, &call_frames, family))
        .collect()
}

fn probes(elf: &Elf<'_>, call_frames: &CallFrames<'_>, family: Family) -> FamilyProbes {
    let mut why_not = family.why_not;
    let mut functions = Vec::new();
    let results: Vec<u64> = family.results.iter().map(|point| point.address).collect();
    for function in &family.functions {
        let code = allocators::body(elf, function);
        let rows = call_frames.rows(function.address, function.size);
        match probe_point::choose(code, function.address, &rows, function.kind, &results) {
            Ok(point) => {
                if let Some(reason) = point.stepped_because {
                    tracing::debug!(
                        function = function.name,
                        reason,
                        "the probe is single-stepped"
                    );
                }
                functions.push(FunctionProbe {
                    kind: function.kind,
                    may_nest: function.may_nest,
                    arguments: point.arguments,
                    offset: function.file_offset + point.offset,
                    stepped: !point.emulated(),
                });
            }
            Err(refusal) => {
                why_not.get_or_insert_with(|| format!("{}: {refusal}", function.name));
            }
        }
    }
    FamilyProbes {
        kind: family.kind,
        functions,
        results: family.results,
        uncovered: family.uncovered,
        why_not,
    }
}
