//! Where the code of an allocator function leads: does it end in another
//! probed function, may it call one?

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use object::{
    elf::{
        R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_IRELATIVE, R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE,
    },
    read::ReadRef,
};

use super::{
    candidates::{Candidates, Signs},
    names::{self, Meaning},
    role,
};
use crate::elf::{self, Elf, frames::CallFrames};

/// Instructions followed from one entry.
const MAX_STEPS: usize = 4096;
/// Functions looked into below one entry, and how deep.
const MAX_FUNCTIONS: usize = 96;
const MAX_DEPTH: usize = 3;
/// Words of the global offset table that are remembered.
const MAX_SLOTS: usize = 1 << 16;
/// Bytes looked at where nothing tells how long the code is.
const MAX_RUN: u64 = 4096;

/// What a function does to blocks, as far as one call may stand for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Hands one out.
    Allocates,
    /// Moves one.
    Resizes,
    /// Takes one back.
    Frees,
}

/// Where a call or jump arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callee {
    /// A function that is or will be probed, here or in another file.
    Traced(Role),
    /// It does not come back.
    NeverReturns,
    /// It returns its first argument, and is no allocator's.
    GivesBack,
    /// Code of this file.
    Here(u64),
    /// Code of another file, or chosen when the program is loaded.
    Elsewhere,
}

/// What is known about the calls of one file.
pub(super) struct Flow<'elf, 'data, R: ReadRef<'data>> {
    pub(super) elf: &'elf Elf<'data, R>,
    frames: CallFrames<'data>,
    /// Allocator functions of this file by address.
    traced: HashMap<u64, Role>,
    /// Functions of this file that never return.
    dead_ends: HashSet<u64>,
    /// Functions of this file, or what chooses them, that return their first
    /// argument.
    givers_back: HashSet<u64>,
    /// Words through which functions are called, as far as it matters where.
    slots: HashMap<u64, Callee>,
}

/// How the paths through a function end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Every path is a tail jump to a traced function of the same role.
    TailJump,
    /// Every path passes a traced function of the same role.
    PassesOn,
    /// Some path returns by itself, or that could not be ruled out.
    Own,
}

