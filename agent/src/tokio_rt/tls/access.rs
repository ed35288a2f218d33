//! Where code reads and writes its module's thread-local block.
//!
//! One sweep over a function's instructions that follows the few ways in which
//! compilers and linkers form such addresses on x86-64 (ELF Handling For
//! Thread-Local Storage, sections 3.4.6 and 4.4.6). Code behind a `ret` or
//! `jmp` goes on with what was known where a branch to it was last seen.

use std::collections::HashMap;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};
use object::{
    elf::{R_X86_64_DTPMOD64, R_X86_64_DTPOFF64, R_X86_64_TPOFF64},
    read::ReadRef,
};

use crate::elf::{self, Elf};

/// Words of the global offset table that are remembered.
const MAX_SLOTS: usize = 1 << 16;

/// Branches of one function whose knowledge is kept.
const MAX_BRANCHES: usize = 4096;

/// What the file says about addressing its thread-local block.
#[derive(Debug, Default)]
pub(super) struct Addressing {
    /// For the main executable: how far below the thread pointer its block
    /// starts.
    below: Option<i64>,
    /// Bytes of the block.
    size: i64,
    /// Words that will hold a distance from the thread pointer, and the place
    /// in the block that it leads to.
    distances: HashMap<u64, i64>,
    /// Pairs of words that `__tls_get_addr` is called with, by their first, and
    /// the place in the block.
    pairs: HashMap<u64, i64>,
    /// A word that will hold this module's id.
    pub(super) module_id_at: Option<u64>,
}

impl Addressing {
    /// Reads the relocations. `below` is given for the main executable only.
    pub(super) fn of<'data, R: ReadRef<'data>>(
        elf: &Elf<'data, R>,
        below: Option<u64>,
        size: u64,
    ) -> Self {
        let mut found = Self {
            below: below.map(|below| below as i64),
            size: size as i64,
            ..Self::default()
        };
        let mut offsets = HashMap::new();
        for relocation in elf::relocations(elf) {
            let foreign = !relocation.name.is_empty() && relocation.address.is_none();
            if foreign || offsets.len() + found.distances.len() + found.pairs.len() >= MAX_SLOTS {
                continue;
            }
            let place = relocation
                .address
                .unwrap_or(0)
                .wrapping_add(relocation.addend as u64) as i64;
            match relocation.kind {
                R_X86_64_TPOFF64 => {
                    found.distances.insert(relocation.place, place);
                }
                R_X86_64_DTPOFF64 => {
                    offsets.insert(relocation.place, place);
                }
                R_X86_64_DTPMOD64 => {
                    found.module_id_at.get_or_insert(relocation.place);
                    found.pairs.insert(relocation.place, 0);
                }
                _ => {}
            }
        }
        for (first, place) in &mut found.pairs {
            let second = first.wrapping_add(8);
            *place = offsets
                .get(&second)
                .copied()
                .or_else(|| elf::word_at(elf, second).map(|word| word as i64))
                .unwrap_or(0);
        }
        found
    }

    /// The place in the block that a distance from the thread pointer leads
    /// to, if it is one.
    fn place(&self, distance: i64) -> Option<i64> {
        let place = distance.checked_add(self.below?)?;
        (0..self.size).contains(&place).then_some(place)
    }
}

/// One access to the thread-local block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Byte offset in the block.
    pub(super) place: i64,
    /// Bytes read or written.
    pub(super) size: usize,
    /// Written, not read.
    pub(super) write: bool,
    /// The register on the other side; `None` for a constant.
    pub(super) register: Register,
}

/// What a register is known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// The thread pointer.
    ThreadPointer,
    /// The distance from the thread pointer to this place in the block.
    Distance(i64),
    /// The address of this place in the block.
    Address(i64),
    /// The address of the words that `__tls_get_addr` is called with.
    Pair(u64),
}

