//! Where a call's result and return address are, followed backwards through
//! the code.

use agent_ebpf::abi::result::{Answer, Slot};
use iced_x86::{Code, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register, UsedMemory};

use super::graph::Exit;

/// A register, by the number that x86-64 gives it, and a distance from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    base: u8,
    distance: i64,
}

const RAX: u8 = 0;
const RSP: u8 = 4;
const RBP: u8 = 5;
const RDI: u8 = 7;
/// rbx, rbp and r12 to r15.
const PRESERVED: u16 = 1 << 3 | 1 << RBP | 0xf000;

/// What a call will return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Result {
    /// This address.
    Is(Place),
    /// The word on the stack at this address.
    Saved(Place),
    Null,
    HandedOver,
    Unknown,
}

/// In front of one instruction: the call's result, and the address of the
/// return address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    result: Result,
    slot: Place,
}

impl State {
    /// In front of an instruction that leaves the function.
    pub(super) fn at(exit: Exit) -> Self {
        let here = |base| Place { base, distance: 0 };
        Self {
            result: match exit {
                Exit::Return => Result::Is(here(RAX)),
                Exit::GivesBack => Result::Is(here(RDI)),
                Exit::HandOver => Result::HandedOver,
                Exit::Unknown => Result::Unknown,
            },
            slot: here(RSP),
        }
    }

    /// The state in front of the instruction that leads to this one, if there
    /// is one.
    pub(super) fn before(self, instruction: &Instruction) -> Option<Self> {
        let changes = Changes::of(instruction);
        Some(Self {
            result: match self.result {
                Result::Is(place) => changes.result(place)?,
                // What lies in memory stays there only if nothing is stored.
                Result::Saved(_) if changes.stores => return None,
                Result::Saved(place) => Result::Saved(changes.through(place)?),
                other => other,
            },
            slot: changes.through(self.slot)?,
        })
    }

    /// As [`Self::before`], for a call of a function that returns its first
    /// argument and leaves the registers alone that the System V ABI for
    /// x86-64 (section 3.2.1) has functions preserve.
    pub(super) fn before_giving_back(self) -> Option<Self> {
        let earlier = match self.result {
            Result::Is(place) if place.base == RAX => Result::Is(Place { base: RDI, ..place }),
            Result::Is(place) if PRESERVED & 1 << place.base != 0 => self.result,
            Result::Null => Result::Null,
            _ => return None,
        };
        Some(Self {
            result: earlier,
            ..self
        })
    }

    /// Whether the call is known to return nothing.
    pub(super) fn is_failure(self) -> bool {
        self.result == Result::Null
    }

    /// For the kernel program; `None` when that cannot be told it.
    pub(super) fn answer(self) -> Option<Answer> {
        Some(match self.result {
            Result::Is(place) => Answer::Register {
                register: place.base,
                add: i16::try_from(place.distance).ok().filter(Answer::fits)?,
            },
            Result::Saved(place) => Answer::Memory {
                register: place.base,
                add: i16::try_from(place.distance).ok().filter(Answer::fits)?,
            },
            Result::Null => Answer::Null,
            Result::HandedOver => Answer::HandedOver,
            Result::Unknown => Answer::Unknown,
        })
    }

    /// As [`Self::answer`].
    pub(super) fn slot(self) -> Option<Slot> {
        let words = i16::try_from(self.slot.distance / 8).ok()?;
        let whole = self.slot.distance % 8 == 0;
        match self.slot.base {
            RSP if whole => Some(Slot::FromRsp(words)),
            RBP if whole => Some(Slot::FromRbp(words)),
            _ => None,
        }
    }
}

/// What one instruction does to registers and memory.
struct Changes<'code> {
    instruction: &'code Instruction,
    /// Registers that it writes or may write, by number.
    written: u16,
    /// It stores to memory.
    stores: bool,
}

impl<'code> Changes<'code> {
    fn of(instruction: &'code Instruction) -> Self {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(instruction);
        let written = info
            .used_registers()
            .iter()
            .filter(|used| is_write(used.access()))
            .map(|used| used.register().full_register())
            .filter(|register| register.is_gpr64())
            .fold(0, |set, register| set | 1 << register.number());
        Self {
            written,
            stores: info
                .used_memory()
                .iter()
                .any(|memory: &UsedMemory| is_write(memory.access())),
            instruction,
        }
    }

    fn writes(&self, register: u8) -> bool {
        self.written & 1 << register != 0
    }

    /// The place, by what the registers were before.
    fn through(&self, place: Place) -> Option<Place> {
        if !self.writes(place.base) {
            return Some(place);
        }
        let (base, distance) = self.origin(place.base)?;
        Some(Place {
            base,
            distance: place.distance.checked_add(distance)?,
        })
    }

    /// As [`Self::through`], for a result.
    fn result(&self, place: Place) -> Option<Result> {
        if let Some(earlier) = self.through(place) {
            return Some(Result::Is(earlier));
        }
        let instruction = self.instruction;
        let target = number(instruction.op0_register().full_register())?;
        if target != place.base || place.distance != 0 {
            return None;
        }
        match instruction.code() {
            Code::Xor_r32_rm32 | Code::Xor_rm32_r32 | Code::Xor_r64_rm64 | Code::Xor_rm64_r64
                if instruction.op1_kind() == OpKind::Register
                    && instruction.op0_register() == instruction.op1_register() =>
            {
                Some(Result::Null)
            }
            Code::Mov_r32_imm32 if instruction.immediate32() == 0 => Some(Result::Null),
            // Only the stack is surely nobody else's.
            Code::Mov_r64_rm64 if instruction.op1_kind() == OpKind::Memory => {
                let base = number(instruction.memory_base())?;
                let plain = instruction.memory_index() == Register::None
                    && instruction.segment_prefix() == Register::None
                    && matches!(base, RSP | RBP);
                plain.then_some(Result::Saved(Place {
                    base,
                    distance: instruction.memory_displacement64() as i64,
                }))
            }
            _ => None,
        }
    }

    /// The register that this one's value comes from, and what is added.
    fn origin(&self, register: u8) -> Option<(u8, i64)> {
        let instruction = self.instruction;
        let explicit = instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && number(instruction.op0_register()) == Some(register);
        match instruction.code() {
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64
                if explicit && instruction.op1_kind() == OpKind::Register =>
            {
                Some((number(instruction.op1_register())?, 0))
            }
            Code::Lea_r64_m
                if explicit
                    && instruction.memory_index() == Register::None
                    && instruction.memory_base() != Register::RIP =>
            {
                let base = number(instruction.memory_base())?;
                Some((base, instruction.memory_displacement64() as i64))
            }
            Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_RAX_imm32 if explicit => {
                Some((register, instruction.immediate(1) as i64))
            }
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_RAX_imm32 if explicit => {
                Some((register, (instruction.immediate(1) as i64).checked_neg()?))
            }
            Code::Pop_r64 | Code::Pop_rm64 if register == RSP && !explicit => Some((RSP, 8)),
            Code::Push_r64 | Code::Push_rm64 if register == RSP => Some((RSP, -8)),
            Code::Leaveq if register == RSP => Some((RBP, 8)),
            _ => None,
        }
    }
}

const fn is_write(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// A general register's number.
fn number(register: Register) -> Option<u8> {
    register.is_gpr64().then(|| register.number() as u8)
}
