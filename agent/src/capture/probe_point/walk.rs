//! What stays true on the straight way from a function's entry to the probed
//! instruction.

use agent_ebpf::abi::heap::FunctionKind;
use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, Register};

use super::{IN_PLACE, is_write};

/// The way from the entry to the probed instruction.
pub(super) struct Walk {
    factory: InstructionInfoFactory,
    /// For each argument that the kernel program reads, the registers that
    /// hold it.
    holders: Vec<Vec<Register>>,
    frees: bool,
    /// The flags tell whether the first argument is null.
    flags_of_first: bool,
}

impl Walk {
    pub(super) fn new(kind: FunctionKind) -> Self {
        Self {
            factory: InstructionInfoFactory::new(),
            holders: arguments_of(kind)
                .iter()
                .map(|register| vec![*register])
                .collect(),
            frees: kind == FunctionKind::Free,
            flags_of_first: false,
        }
    }

    /// Numbers of the registers that hold the arguments; the ABI's where they
    /// still do, and for those that are not read.
    pub(super) fn arguments(&self) -> [u8; 3] {
        let mut numbers = IN_PLACE;
        for (number, holders) in numbers.iter_mut().zip(&self.holders) {
            if !holders
                .iter()
                .any(|register| register.number() == usize::from(*number))
            {
                *number = holders
                    .first()
                    .map_or(*number, |register| register.number() as u8);
            }
        }
        numbers
    }

    /// Whether this branch leaves the function's way for a null pointer. Only
    /// freeing functions have one that needs no probe.
    pub(super) fn is_null_check(&self, instruction: &Instruction) -> bool {
        self.frees
            && self.flags_of_first
            && matches!(instruction.code(), Code::Je_rel8_64 | Code::Je_rel32_64)
    }

    /// Whether everything that the probe needs is still there behind this
    /// instruction.
    pub(super) fn pass(&mut self, instruction: &Instruction) -> bool {
        if self.is_null_check(instruction) {
            return true;
        }
        if instruction.is_invalid()
            || instruction.flow_control() != FlowControl::Next
            || instruction.has_lock_prefix()
        {
            return false;
        }
        let info = self.factory.info(instruction);
        for memory in info.used_memory() {
            // What lies behind an argument may be gone or locked: the block may
            // already change hands.
            let through_argument = [memory.base(), memory.index()].iter().any(|register| {
                self.holders
                    .iter()
                    .flatten()
                    .any(|holder| *holder == register.full_register())
            });
            if through_argument || (is_write(memory.access()) && memory.base() != Register::RSP) {
                return false;
            }
        }
        if instruction.rflags_modified() != 0 {
            self.flags_of_first = self
                .holders
                .first()
                .is_some_and(|first| tests_one_of(first, instruction));
        }
        let written: Vec<Register> = info
            .used_registers()
            .iter()
            .filter(|used| is_write(used.access()))
            .map(|used| used.register().full_register())
            .collect();
        if !self.frees && written.contains(&Register::RSP) {
            return false;
        }
        let copied = (instruction.code() == Code::Mov_r64_rm64
            || instruction.code() == Code::Mov_rm64_r64)
            .then(|| (instruction.op1_register(), instruction.op0_register()));
        for holders in &mut self.holders {
            let copy = copied.filter(|(from, _)| holders.contains(from));
            holders.retain(|holder| !written.contains(holder));
            holders.extend(copy.map(|(_, to)| to).filter(|to| to.is_gpr64()));
            if holders.is_empty() {
                return false;
            }
        }
        true
    }
}

/// `test reg, reg` or `cmp reg, 0` of one of these registers.
fn tests_one_of(registers: &[Register], instruction: &Instruction) -> bool {
    let tested = match instruction.code() {
        Code::Test_rm64_r64 => instruction.op0_register() == instruction.op1_register(),
        Code::Cmp_rm64_imm8 | Code::Cmp_rm64_imm32 => instruction.immediate(1) == 0,
        _ => false,
    };
    tested && registers.contains(&instruction.op0_register())
}

/// The registers that the kernel program reads for a function of this kind
/// (System V ABI for x86-64, section 3.2.3).
const fn arguments_of(kind: FunctionKind) -> &'static [Register] {
    match kind {
        FunctionKind::Malloc | FunctionKind::MallocAligned | FunctionKind::Free => &[Register::RDI],
        FunctionKind::Calloc
        | FunctionKind::CallocAligned
        | FunctionKind::Realloc
        | FunctionKind::ReallocAligned
        | FunctionKind::AlignedAlloc => &[Register::RDI, Register::RSI],
        FunctionKind::Reallocarray | FunctionKind::PosixMemalign => {
            &[Register::RDI, Register::RSI, Register::RDX]
        }
    }
}
