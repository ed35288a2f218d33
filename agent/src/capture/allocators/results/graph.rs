//! All paths of some functions' code, up to where each leaves for good.

use std::collections::{BTreeMap, HashMap, HashSet};

use iced_x86::{Code, ConditionCode, FlowControl, Instruction, OpKind};
use object::read::ReadRef;

use crate::capture::allocators::{
    Function,
    flow::{Callee, Flow},
};

/// Instructions of one family: jemalloc's have 12 000.
const MAX_INSTRUCTIONS: usize = 1 << 16;

/// How control goes from one instruction to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    /// To the one behind it.
    Next,
    /// To the one behind a call, which has come back.
    Back,
    /// To the one behind a call that returned its first argument.
    GivenBack,
    /// By a jump without a condition.
    Jump,
    /// By a conditional jump; its condition as x86-64 numbers them (Intel SDM,
    /// volume 1, appendix B).
    Taken(u8),
    /// Past one.
    NotTaken(u8),
}

/// How a path leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// By `ret`.
    Return,
    /// By a jump to a function that returns its first argument.
    GivesBack,
    /// By a jump to a function that is probed itself.
    HandOver,
    /// By a jump to code that is not known.
    Unknown,
}

/// Instructions and ways between them.
pub(super) struct Graph {
    instructions: HashMap<u64, Instruction>,
    before: HashMap<u64, Vec<(u64, Edge)>>,
    after: HashMap<u64, Vec<u64>>,
    entries: HashSet<u64>,
    exits: BTreeMap<u64, Exit>,
}

impl Graph {
    /// Follows the code of each function; `None` when it is too much.
    pub(super) fn of<'a, 'data, R: ReadRef<'data>>(
        flow: &Flow<'_, 'data, R>,
        functions: impl Iterator<Item = &'a Function>,
    ) -> Option<Self> {
        let mut graph = Self {
            instructions: HashMap::new(),
            before: HashMap::new(),
            after: HashMap::new(),
            entries: HashSet::new(),
            exits: BTreeMap::new(),
        };
        for function in functions {
            graph.entries.insert(function.address);
            graph.follow(flow, function.address, function.size)?;
        }
        Some(graph)
    }

    fn follow<'data, R: ReadRef<'data>>(
        &mut self,
        flow: &Flow<'_, 'data, R>,
        entry: u64,
        size: u64,
    ) -> Option<()> {
        let body = entry..entry.saturating_add(size.max(1));
        let mut open = vec![entry];
        while let Some(start) = open.pop() {
            let mut decoder = flow.run(start, &body);
            while decoder.can_decode() {
                let instruction = decoder.decode();
                let here = instruction.ip();
                if instruction.is_invalid() || self.instructions.contains_key(&here) {
                    break;
                }
                if self.instructions.len() >= MAX_INSTRUCTIONS {
                    return None;
                }
                self.instructions.insert(here, instruction);
                let next = instruction.next_ip();
                match instruction.flow_control() {
                    FlowControl::Next | FlowControl::Interrupt
                        if instruction.code() == Code::Hlt =>
                    {
                        break;
                    }
                    FlowControl::Next | FlowControl::Interrupt => {
                        self.connect(here, next, Edge::Next);
                    }
                    FlowControl::Call | FlowControl::IndirectCall => {
                        let edge = match flow.target(&instruction) {
                            Some(Callee::NeverReturns) => break,
                            Some(Callee::GivesBack) => Edge::GivenBack,
                            _ => Edge::Back,
                        };
                        self.connect(here, next, edge);
                    }
                    FlowControl::ConditionalBranch
                        if instruction.op0_kind() == OpKind::NearBranch64 =>
                    {
                        let Some(condition) = condition(&instruction) else {
                            // jrcxz, loop: not emulated, and no compiler's.
                            self.exits.insert(here, Exit::Unknown);
                            break;
                        };
                        self.connect(here, next, Edge::NotTaken(condition));
                        self.jump(flow, &instruction, Edge::Taken(condition), &mut open);
                    }
                    FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
                        self.jump(flow, &instruction, Edge::Jump, &mut open);
                        break;
                    }
                    FlowControl::Return => {
                        self.exits.insert(here, Exit::Return);
                        break;
                    }
                    FlowControl::Exception if instruction.code() == Code::Ud2 => break,
                    _ => {
                        self.exits.insert(here, Exit::Unknown);
                        break;
                    }
                }
            }
        }
        Some(())
    }

    /// Notes where a jump leads.
    fn jump<'data, R: ReadRef<'data>>(
        &mut self,
        flow: &Flow<'_, 'data, R>,
        instruction: &Instruction,
        edge: Edge,
        open: &mut Vec<u64>,
    ) {
        let here = instruction.ip();
        match flow.target(instruction) {
            Some(Callee::Here(target)) => {
                self.connect(here, target, edge);
                open.push(target);
            }
            Some(Callee::NeverReturns) => {}
            Some(Callee::Traced(_)) => {
                self.exits.insert(here, Exit::HandOver);
            }
            Some(Callee::GivesBack) => {
                self.exits.insert(here, Exit::GivesBack);
            }
            Some(Callee::Elsewhere) | None => {
                self.exits.insert(here, Exit::Unknown);
            }
        }
    }

    fn connect(&mut self, from: u64, to: u64, edge: Edge) {
        self.before.entry(to).or_default().push((from, edge));
        self.after.entry(from).or_default().push(to);
    }

    pub(super) fn before(&self, address: u64) -> &[(u64, Edge)] {
        self.before.get(&address).map_or(&[], Vec::as_slice)
    }

    pub(super) fn instruction(&self, address: u64) -> Option<&Instruction> {
        self.instructions.get(&address)
    }

    pub(super) fn is_entry(&self, address: u64) -> bool {
        self.entries.contains(&address)
    }

    pub(super) fn exits(&self) -> &BTreeMap<u64, Exit> {
        &self.exits
    }

    pub(super) fn exit(&self, address: u64) -> Exit {
        self.exits.get(&address).copied().unwrap_or(Exit::Unknown)
    }

    /// Where the instruction leads.
    #[cfg(test)]
    pub(super) fn after(&self, address: u64) -> impl Iterator<Item = (u64, Edge)> + '_ {
        let next = self.after.get(&address).into_iter().flatten();
        next.flat_map(move |next| {
            let from_here = self.before(*next).iter();
            from_here.filter_map(move |(from, edge)| (*from == address).then_some((*next, *edge)))
        })
    }

    /// Everything that can be reached from these addresses.
    pub(super) fn reached_from(&self, starts: impl Iterator<Item = u64>) -> HashSet<u64> {
        let mut seen = HashSet::new();
        let mut open: Vec<u64> = starts.collect();
        while let Some(address) = open.pop() {
            if seen.insert(address) {
                open.extend(self.after.get(&address).into_iter().flatten());
            }
        }
        seen
    }
}

/// The number of a conditional jump's condition: the low half of its opcode.
fn condition(instruction: &Instruction) -> Option<u8> {
    Some(match instruction.condition_code() {
        ConditionCode::None => return None,
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    })
}
