//! Where the results of allocator functions can be read without touching their
//! return addresses.
//!
//! A return probe replaces the return address on the stack. Whoever unwinds
//! through it (an exception, a profiler, a handler on another stack) meets the
//! kernel's page instead of code, and the process dies (SAFE-1). So the result
//! is read before the function returns: at the last branch on each path, which
//! the kernel emulates, if the result is in a register or on the stack by then,
//! else at the instruction from which on it is, which the kernel must
//! single-step.
//!
//! Found by following all paths of the code ([`graph`]) and, from each return
//! back, where the result and the return address were before ([`state`]).

mod graph;
mod state;

use std::collections::{BTreeMap, HashSet};

use agent_ebpf::abi::{
    heap::FunctionKind,
    result::{Answer, Branch, Slot},
};
use object::read::ReadRef;

use self::{
    graph::{Edge, Exit, Graph},
    state::State,
};
use super::{Function, flow::Flow};
use crate::{capture::probe_point, elf};

/// An instruction at which a call's result can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultPoint {
    /// Linked virtual address.
    pub address: u64,
    /// The same as an offset in the file.
    pub file_offset: u64,
    /// What the call will return.
    pub answer: Answer,
    /// Where the return address is, which tells whose result it is.
    pub slot: Slot,
    /// For which outcomes of a conditional branch that is so.
    pub branch: Branch,
    /// The kernel must single-step the instruction.
    pub stepped: bool,
}

/// Why the results of a family cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// The code is too long.
    #[error("its code is too large to find every place where it returns")]
    TooLarge,
    /// There is none, or the file is damaged.
    #[error("no place where it returns was found")]
    NoReturn,
    /// More than a kernel program can be told.
    #[error("its result cannot be read where it returns")]
    Strange,
}

/// The places where the results of these functions can be read. A place serves
/// every function that passes it.
pub(super) fn points<'data, R: ReadRef<'data>>(
    flow: &Flow<'_, 'data, R>,
    functions: &[Function],
) -> Result<Vec<ResultPoint>, Unreadable> {
    let allocating = || {
        functions
            .iter()
            .filter(|function| function.kind != FunctionKind::Free)
    };
    let graph = Graph::of(flow, allocating()).ok_or(Unreadable::TooLarge)?;
    // Their results are stored, not returned, and are there at the return
    // itself.
    let storing = allocating().filter(|function| function.kind == FunctionKind::PosixMemalign);
    let stored = graph.reached_from(storing.map(|function| function.address));
    let mut places = Places::default();
    for (end, exit) in graph.exits() {
        let state = State::at(*exit);
        if stored.contains(end) && *exit == Exit::Return {
            places.insert(*end, state, Branch::Any);
        } else {
            back(&graph, *end, state, &mut places);
        }
    }
    if places.found.is_empty() {
        return Err(Unreadable::NoReturn);
    }
    let point = |(address, (state, branch)): (u64, (State, Branch))| {
        let size = graph.instruction(address)?.len() as u64;
        let code = elf::code_at(flow.elf, address, size);
        Some(ResultPoint {
            address,
            file_offset: elf::code_offset(flow.elf, address)?,
            answer: state.answer()?,
            slot: state.slot()?,
            branch,
            stepped: !probe_point::is_emulated(code),
        })
    };
    places
        .found
        .into_iter()
        .map(|place| point(place).ok_or(Unreadable::Strange))
        .collect()
}

/// Follows all ways back from one end of the code, up to where its result can
/// be read.
fn back(graph: &Graph, end: u64, state: State, places: &mut Places) {
    let mut seen = HashSet::new();
    let mut open = vec![(end, state, (end, state))];
    while let Some((address, state, mut first)) = open.pop() {
        if !seen.insert((address, state)) {
            continue;
        }
        // The earliest place, if it comes to single-stepping.
        if graph
            .instruction(address)
            .is_some_and(probe_point::can_be_stepped)
        {
            first = (address, state);
        }
        let before = graph.before(address);
        if before.is_empty() || graph.is_entry(address) {
            // Where the function is entered nothing is known of its result.
            places.insert(end, State::at(graph.exit(end)), Branch::Any);
        }
        for (from, edge) in before {
            let Some(instruction) = graph.instruction(*from) else {
                continue;
            };
            // The kernel emulates branches, and calls.
            let (earlier, when) = match edge {
                Edge::Jump => (Some(state), Some(Branch::Any)),
                Edge::Taken(condition) => (Some(state), Some(Branch::Taken(*condition))),
                Edge::NotTaken(condition) => (Some(state), Some(Branch::Taken(condition ^ 1))),
                Edge::GivenBack => (state.before_giving_back(), Some(Branch::Any)),
                Edge::Next => (state.before(instruction), None),
                Edge::Back => (None, None),
            };
            match (earlier, when) {
                // The branch that led to a failure is one that every call
                // passes; here only those do that have failed.
                (Some(earlier), None) if earlier.is_failure() && !state.is_failure() => {
                    places.insert(*from, earlier, Branch::Any);
                }
                (Some(earlier), None) => open.push((*from, earlier, first)),
                (Some(earlier), Some(branch)) if places.insert(*from, earlier, branch) => {}
                _ => {
                    places.insert(first.0, first.1, Branch::Any);
                }
            }
        }
    }
}

/// Places found so far.
#[derive(Default)]
struct Places {
    found: BTreeMap<u64, (State, Branch)>,
}

impl Places {
    /// Adds a place; false when another result is read there.
    fn insert(&mut self, address: u64, state: State, branch: Branch) -> bool {
        let Some((known, when)) = self.found.get_mut(&address) else {
            self.found.insert(address, (state, branch));
            return true;
        };
        if *known != state {
            return false;
        }
        if *when != branch {
            *when = Branch::Any;
        }
        true
    }
}

#[cfg(test)]
mod tests;