impl<'elf, 'data, R: ReadRef<'data>> Flow<'elf, 'data, R> {
    /// Prepares the questions about one file.
    pub(super) fn of(elf: &'elf Elf<'data, R>, found: &Candidates, signs: &Signs) -> Self {
        let mut flow = Self {
            elf,
            frames: CallFrames::of(elf),
            traced: found
                .functions
                .iter()
                .map(|(address, candidate)| (*address, role(candidate.kind)))
                .collect(),
            dead_ends: signs.dead_ends.clone(),
            givers_back: signs.givers_back.clone(),
            slots: HashMap::new(),
        };
        for relocation in elf::relocations(elf) {
            if flow.slots.len() >= MAX_SLOTS {
                break;
            }
            let callee = match relocation.kind {
                R_X86_64_RELATIVE => match flow.here(relocation.addend as u64) {
                    Callee::Here(_) => continue,
                    callee => callee,
                },
                R_X86_64_JUMP_SLOT | R_X86_64_GLOB_DAT | R_X86_64_64 => {
                    let here = relocation.address.map(|address| flow.here(address));
                    match (here, names::classify(relocation.name, &signs.prefixes)) {
                        (None | Some(Callee::Here(_)), Some((_, Meaning::Probe(kind)))) => {
                            Callee::Traced(role(kind))
                        }
                        (None, _) if names::never_returns(relocation.name) => Callee::NeverReturns,
                        (None, _) if names::gives_back(relocation.name) => Callee::GivesBack,
                        _ => here.unwrap_or(Callee::Elsewhere),
                    }
                }
                R_X86_64_IRELATIVE if flow.givers_back.contains(&(relocation.addend as u64)) => {
                    Callee::GivesBack
                }
                R_X86_64_IRELATIVE => Callee::Elsewhere,
                _ => continue,
            };
            flow.slots.insert(relocation.place, callee);
        }
        flow
    }

    /// Where code that is entered at `start` ends, at the latest.
    fn end(&self, start: u64, body: &Range<u64>) -> u64 {
        if body.contains(&start) && body.end > body.start.saturating_add(1) {
            return body.end;
        }
        self.frames
            .extent(start)
            .map_or(start.saturating_add(MAX_RUN), |extent| extent.end)
    }

    /// The instructions from `start` on.
    pub(super) fn run(&self, start: u64, body: &Range<u64>) -> Decoder<'data> {
        let size = self
            .end(start, body)
            .saturating_sub(start)
            .min(super::MAX_BODY);
        Decoder::with_ip(
            64,
            elf::code_at(self.elf, start, size),
            start,
            DecoderOptions::NONE,
        )
    }

    fn here(&self, address: u64) -> Callee {
        if let Some(role) = self.traced.get(&address) {
            return Callee::Traced(*role);
        }
        if self.dead_ends.contains(&address) {
            return Callee::NeverReturns;
        }
        if self.givers_back.contains(&address) {
            return Callee::GivesBack;
        }
        Callee::Here(address)
    }

    /// What the word at `slot` leads to once the file is loaded.
    fn through(&self, slot: u64) -> Option<Callee> {
        if let Some(callee) = self.slots.get(&slot) {
            return Some(*callee);
        }
        let address = elf::word_at(self.elf, slot)?;
        (address != 0 && !elf::code_at(self.elf, address, 1).is_empty()).then(|| self.here(address))
    }

    /// Resolves a direct target, through the procedure linkage table if need
    /// be.
    fn direct(&self, address: u64) -> Callee {
        let callee = self.here(address);
        if callee != Callee::Here(address) {
            return callee;
        }
        let mut decoder = Decoder::with_ip(
            64,
            elf::code_at(self.elf, address, 24),
            address,
            DecoderOptions::NONE,
        );
        let mut instruction = decoder.decode();
        if instruction.code() == Code::Endbr64 {
            instruction = decoder.decode();
        }
        if instruction.code() == Code::Jmp_rm64 && instruction.memory_base() == Register::RIP {
            return self
                .through(instruction.memory_displacement64())
                .unwrap_or(callee);
        }
        callee
    }

    /// Where this instruction transfers control to, if it does and that can be
    /// known.
    pub(super) fn target(&self, instruction: &Instruction) -> Option<Callee> {
        if instruction.op0_kind() == OpKind::NearBranch64 {
            return Some(self.direct(instruction.near_branch_target()));
        }
        let through_word =
            instruction.op0_kind() == OpKind::Memory && instruction.memory_base() == Register::RIP;
        if through_word {
            self.through(instruction.memory_displacement64())
        } else {
            None
        }
    }

    /// How the function's paths end. A jump out of the body goes on in the
    /// same frame, so it is followed like any other.
    pub(super) fn ending(&self, entry: u64, size: u64, role: Role) -> Ending {
        let body = entry..entry.saturating_add(size.max(1));
        let mut seen = HashSet::new();
        let mut open = vec![entry];
        let (mut tail_only, mut left) = (true, MAX_STEPS);
        let mut arrived = false;
        let passes = |callee: Callee| matches!(callee, Callee::Traced(other) if other == role);
        while let Some(start) = open.pop() {
            let mut decoder = self.run(start, &body);
            while decoder.can_decode() {
                if left == 0 {
                    return Ending::Own;
                }
                left -= 1;
                let instruction = decoder.decode();
                if !seen.insert(instruction.ip()) {
                    break;
                }
                match instruction.flow_control() {
                    FlowControl::Next => {}
                    FlowControl::ConditionalBranch
                        if instruction.op0_kind() == OpKind::NearBranch64 =>
                    {
                        match self.direct(instruction.near_branch_target()) {
                            Callee::Here(target) => open.push(target),
                            Callee::NeverReturns => {}
                            callee if passes(callee) => arrived = true,
                            Callee::Traced(_) | Callee::GivesBack | Callee::Elsewhere => {
                                return Ending::Own;
                            }
                        }
                    }
                    FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
                        match self.target(&instruction) {
                            // The function itself, seen from inside, is a loop.
                            Some(Callee::Here(target)) => open.push(target),
                            Some(Callee::NeverReturns) => {}
                            Some(callee) if passes(callee) => arrived = true,
                            Some(Callee::Traced(_) | Callee::GivesBack | Callee::Elsewhere)
                            | None => {
                                return Ending::Own;
                            }
                        }
                        break;
                    }
                    FlowControl::Call | FlowControl::IndirectCall => {
                        match self.target(&instruction) {
                            Some(callee) if passes(callee) => {
                                (arrived, tail_only) = (true, false);
                                break;
                            }
                            Some(Callee::NeverReturns) => break,
                            _ => {}
                        }
                    }
                    FlowControl::Exception if instruction.code() == Code::Ud2 => break,
                    _ => return Ending::Own,
                }
            }
        }
        match (arrived, tail_only) {
            (false, _) => Ending::Own,
            (true, true) => Ending::TailJump,
            (true, false) => Ending::PassesOn,
        }
    }

    /// Whether the function may reach a traced one, in a few levels of direct
    /// calls. What it calls in other files is not known here; only traced
    /// names count.
    pub(super) fn may_nest(&self, entry: u64, size: u64) -> bool {
        let mut functions = HashSet::from([entry]);
        let mut level = vec![(entry, size)];
        for _ in 0..=MAX_DEPTH {
            let mut below = Vec::new();
            for (function, size) in level {
                if self.callees(function, size, &mut below) {
                    return true;
                }
            }
            below.retain(|callee| functions.len() < MAX_FUNCTIONS && functions.insert(*callee));
            level = below.into_iter().map(|callee| (callee, 0)).collect();
        }
        false
    }

    /// Collects the functions that this one calls; true when one of them is
    /// traced.
    fn callees(&self, entry: u64, size: u64, found: &mut Vec<u64>) -> bool {
        let body = entry..entry.saturating_add(size.max(1));
        let mut seen = HashSet::new();
        let mut open = vec![entry];
        let mut left = MAX_STEPS;
        while let Some(start) = open.pop() {
            let mut decoder = self.run(start, &body);
            while decoder.can_decode() && left > 0 {
                left -= 1;
                let instruction = decoder.decode();
                if instruction.is_invalid() || !seen.insert(instruction.ip()) {
                    break;
                }
                let flow = instruction.flow_control();
                let leaves = match flow {
                    FlowControl::Next | FlowControl::Interrupt => continue,
                    FlowControl::ConditionalBranch
                    | FlowControl::Call
                    | FlowControl::IndirectCall => false,
                    _ => true,
                };
                let calls = matches!(flow, FlowControl::Call | FlowControl::IndirectCall);
                match self.target(&instruction) {
                    Some(Callee::Traced(_)) => return true,
                    Some(Callee::NeverReturns) if calls => break,
                    Some(Callee::Here(target)) if calls => found.push(target),
                    Some(Callee::Here(target)) => open.push(target),
                    _ => {}
                }
                if leaves {
                    break;
                }
            }
        }
        false
    }
}
