//! Which byte of a function the breakpoint goes on.
//!
//! The kernel emulates a few instructions and must single-step the rest; in a
//! virtual machine a stepped one costs ten times as much. So the first
//! instruction near the entry that can be emulated is taken, as long as the
//! arguments are still where the caller left them.
//!
//! A probe that also sees the return is dangerous anywhere but at a place
//! where the stack pointer points at the return address: the kernel replaces
//! the word it points at, and the target dies if that is another one (SAFE-1).
//! [`return_probe_allowed`] is the guard.

mod walk;

use agent_ebpf::abi::heap::FunctionKind;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind,
    Register,
};
use object::read::ReadRef;

use self::walk::Walk;
pub use crate::elf::frames::{Cfa, CfaRow};
use crate::elf::{Elf, frames::CallFrames};

/// Where to put a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbePoint {
    /// Bytes from the function's first byte.
    pub offset: u64,
    /// Why the kernel must single-step the instruction there; `None` when it
    /// emulates it.
    pub stepped_because: Option<&'static str>,
    /// Which registers hold the first three arguments there, by the numbers
    /// that x86-64 gives them (`rax` 0 to `r15` 15). Always [`IN_PLACE`] unless
    /// [`Arguments::Followed`] was asked for.
    pub arguments: [u8; 3],
}

/// `rdi`, `rsi`, `rdx`: where the System V ABI passes the first three
/// arguments.
pub const IN_PLACE: [u8; 3] = [7, 6, 2];

/// Where a kernel program can look for the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arguments {
    /// Only where the caller put them.
    InPlace,
    /// In whichever register [`ProbePoint::arguments`] says. Some functions,
    /// mimalloc's above all, move them before the first instruction that can
    /// be emulated.
    Followed,
}

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
        "its call frame information says that it is not entered like a function, so that its return cannot be probed safely"
    )]
    StrangeEntry,
}

/// How far from the entry a place is looked for.
const MAX_INSTRUCTIONS: usize = 24;

/// The call frame rows of a function, for [`choose`]. Empty where the file
/// says nothing about it.
pub fn cfa_rows<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    address: u64,
    size: u64,
) -> Vec<CfaRow> {
    CallFrames::of(elf).rows(address, size)
}

/// Chooses the place in the function whose bytes are `code`, linked at
/// `address`, with the arguments where the caller put them. `rows` are its call
/// frame rows; without any, only the entry is ever chosen. `wants_return` is
/// for probes that also see the return.
pub fn choose(
    code: &[u8],
    address: u64,
    rows: &[CfaRow],
    wants_return: bool,
    kind: FunctionKind,
) -> Result<ProbePoint, Refusal> {
    choose_with(code, address, rows, wants_return, kind, Arguments::InPlace)
}

/// Like [`choose`], for kernel programs that can be told where the arguments
/// are.
pub fn choose_with(
    code: &[u8],
    address: u64,
    rows: &[CfaRow],
    wants_return: bool,
    kind: FunctionKind,
    arguments: Arguments,
) -> Result<ProbePoint, Refusal> {
    let body = Body::of(code, address).ok_or(Refusal::NoCode)?;
    if wants_return && !body.entry_is_a_call(rows) {
        return Err(Refusal::StrangeEntry);
    }
    let mut walk = Walk::new(kind, wants_return, arguments);
    let mut fallback = None;
    for instruction in body.instructions().take(MAX_INSTRUCTIONS) {
        let offset = instruction.ip().wrapping_sub(address);
        let allowed = offset == 0
            || if wants_return {
                body.return_allowed(rows, offset)
            } else {
                body.entry_allowed(rows, offset)
            };
        if allowed && emulated(body.bytes(&instruction)) {
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

/// Whether a probe that sees the return may be put `offset` bytes into the
/// function: at its entry, or at an instruction that every call passes exactly
/// once with the stack pointer still at the return address.
pub fn return_probe_allowed(code: &[u8], address: u64, rows: &[CfaRow], offset: u64) -> bool {
    Body::of(code, address)
        .is_some_and(|body| body.entry_is_a_call(rows) && body.return_allowed(rows, offset))
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

    fn return_allowed(&self, rows: &[CfaRow], offset: u64) -> bool {
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

/// Whether the kernel emulates the instruction instead of single-stepping a
/// copy: `push` of a register, `nop`, relative `jmp`, `call` and conditional
/// jumps without an operand size prefix (`arch/x86/kernel/uprobes.c`,
/// `push_setup_xol_ops` and `branch_setup_xol_ops`). `endbr64` is none of them.
fn emulated(instruction: &[u8]) -> bool {
    let push = matches!(instruction, [0x50..=0x57] | [0x41, 0x50..=0x57]);
    let nop = matches!(
        instruction,
        [0x90] | [0x66, 0x90] | [0x0f, 0x1f, ..] | [0x66, 0x0f, 0x1f, ..]
    );
    let branch = matches!(
        instruction,
        [0xeb | 0x70..=0x7f, _] | [0xe8 | 0xe9, _, _, _, _] | [0x0f, 0x80..=0x8f, _, _, _, _]
    );
    push || nop || branch
}

#[cfg(test)]
mod tests;