/// All accesses of a function, in order.
pub(super) fn accesses<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    addressing: &Addressing,
    code: &[u8],
    address: u64,
) -> Vec<Access> {
    let mut sweep = Sweep {
        elf,
        addressing,
        known: HashMap::new(),
        branches: HashMap::new(),
        factory: InstructionInfoFactory::new(),
        found: Vec::new(),
    };
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        sweep.step(&instruction);
    }
    sweep.found
}

struct Sweep<'a, 'data, R: ReadRef<'data>> {
    elf: &'a Elf<'data, R>,
    addressing: &'a Addressing,
    known: HashMap<Register, Value>,
    /// What was known at the branches to a later instruction.
    branches: HashMap<u64, HashMap<Register, Value>>,
    factory: InstructionInfoFactory,
    found: Vec<Access>,
}

impl<'data, R: ReadRef<'data>> Sweep<'_, 'data, R> {
    fn step(&mut self, instruction: &Instruction) {
        let flow = instruction.flow_control();
        if matches!(flow, FlowControl::Call | FlowControl::IndirectCall) {
            return self.call();
        }
        let forward = instruction.op0_kind() == OpKind::NearBranch64
            && instruction.near_branch_target() > instruction.ip();
        if forward && self.branches.len() < MAX_BRANCHES {
            self.branches
                .insert(instruction.near_branch_target(), self.known.clone());
        }
        if matches!(
            flow,
            FlowControl::Return
                | FlowControl::UnconditionalBranch
                | FlowControl::IndirectBranch
                | FlowControl::Exception
        ) {
            self.known = self
                .branches
                .remove(&instruction.next_ip())
                .unwrap_or_default();
            return;
        }
        let result = self.result(instruction);
        if result.is_none() && instruction.mnemonic() != Mnemonic::Lea {
            self.note(instruction);
        }
        let written: Vec<Register> = self
            .factory
            .info(instruction)
            .used_registers()
            .iter()
            .filter(|used| {
                !matches!(
                    used.access(),
                    OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
                )
            })
            .map(|used| used.register().full_register())
            .collect();
        for register in written {
            self.known.remove(&register);
        }
        if let Some(value) = result {
            self.known
                .insert(instruction.op0_register().full_register(), value);
        }
    }

    fn call(&mut self) {
        let pair = self.known.get(&Register::RDI).copied();
        for register in [
            Register::RAX,
            Register::RCX,
            Register::RDX,
            Register::RSI,
            Register::RDI,
            Register::R8,
            Register::R9,
            Register::R10,
            Register::R11,
        ] {
            self.known.remove(&register);
        }
        if let Some(Value::Pair(first)) = pair
            && let Some(place) = self.addressing.pairs.get(&first)
        {
            self.known.insert(Register::RAX, Value::Address(*place));
        }
    }

    fn value(&self, register: Register) -> Option<Value> {
        self.known.get(&register.full_register()).copied()
    }

    /// What the instruction leaves in its first operand, if that is of
    /// interest here.
    fn result(&self, instruction: &Instruction) -> Option<Value> {
        if instruction.op0_kind() != OpKind::Register {
            return None;
        }
        match instruction.mnemonic() {
            Mnemonic::Mov => self.moved(instruction),
            Mnemonic::Lea if instruction.memory_base() == Register::RIP => {
                let first = instruction.memory_displacement64();
                self.addressing
                    .pairs
                    .contains_key(&first)
                    .then_some(Value::Pair(first))
            }
            Mnemonic::Lea => self.addressed(instruction).map(Value::Address),
            Mnemonic::Add => {
                let left = self.value(instruction.op0_register())?;
                if instruction.op1_kind() != OpKind::Register {
                    return self.shifted(left, constant(instruction)?);
                }
                match (left, self.value(instruction.op1_register())?) {
                    (Value::ThreadPointer, Value::Distance(place))
                    | (Value::Distance(place), Value::ThreadPointer) => Some(Value::Address(place)),
                    _ => None,
                }
            }
            Mnemonic::Sub => self.shifted(
                self.value(instruction.op0_register())?,
                constant(instruction)?.checked_neg()?,
            ),
            _ => None,
        }
    }

