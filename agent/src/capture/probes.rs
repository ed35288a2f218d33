//! The instructions to probe in a file: its allocator families, each function
//! with the place that the kernel can probe safely and cheaply.

use agent_ebpf::abi::heap::FunctionKind;

use super::{
    allocators::{self, Discovery, Family},
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
    for function in &family.functions {
        let code = allocators::body(elf, function);
        let rows = call_frames.rows(function.address, function.size);
        let wants_return = function.kind != FunctionKind::Free;
        match probe_point::choose(code, function.address, &rows, wants_return, function.kind) {
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
                    offset: function.file_offset + point.offset,
                    stepped: !point.emulated(),
                });
                // A return probe in the wrong place kills the target: asked
                // again, apart from how the place was chosen.
                if wants_return
                    && !probe_point::return_probe_allowed(
                        code,
                        function.address,
                        &rows,
                        point.offset,
                    )
                {
                    why_not.get_or_insert_with(|| {
                        format!("{}: its return cannot be probed safely", function.name)
                    });
                }
            }
            Err(refusal) => {
                why_not.get_or_insert_with(|| format!("{}: {refusal}", function.name));
            }
        }
    }
    FamilyProbes {
        kind: family.kind,
        functions,
        uncovered: family.uncovered,
        why_not,
    }
}
