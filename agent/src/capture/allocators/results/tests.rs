use std::{collections::HashMap, fs, path::Path};

use iced_x86::{Decoder, DecoderOptions, Instruction};
use proptest::prelude::*;

use super::{graph::Edge, *};
use crate::{
    capture::allocators::{
        self,
        candidates::{Candidates, Signs},
    },
    elf::{Elf, Table},
};

const LIBRARIES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/lib/ld-musl-x86_64.so.1",
];

/// Runs `look` on each family of the installed libraries, with its code.
fn with_families(look: impl Fn(&str, &allocators::Family, &Graph)) {
    let mut looked = 0;
    for path in LIBRARIES {
        let Ok(data) = fs::read(Path::new(path)) else {
            println!("skipped: {path} is not installed");
            continue;
        };
        let elf = Elf::parse(data.as_slice()).unwrap();
        let (mut signs, mut found) = (Signs::default(), Candidates::default());
        let tables = || [Table::Dynamic, Table::Full].into_iter();
        for symbol in tables()
            .filter_map(|table| elf::symbols(&elf, table))
            .flatten()
        {
            signs.look_at(&symbol);
        }
        for symbol in tables()
            .filter_map(|table| elf::symbols(&elf, table))
            .flatten()
        {
            found.look_at(&elf, &symbol, &signs);
        }
        let flow = Flow::of(&elf, &found, &signs);
        for family in allocators::discover(&elf).families {
            if family.why_not.is_none() {
                let functions = family.functions.iter();
                let allocating = functions.filter(|function| function.kind != FunctionKind::Free);
                let graph = Graph::of(&flow, allocating).unwrap();
                look(path, &family, &graph);
                looked += 1;
            }
        }
    }
    assert!(looked > 0, "not even glibc is installed");
}

/// Looked for in another way than they are found: whoever follows the code from
/// an entry and stops at the points never comes to a return.
#[test]
fn no_path_misses_the_points() {
    with_families(|path, family, graph| {
        let points: HashMap<u64, Branch> = family
            .results
            .iter()
            .map(|point| (point.address, point.branch))
            .collect();
        let mut seen = HashSet::new();
        let mut open: Vec<u64> = family
            .functions
            .iter()
            .filter(|function| function.kind != FunctionKind::Free)
            .map(|function| function.address)
            .collect();
        while let Some(address) = open.pop() {
            let branch = points.get(&address);
            if branch == Some(&Branch::Any) || !seen.insert(address) {
                continue;
            }
            assert!(
                !graph.exits().contains_key(&address),
                "{path}: {address:x} leaves unseen"
            );
            for (next, edge) in graph.after(address) {
                let passed = match (edge, branch) {
                    (Edge::Taken(condition), Some(Branch::Taken(wanted))) => condition == *wanted,
                    (Edge::NotTaken(condition), Some(Branch::Taken(wanted))) => {
                        condition ^ 1 == *wanted
                    }
                    _ => false,
                };
                if !passed {
                    open.push(next);
                }
            }
        }
    });
}

#[test]
fn common_calls_are_emulated_and_known() {
    with_families(|path, family, graph| {
        for point in &family.results {
            assert_ne!(point.answer, Answer::Unknown, "{path} {point:x?}");
            let instruction = graph.instruction(point.address).unwrap();
            assert!(
                !point.stepped || probe_point::can_be_stepped(instruction),
                "{path} {point:x?}"
            );
        }
        let stepped = family.results.iter().filter(|point| point.stepped).count();
        println!("{path}: {stepped} of {} are stepped", family.results.len());
        assert!(
            stepped * 3 <= family.results.len(),
            "{path}: {stepped} of {} are stepped",
            family.results.len()
        );
    });
}

/// The instructions of some code.
fn decoded(code: &[u8]) -> Vec<Instruction> {
    Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE)
        .into_iter()
        .collect()
}

/// The state in front of code that ends with a return.
fn before(code: &[u8]) -> Option<(Answer, Slot)> {
    let mut state = State::at(Exit::Return);
    for instruction in decoded(code).iter().rev() {
        state = state.before(instruction)?;
    }
    Some((state.answer()?, state.slot()?))
}