    fn shifted(&self, value: Value, by: i64) -> Option<Value> {
        Some(match value {
            Value::Address(place) => Value::Address(place.checked_add(by)?),
            Value::Distance(place) => Value::Distance(place.checked_add(by)?),
            Value::ThreadPointer => Value::Address(by.checked_add(self.addressing.below?)?),
            Value::Pair(_) => return None,
        })
    }

    fn moved(&self, instruction: &Instruction) -> Option<Value> {
        match instruction.op1_kind() {
            OpKind::Register => self
                .value(instruction.op1_register())
                .filter(|_| instruction.op0_register().size() == 8),
            OpKind::Immediate32to64 | OpKind::Immediate64 => self
                .addressing
                .place(instruction.immediate(1) as i64)
                .map(Value::Distance),
            OpKind::Memory if instruction.op0_register().size() == 8 => {
                let plain = instruction.memory_index() == Register::None;
                if instruction.segment_prefix() == Register::FS {
                    let at_zero = plain
                        && instruction.memory_base() == Register::None
                        && instruction.memory_displacement64() == 0;
                    return at_zero.then_some(Value::ThreadPointer);
                }
                if instruction.memory_base() != Register::RIP {
                    return None;
                }
                let word = instruction.memory_displacement64();
                let known = self.addressing.distances.get(&word).copied();
                // Without a relocation the linker has filled the word in.
                known
                    .or_else(|| self.addressing.place(elf::word_at(self.elf, word)? as i64))
                    .map(Value::Distance)
            }
            _ => None,
        }
    }

    /// The place in the block that the memory operand addresses.
    fn addressed(&self, instruction: &Instruction) -> Option<i64> {
        let displacement = instruction.memory_displacement64() as i64;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if instruction.segment_prefix() == Register::FS {
            return match (base, index) {
                (Register::None, Register::None) => self.addressing.place(displacement),
                (register, Register::None) | (Register::None, register) => {
                    match self.value(register)? {
                        Value::Distance(place) => place.checked_add(displacement),
                        _ => None,
                    }
                }
                _ => None,
            };
        }
        if base == Register::None || base == Register::RIP {
            return None;
        }
        match (self.value(base)?, index) {
            (Value::Address(place), Register::None) => place.checked_add(displacement),
            (Value::ThreadPointer, Register::None) => self.addressing.place(displacement),
            (Value::ThreadPointer, index) => match self.value(index)? {
                Value::Distance(place) if instruction.memory_index_scale() == 1 => {
                    place.checked_add(displacement)
                }
                _ => None,
            },
            (Value::Distance(place), index)
                if self.value(index) == Some(Value::ThreadPointer)
                    && instruction.memory_index_scale() == 1 =>
            {
                place.checked_add(displacement)
            }
            _ => None,
        }
    }

    /// Records the instruction if it accesses the block.
    fn note(&mut self, instruction: &Instruction) {
        let Some(operand) = (0..instruction.op_count().min(2))
            .find(|operand| instruction.op_kind(*operand) == OpKind::Memory)
        else {
            return;
        };
        let Some(place) = self.addressed(instruction) else {
            return;
        };
        let access = self.factory.info(instruction).op_access(operand);
        let other = 1 - operand;
        let has_other =
            other < instruction.op_count() && instruction.op_kind(other) == OpKind::Register;
        let register = if has_other {
            instruction.op_register(other).full_register()
        } else {
            Register::None
        };
        let size = instruction.memory_size().size();
        let reads = matches!(access, OpAccess::Read | OpAccess::ReadWrite);
        let writes = matches!(access, OpAccess::Write | OpAccess::ReadWrite);
        self.found.extend(reads.then_some(Access {
            place,
            size,
            write: false,
            register,
        }));
        self.found.extend(writes.then_some(Access {
            place,
            size,
            write: true,
            register,
        }));
    }
}

fn constant(instruction: &Instruction) -> Option<i64> {
    match instruction.op1_kind() {
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => Some(instruction.immediate(1) as i64),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
