//! Which byte of a function the breakpoint goes on.
//!
//! The kernel emulates a few instructions and must single-step the rest; in a
//! virtual machine a stepped one costs ten times as much. So the first
//! instruction near the entry that can be emulated is taken, as long as the
//! arguments are still where the caller left them.
//!
//! Where a call begins, its stack is unwound and its return address
//! remembered, so there the stack pointer must still point at the return
//! address.

mod walk;

use agent_ebpf::abi::heap::FunctionKind;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind,
    Register,
};

use self::walk::Walk;
pub use crate::elf::frames::{Cfa, CfaRow};

/// Where to put a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbePoint {
    /// Bytes from the function's first byte.
    pub offset: u64,
    /// Why the kernel must single-step the instruction there; `None` when it
    /// emulates it.
    pub stepped_because: Option<&'static str>,
    /// Which registers hold the first three arguments there, by the numbers
    /// that x86-64 gives them (`rax` 0 to `r15` 15). Some functions, mimalloc's
    /// above all, move them before the first instruction that can be emulated.
    pub arguments: [u8; 3],
}

/// `rdi`, `rsi`, `rdx`: where the System V ABI passes the first three
/// arguments.
pub const IN_PLACE: [u8; 3] = [7, 6, 2];

impl ProbePoint {
    /// Whether the kernel emulates the probed instruction.
    pub const fn emulated(&self) -> bool {
        self.stepped_because.is_none()
    }
}

/// Why a function cannot be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No bytes, or none that are an instruction.
    #[error("its first instruction cannot be read")]
    NoCode,
    /// Not entered by a call, or described wrongly.
    #[error(
        "its call frame information says that it is not entered like a function, so that its callers cannot be told"
    )]
    StrangeEntry,
}

/// How far from the entry a place is looked for.
const MAX_INSTRUCTIONS: usize = 24;

/// Chooses the place in the function whose bytes are `code`, linked at
/// `address`. `rows` are its call frame rows; without any, only the entry is
/// ever chosen. `taken` are addresses that have a probe of another kind.
pub fn choose(
    code: &[u8],
    address: u64,
    rows: &[CfaRow],
    kind: FunctionKind,
    taken: &[u64],
) -> Result<ProbePoint, Refusal> {
    let body = Body::of(code, address).ok_or(Refusal::NoCode)?;
    let needs_caller = kind != FunctionKind::Free;
    if needs_caller && !body.entry_is_a_call(rows) {
        return Err(Refusal::StrangeEntry);
    }
    let mut walk = Walk::new(kind);
    let mut fallback = None;
    for instruction in body.instructions().take(MAX_INSTRUCTIONS) {
        let offset = instruction.ip().wrapping_sub(address);
        let allowed = offset == 0
            || if needs_caller {
                body.caller_on_top(rows, offset)
            } else {
                body.entry_allowed(rows, offset)
            };
        let free = !taken.contains(&instruction.ip());
        if allowed && free && is_emulated(body.bytes(&instruction)) {
            let point = ProbePoint {
                offset,
                stepped_because: None,
                arguments: walk.arguments(),
            };
            // Behind the check, calls with a null pointer cost nothing.
            if !walk.is_null_check(&instruction) {
                return Ok(point);
            }
            fallback.get_or_insert(point);
        }
        if !walk.pass(&instruction) {
            break;
        }
    }
    let entry = ProbePoint {
        offset: 0,
        stepped_because: Some("no instruction near the entry can be emulated"),
        arguments: IN_PLACE,
    };
    Ok(fallback.unwrap_or(entry))
}

/// A function's code.
struct Body<'code> {
    code: &'code [u8],
    address: u64,
    /// Direct branches of the function into itself.
    targets: Vec<u64>,
    /// Every byte was decoded, so that no branch went unseen.
    whole: bool,
}

impl<'code> Body<'code> {
    fn of(code: &'code [u8], address: u64) -> Option<Self> {
        let mut body = Self {
            code,
            address,
            targets: Vec::new(),
            whole: true,
        };
        if body.instructions().next()?.is_invalid() {
            return None;
        }
        let mut targets = Vec::new();
        let mut whole = true;
        for instruction in body.instructions() {
            whole &= !instruction.is_invalid();
            let target = (instruction.op0_kind() == OpKind::NearBranch64)
                .then(|| instruction.near_branch_target().wrapping_sub(address));
            targets.extend(target.filter(|target| *target < code.len() as u64));
        }
        targets.sort_unstable();
        (body.targets, body.whole) = (targets, whole);
        Some(body)
    }

