//! The code that hangs on a vtable: what its functions call, and which
//! constants they load.
//!
//! Only direct calls and calls through the global offset table are followed;
//! what is called through a trait object stays unknown.

mod distance;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    ops::Range,
    rc::Rc,
};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use object::read::ReadRef;

use crate::elf::{functions::Functions, image::Image};

/// Bytes of one function that are read.
const MAX_BODY: u64 = 256 << 10;
/// Bytes of code that are read per file: enough for all task code of large
/// servers.
const MAX_CODE: u64 = 96 << 20;
/// Functions below one start that are looked at.
const MAX_REACHED: usize = 1200;
/// How many instructions behind a constant's load its use as an argument is
/// looked for.
const ARGUMENT_REACH: usize = 8;

/// A constant whose address a function loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Its linked address.
    pub constant: u64,
    /// The function called next, if one is soon.
    pub called: Option<u64>,
    /// Decisions between the function's entry and the load; `u32::MAX` where
    /// no way was found.
    pub distance: u32,
}

/// What is known of one function.
#[derive(Debug, Default)]
pub struct Body {
    /// First address and end.
    pub extent: Range<u64>,
    /// Functions that it calls or jumps to, in order, with repetitions.
    pub calls: Vec<u64>,
    /// Functions whose addresses it loads: they are called by others for it.
    pub handed_on: Vec<u64>,
    /// Constants that it loads, in order.
    pub loads: Vec<Load>,
}

/// A function and how many calls away it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Linked address.
    pub function: u64,
    /// 0 for the start itself.
    pub depth: u32,
}

/// Reads functions when they are asked for, each once.
pub struct TaskCode<'a, 'elf, 'data, R: ReadRef<'data>> {
    /// The file's data.
    pub image: &'a Image<'elf, 'data, R>,
    /// The file's functions.
    pub functions: &'a Functions<'data>,
    bodies: BTreeMap<u64, Rc<Body>>,
    left: u64,
}

impl<'a, 'elf, 'data, R: ReadRef<'data>> TaskCode<'a, 'elf, 'data, R> {
    /// Nothing is read yet.
    pub fn new(image: &'a Image<'elf, 'data, R>, functions: &'a Functions<'data>) -> Self {
        Self {
            image,
            functions,
            bodies: BTreeMap::new(),
            left: MAX_CODE,
        }
    }

    /// The function at an address; empty where there is none, or when too
    /// much has been read already.
    pub fn body(&mut self, address: u64) -> Rc<Body> {
        if let Some(known) = self.bodies.get(&address) {
            return Rc::clone(known);
        }
        let body = Rc::new(self.read(address).unwrap_or_default());
        self.bodies.insert(address, Rc::clone(&body));
        body
    }

    /// The functions that can be reached from `starts` by at most `depth`
    /// calls, nearest first; calls by others for it count only if `handed_on`
    /// says so.
    pub fn reachable(&mut self, starts: &[u64], depth: u32, handed_on: bool) -> Vec<Reached> {
        let mut queue: VecDeque<Reached> = starts
            .iter()
            .map(|start| Reached {
                function: *start,
                depth: 0,
            })
            .collect();
        let mut seen: HashSet<u64> = starts.iter().copied().collect();
        let mut reached = Vec::new();
        while let Some(next) = queue.pop_front() {
            if reached.len() >= MAX_REACHED {
                break;
            }
            reached.push(next);
            if next.depth >= depth {
                continue;
            }
            let body = self.body(next.function);
            let others = body.handed_on.iter().filter(|_| handed_on);
            for call in body.calls.iter().chain(others) {
                if seen.len() < 4 * MAX_REACHED && seen.insert(*call) {
                    queue.push_back(Reached {
                        function: *call,
                        depth: next.depth + 1,
                    });
                }
            }
        }
        reached
    }

    /// The code of a function.
    pub fn code(&self, address: u64) -> &'data [u8] {
        match self.functions.extent(address) {
            Some(extent) => self
                .image
                .code(address, (extent.end - extent.start).min(MAX_BODY)),
            None => &[],
        }
    }

    fn read(&mut self, address: u64) -> Option<Body> {
        let code = self.code(address);
        self.left = self.left.checked_sub(code.len() as u64)?;
        let mut body = Body {
            extent: address..address.saturating_add(code.len() as u64),
            ..Body::default()
        };
        let mut places = Vec::new();
        // Loads that wait for the call they are an argument of.
        let mut waiting: VecDeque<(usize, usize)> = VecDeque::new();
        let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
        let mut index = 0;
        let mut instructions = Vec::new();
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                break;
            }
            index += 1;
            instructions.push(instruction);
            let address = instruction.memory_displacement64();
            if instruction.mnemonic() == Mnemonic::Lea
                && instruction.memory_base() == Register::RIP
                && self.image.is_code(address)
                && !body.extent.contains(&address)
            {
                body.handed_on.push(address);
            }
            if let Some(constant) = self.constant(&instruction) {
                waiting.push_back((index, body.loads.len()));
                places.push(instruction.ip());
                body.loads.push(Load {
                    constant,
                    called: None,
                    distance: u32::MAX,
                });
            }
            let target = self.target(&instruction);
            if let Some(target) = target.filter(|target| !body.extent.contains(target)) {
                body.calls.push(target);
            }
            if instruction.flow_control() == FlowControl::Next {
                continue;
            }
            for (since, load) in waiting.drain(..) {
                if let Some(load) = body.loads.get_mut(load)
                    && index - since <= ARGUMENT_REACH
                {
                    load.called = target;
                }
            }
        }
        let tables: BTreeSet<u64> = body.loads.iter().map(|load| load.constant).collect();
        let distances = distance::from_entry(&instructions, &tables, |place| {
            let bytes = self.image.bytes(place, 4)?;
            bytes.try_into().ok().map(i32::from_le_bytes)
        });
        for (load, place) in body.loads.iter_mut().zip(places) {
            load.distance = distances.get(&place).copied().unwrap_or(u32::MAX);
        }
        Some(body)
    }

    /// The data whose address an instruction loads.
    fn constant(&self, instruction: &Instruction) -> Option<u64> {
        let constant = match instruction.mnemonic() {
            Mnemonic::Lea if instruction.memory_base() == Register::RIP => {
                instruction.memory_displacement64()
            }
            // Files linked to a fixed address name it outright.
            Mnemonic::Mov
                if self.image.is_fixed()
                    && instruction.op0_kind() == OpKind::Register
                    && matches!(
                        instruction.op1_kind(),
                        OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64
                    ) =>
            {
                instruction.immediate(1)
            }
            _ => return None,
        };
        self.image.is_data(constant).then_some(constant)
    }

    /// Where a call or jump leads.
    fn target(&self, instruction: &Instruction) -> Option<u64> {
        match instruction.flow_control() {
            FlowControl::Call | FlowControl::UnconditionalBranch
                if instruction.op0_kind() == OpKind::NearBranch64 =>
            {
                Some(instruction.near_branch_target())
            }
            FlowControl::IndirectCall | FlowControl::IndirectBranch
                if instruction.op0_kind() == OpKind::Memory
                    && instruction.memory_base() == Register::RIP =>
            {
                let slot = self.image.pointer(instruction.memory_displacement64())?;
                self.image.is_code(slot).then_some(slot)
            }
            _ => None,
        }
    }
}
