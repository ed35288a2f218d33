//! The instructions to probe in a file: its allocator families, each function
//! with the place that the kernel can probe safely and cheaply.

use agent_ebpf::abi::{heap::FunctionKind, result::ResultCookie};
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    allocators::{self, Discovery, Family, ResultPoint},
    probe_point,
};
use crate::{
    elf::{Loaded as Elf, frames::CallFrames},
    reader::bounded::{Label, label, list},
};

/// Families of one file: there are not so many kinds.
pub const MAX_FAMILIES: usize = 16;
/// Functions of one family.
const MAX_FUNCTIONS: usize = 4096;
/// Result points of one family: mimalloc, with most functions, has 65.
const MAX_RESULTS: usize = 4096;
/// Longest name and sentence.
const MAX_TEXT: usize = 64 << 10;

/// An allocator function with the instruction to probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionProbe {
    /// What it does with its arguments.
    #[serde(with = "kind_number")]
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

/// An instruction at which the result of a call can be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultProbe {
    /// As an offset in the file.
    pub offset: u64,
    /// What is read there and when: a [`ResultCookie`] for no target yet.
    pub reading: u64,
}

impl From<&ResultPoint> for ResultProbe {
    fn from(point: &ResultPoint) -> Self {
        let cookie = ResultCookie::new(point.answer, point.slot, point.branch, point.stepped);
        Self {
            offset: point.file_offset,
            reading: cookie.0,
        }
    }
}

/// An allocator family, ready to be probed as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyProbes {
    /// `glibc`, `jemalloc` …
    #[serde(deserialize_with = "family_kind")]
    pub kind: Label,
    /// Its functions.
    #[serde(deserialize_with = "list::<_, _, MAX_FUNCTIONS>")]
    pub functions: Vec<FunctionProbe>,
    /// Where their results can be read.
    #[serde(deserialize_with = "list::<_, _, MAX_RESULTS>")]
    pub results: Vec<ResultProbe>,
    /// Functions that deal in blocks and cannot be followed.
    #[serde(deserialize_with = "list::<_, _, MAX_FUNCTIONS>")]
    pub uncovered: Vec<String>,
    /// Why it cannot be probed.
    pub why_not: Option<String>,
}

impl FamilyProbes {
    /// Whether it keeps to the bounds, and every probe is in the file's code.
    pub fn is_sound(&self, is_code: impl Fn(u64) -> bool) -> bool {
        let mut texts = self.uncovered.iter().chain(&self.why_not);
        texts.all(|text| text.len() <= MAX_TEXT)
            && self
                .functions
                .iter()
                .all(|function| is_code(function.offset))
            && self
                .results
                .iter()
                .all(|result| is_code(result.offset) && ResultCookie(result.reading).is_sound())
    }
}

fn family_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Label, D::Error> {
    label(deserializer, &allocators::KINDS)
}

/// A function's kind as the number that the kernel programs know.
mod kind_number {
    use agent_ebpf::abi::heap::FunctionKind;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde passes it")]
    pub(super) fn serialize<S: Serializer>(kind: &FunctionKind, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(*kind as u8)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<FunctionKind, D::Error> {
        let number = u8::deserialize(from)?;
        FunctionKind::from_number(number).ok_or_else(|| D::Error::custom("an unknown function"))
    }
}

/// The allocator families of a file with the instruction to probe in each
/// function. A family is probed as a whole or not at all. One that only hands
/// over to another is none: its calls are seen there.
pub(crate) fn families(elf: &Elf<'_>, mut discovery: Discovery) -> Vec<FamilyProbes> {
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
        results: family.results.iter().map(ResultProbe::from).collect(),
        uncovered: family.uncovered,
        why_not,
    }
}