    fn instructions(&self) -> impl Iterator<Item = Instruction> + use<'code> {
        let mut decoder = Decoder::with_ip(64, self.code, self.address, DecoderOptions::NONE);
        std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
    }

    fn bytes(&self, instruction: &Instruction) -> &'code [u8] {
        let start = instruction.ip().wrapping_sub(self.address) as usize;
        self.code
            .get(start..start.saturating_add(instruction.len()))
            .unwrap_or_default()
    }

    fn cfa(&self, rows: &[CfaRow], offset: u64) -> Option<Cfa> {
        let pc = self.address.checked_add(offset)?;
        let after = rows.partition_point(|row| row.pc <= pc);
        rows.get(after.checked_sub(1)?).map(|row| row.cfa)
    }

    /// The System V ABI puts the return address under the stack pointer at
    /// every function's entry; only contrary information forbids the entry.
    fn entry_is_a_call(&self, rows: &[CfaRow]) -> bool {
        self.cfa(rows, 0).is_none_or(|cfa| cfa == Cfa::RspPlus(8))
    }

    fn no_branch_to(&self, offset: u64) -> bool {
        self.whole && self.targets.binary_search(&offset).is_err()
    }

    fn entry_allowed(&self, rows: &[CfaRow], offset: u64) -> bool {
        self.no_branch_to(offset) && matches!(self.cfa(rows, offset), Some(Cfa::RspPlus(_)))
    }

    /// Whether every call passes the place exactly once, with the stack pointer
    /// still at the return address.
    fn caller_on_top(&self, rows: &[CfaRow], offset: u64) -> bool {
        if offset == 0 {
            return true;
        }
        if !self.no_branch_to(offset) {
            return false;
        }
        let mut factory = InstructionInfoFactory::new();
        for instruction in self.instructions() {
            let here = instruction.ip().wrapping_sub(self.address);
            // The rows could be wrong, the instructions could be odd: both
            // must agree that the stack pointer has not moved.
            if here > offset || self.cfa(rows, here) != Some(Cfa::RspPlus(8)) {
                return false;
            }
            if here == offset {
                return !instruction.is_invalid();
            }
            let moves_stack =
                writes(&mut factory, &instruction).any(|register| register == Register::RSP);
            if moves_stack || instruction.flow_control() != FlowControl::Next {
                return false;
            }
        }
        false
    }
}

/// Registers that the instruction changes, or may change, by their full names.
fn writes<'factory>(
    factory: &'factory mut InstructionInfoFactory,
    instruction: &Instruction,
) -> impl Iterator<Item = Register> + use<'factory> {
    factory
        .info(instruction)
        .used_registers()
        .iter()
        .filter(|used| is_write(used.access()))
        .map(|used| used.register().full_register())
}

const fn is_write(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// Whether the kernel takes a probe on an instruction that it does not emulate:
/// not with a lock, nor with a segment other than `fs` and `gs`
/// (`uprobe_init_insn` and `is_prefix_bad` in `arch/x86/kernel/uprobes.c`).
pub(super) fn can_be_stepped(instruction: &Instruction) -> bool {
    let segment = instruction.segment_prefix();
    !instruction.has_lock_prefix()
        && matches!(segment, Register::None | Register::FS | Register::GS)
        && !matches!(
            instruction.flow_control(),
            FlowControl::Interrupt | FlowControl::Exception
        )
}

/// Whether the kernel emulates the instruction instead of single-stepping a
/// copy: `push` of a register, `nop`, relative `jmp`, `call` and conditional
/// jumps without an operand size prefix (`arch/x86/kernel/uprobes.c`,
/// `push_setup_xol_ops` and `branch_setup_xol_ops`). `endbr64` is none of them.
/// Nor is a `nop` of five bytes taken for one: from 6.18 on the kernel replaces
/// it by a call into a page of its own.
pub(super) fn is_emulated(instruction: &[u8]) -> bool {
    let push = matches!(instruction, [0x50..=0x57] | [0x41, 0x50..=0x57]);
    let nop = matches!(instruction, [0x90] | [0x66, 0x90]);
    let branch = matches!(
        instruction,
        [0xeb | 0x70..=0x7f, _] | [0xe8 | 0xe9, _, _, _, _] | [0x0f, 0x80..=0x8f, _, _, _, _]
    );
    push || nop || branch
}

#[cfg(test)]
mod tests;
