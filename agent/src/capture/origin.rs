//! Which allocator function a block came from.

use agent_ebpf::abi::heap::FunctionKind;

use super::{Capture, TargetId};

/// Where a recorded block came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The allocator's family.
    pub family: &'static str,
    /// The function takes an alignment.
    pub may_align: bool,
}

impl Capture {
    /// The allocator function that a target's stack begins with: it is the
    /// innermost frame, at the probed instruction.
    pub fn origin(&self, id: TargetId, stack: u64) -> Option<Origin> {
        let (address, _) = *self.stacks.get(&stack)?.frames.first()?;
        let code = self.targets.get(&id)?.space.find(address)?;
        let offset = address - code.mapping.start + code.mapping.offset;
        let file = code.file.as_ref().ok()?;
        file.families.iter().find_map(|family| {
            let function = family
                .functions
                .iter()
                .find(|function| function.offset == offset)?;
            Some(Origin {
                family: family.kind,
                may_align: matches!(
                    function.kind,
                    FunctionKind::AlignedAlloc
                        | FunctionKind::PosixMemalign
                        | FunctionKind::ReallocAligned
                        | FunctionKind::MallocAligned
                        | FunctionKind::CallocAligned
                ),
            })
        })
    }
}