#[test]
fn results_are_followed_back() {
    let register = |register, add| Answer::Register { register, add };
    // mov rax, r8; add rsp, 8; pop rbx
    assert_eq!(
        before(&[0x4c, 0x89, 0xc0, 0x48, 0x83, 0xc4, 8, 0x5b]),
        Some((register(8, 0), Slot::FromRsp(2)))
    );
    // lea rax, [rbx+16]; pop rbp
    assert_eq!(
        before(&[0x48, 0x8d, 0x43, 0x10, 0x5d]),
        Some((register(3, 16), Slot::FromRsp(1)))
    );
    // mov rax, [rsp+8]; add rsp, 24
    assert_eq!(
        before(&[0x48, 0x8b, 0x44, 0x24, 8, 0x48, 0x83, 0xc4, 0x18]),
        Some((
            Answer::Memory {
                register: 4,
                add: 8
            },
            Slot::FromRsp(3)
        ))
    );
    // xor eax, eax; leave
    assert_eq!(
        before(&[0x31, 0xc0, 0xc9]),
        Some((Answer::Null, Slot::FromRbp(1)))
    );
    // lea rsp, [rbp-40]; pop rbx; pop r12; pop r13; pop r14; pop r15; pop rbp
    assert_eq!(
        before(&[
            0x48, 0x8d, 0x65, 0xd8, 0x5b, 0x41, 0x5c, 0x41, 0x5d, 0x41, 0x5e, 0x41, 0x5f, 0x5d
        ]),
        Some((register(0, 0), Slot::FromRbp(1)))
    );
}

#[test]
fn what_is_lost_is_not_followed() {
    // mov rax, [rbx]: another thread may change it.
    assert_eq!(before(&[0x48, 0x8b, 0x03]), None);
    // mov [rdi], rcx; mov rax, [rsp+8]: the store may be to that word.
    assert_eq!(before(&[0x48, 0x89, 0x0f, 0x48, 0x8b, 0x44, 0x24, 8]), None);
    // mov eax, ebx; and rax, rbx; cmove rax, rbx; pop rax
    for code in [
        &[0x89, 0xd8][..],
        &[0x48, 0x21, 0xd8],
        &[0x48, 0x0f, 0x44, 0xc3],
        &[0x58],
        // mov eax, 12: no address.
        &[0xb8, 12, 0, 0, 0],
        // pop rsp
        &[0x5c],
    ] {
        assert_eq!(before(code), None, "{code:x?}");
    }
    // A store does not matter to what is in a register.
    assert!(before(&[0x48, 0x89, 0x0f]).is_some());
}

proptest! {
    /// As the processor does it, on a few registers.
    #[test]
    fn states_say_what_the_code_does(steps in prop::collection::vec(0_u8..8, 0..12), rbx: u32, rcx: u32) {
        let mut code = Vec::new();
        for step in &steps {
            code.extend_from_slice(match step {
                0 => &[0x48, 0x89, 0xd8][..],           // mov rax, rbx
                1 => &[0x48, 0x89, 0xc3],               // mov rbx, rax
                2 => &[0x48, 0x83, 0xc0, 0x10],         // add rax, 16
                3 => &[0x48, 0x83, 0xeb, 0x08],         // sub rbx, 8
                4 => &[0x48, 0x8d, 0x41, 0x20],         // lea rax, [rcx+32]
                5 => &[0x31, 0xc0],                     // xor eax, eax
                6 => &[0x59],                           // pop rcx
                _ => &[0x48, 0x83, 0xc4, 0x10],         // add rsp, 16
            });
        }
        let (start, mut registers) = (0x10_000_u64, [7_u64, u64::from(rcx), 0, u64::from(rbx)]);
        let initial = registers;
        let mut rsp = start;
        for step in &steps {
            let [rax, rcx, _, rbx] = &mut registers;
            match step {
                0 => *rax = *rbx,
                1 => *rbx = *rax,
                2 => *rax = rax.wrapping_add(16),
                3 => *rbx = rbx.wrapping_sub(8),
                4 => *rax = rcx.wrapping_add(32),
                5 => *rax = 0,
                6 => { *rcx = rsp; rsp += 8; }
                _ => rsp += 16,
            }
        }
        let Some((answer, Slot::FromRsp(words))) = before(&code) else {
            // Only what is popped from the stack is lost, and sums with zero.
            prop_assert!(steps.contains(&6) || steps.contains(&5));
            return Ok(());
        };
        prop_assert_eq!(start + words as u64 * 8, rsp);
        let wanted = match answer {
            Answer::Null => 0,
            Answer::Register { register, add } => initial[usize::from(register)].wrapping_add_signed(i64::from(add)),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(wanted, registers[0]);
    }
}
