use std::{fs, path::Path};

use agent_ebpf::abi::heap::FunctionKind::{self, Free, Malloc, Realloc};
use iced_x86::{Decoder, DecoderOptions};
use proptest::prelude::*;

use super::*;
use crate::{
    capture::allocators::{self, Function},
    elf::{Elf, frames::CallFrames},
};

const AT: u64 = 0x1000;

/// Rows for code whose stack pointer never moves.
fn leaf() -> Vec<CfaRow> {
    vec![CfaRow {
        pc: AT,
        cfa: Cfa::RspPlus(8),
    }]
}

fn row(offset: u64, cfa: Cfa) -> CfaRow {
    CfaRow {
        pc: AT + offset,
        cfa,
    }
}

#[test]
fn a_push_at_the_entry_is_taken() {
    // push r12; mov rbx, rdi; ret
    let code = [0x41, 0x54, 0x48, 0x89, 0xfb, 0xc3];
    let rows = [row(0, Cfa::RspPlus(8)), row(2, Cfa::RspPlus(16))];
    assert_eq!(
        choose(&code, AT, &rows, Malloc, &[]),
        Ok(ProbePoint {
            offset: 0,
            stepped_because: None,
            arguments: IN_PLACE,
        })
    );
}

#[test]
fn the_null_check_of_free_is_passed() {
    // test rdi, rdi; je +5; push rbp; lea rsi, [rdi-16]; ret
    let code = [
        0x48, 0x85, 0xff, 0x74, 0x05, 0x55, 0x48, 0x8d, 0x77, 0xf0, 0xc3,
    ];
    let rows = [row(0, Cfa::RspPlus(8)), row(6, Cfa::RspPlus(16))];
    assert_eq!(choose(&code, AT, &rows, Free, &[]).unwrap().offset, 5);
    assert_eq!(
        choose(&code, AT, &rows, Realloc, &[]).unwrap().offset,
        3,
        "realloc(NULL) allocates"
    );
    assert_eq!(
        choose(&code, AT, &rows, Realloc, &[AT + 3]).unwrap().offset,
        0,
        "the branch has a probe already"
    );
    assert_eq!(
        choose(&code, AT, &[], Free, &[]).unwrap().offset,
        0,
        "nothing is known about the stack"
    );
}

#[test]
fn the_null_check_itself_is_taken_when_nothing_follows() {
    // test rdi, rdi; je +4; lea rdi, [rdi-1]; ret
    let code = [0x48, 0x85, 0xff, 0x74, 0x04, 0x48, 0x8d, 0x7f, 0xff, 0xc3];
    assert_eq!(choose(&code, AT, &leaf(), Free, &[]).unwrap().offset, 3);
}

#[test]
fn a_branch_that_is_no_null_check_is_not_passed() {
    // test rsi, rsi; je +1; push rbp; ret: the branch is the last place.
    let code = [0x48, 0x85, 0xf6, 0x74, 0x01, 0x55, 0xc3];
    assert_eq!(choose(&code, AT, &leaf(), Free, &[]).unwrap().offset, 3);
    // jne leads the null pointer on.
    let code = [0x48, 0x85, 0xff, 0x75, 0x01, 0x55, 0xc3];
    assert_eq!(choose(&code, AT, &leaf(), Free, &[]).unwrap().offset, 3);
}

#[test]
fn arguments_are_still_there() {
    // mov rdi, rsi; push rbp; ret
    let code = [0x48, 0x89, 0xf7, 0x55, 0xc3];
    let point = choose(&code, AT, &leaf(), Malloc, &[]).unwrap();
    assert_eq!((point.offset, point.emulated()), (0, false));
    // mov esi, edi; push rbp; ret: of malloc only rdi counts.
    let code = [0x89, 0xfe, 0x55, 0xc3];
    assert_eq!(choose(&code, AT, &leaf(), Malloc, &[]).unwrap().offset, 2);
    assert_eq!(choose(&code, AT, &leaf(), Realloc, &[]).unwrap().offset, 0);
    // mov rax, [rdi]; push rbp: the block has been read.
    let code = [0x48, 0x8b, 0x07, 0x55, 0xc3];
    assert_eq!(choose(&code, AT, &leaf(), Free, &[]).unwrap().offset, 0);
    // mov [rax], rcx; push rbp: something was changed.
    let code = [0x48, 0x89, 0x08, 0x55, 0xc3];
    assert_eq!(choose(&code, AT, &leaf(), Free, &[]).unwrap().offset, 0);
}

#[test]
fn arguments_are_followed() {
    // mov rax, [rip+0]; mov rsi, rdi; mov rdi, fs:[rax]; cmp rsi, 0x400; ja +0; ret
    let code = [
        0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x48, 0x89, 0xfe, 0x64, 0x48, 0x8b, 0x38, 0x48, 0x81, 0xfe,
        0, 4, 0, 0, 0x77, 0, 0xc3,
    ];
    assert_eq!(
        choose(&code, AT, &leaf(), Malloc, &[]).unwrap(),
        ProbePoint {
            offset: 21,
            stepped_because: None,
            arguments: [6, 6, 2]
        }
    );
    assert_eq!(
        choose(&code, AT, &leaf(), Realloc, &[]).unwrap().offset,
        0,
        "its second argument is lost"
    );
    // mov rcx, rdi; mov edi, edi; test rcx, rcx; je +1; push rbp; ret
    let code = [
        0x48, 0x89, 0xf9, 0x89, 0xff, 0x48, 0x85, 0xc9, 0x74, 1, 0x55, 0xc3,
    ];
    let point = choose(&code, AT, &leaf(), Free, &[]).unwrap();
    assert_eq!(
        (point.offset, point.arguments[0]),
        (10, 1),
        "behind the null check of rcx"
    );
    // mov rax, rdi; mov rcx, [rax]; push rbp; ret: read through the copy.
    let code = [0x48, 0x89, 0xf8, 0x48, 0x8b, 0x08, 0x55, 0xc3];
    assert_eq!(choose(&code, AT, &leaf(), Free, &[]).unwrap().offset, 0);
}

#[test]
fn a_branch_target_is_no_entry() {
    // endbr64; push rbp; pop rbp; jmp -4 (to the push)
    let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xeb, 0xfc];
    let rows = [
        row(0, Cfa::RspPlus(8)),
        row(5, Cfa::RspPlus(16)),
        row(6, Cfa::RspPlus(8)),
    ];
    assert_eq!(choose(&code, AT, &rows, Malloc, &[]).unwrap().offset, 0);
    // Without the loop the push is the place.
    assert_eq!(
        choose(&code[..6], AT, &rows, Malloc, &[]).unwrap().offset,
        4
    );
}

#[test]
fn an_entry_that_is_no_call_is_refused() {
    let rows = [row(0, Cfa::RspPlus(16))];
    assert_eq!(
        choose(&[0x55, 0xc3], AT, &rows, Malloc, &[]),
        Err(Refusal::StrangeEntry)
    );
    assert!(choose(&[0x55, 0xc3], AT, &rows, Free, &[]).is_ok());
    assert_eq!(choose(&[], AT, &[], Free, &[]), Err(Refusal::NoCode));
    assert_eq!(choose(&[0x06], AT, &[], Free, &[]), Err(Refusal::NoCode));
}

#[test]
fn without_rows_only_the_entry_is_allowed() {
    let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3];
    assert_eq!(choose(&code, AT, &[], Malloc, &[]).unwrap().offset, 0);
}

#[test]
fn undecodable_bytes_allow_only_the_entry() {
    // endbr64; push rbp; (bad); ret
    let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x06, 0xc3];
    assert_eq!(choose(&code, AT, &leaf(), Malloc, &[]).unwrap().offset, 0);
}

/// An allocator function of a real library, its code and its rows.
type Real = (Function, Vec<u8>, Vec<CfaRow>);

/// Those of an installed library; nothing, with a printed line, when it is not
/// installed.
fn functions(path: &str) -> Option<Vec<Real>> {
    let Ok(data) = fs::read(Path::new(path)) else {
        println!("skipped: {path} is not installed");
        return None;
    };
    let elf = Elf::parse(data.as_slice()).unwrap();
    let frames = CallFrames::of(&elf);
    let families = allocators::discover(&elf).families;
    let functions = families.into_iter().flat_map(|family| family.functions);
    Some(
        functions
            .map(|function| {
                (
                    function.clone(),
                    allocators::body(&elf, &function).to_vec(),
                    frames.rows(function.address, function.size),
                )
            })
            .collect(),
    )
}

const LIBRARIES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/lib/ld-musl-x86_64.so.1",
];

/// Whether the straight way from the entry reaches the place with the stack
/// pointer still at the return address.
fn caller_on_top(code: &[u8], address: u64, rows: &[CfaRow], offset: u64) -> bool {
    Body::of(code, address).is_some_and(|body| body.caller_on_top(rows, offset))
}

#[test]
fn real_allocators_get_a_place_for_every_function() {
    for path in LIBRARIES {
        for (function, code, rows) in functions(path).unwrap_or_default() {
            let point = choose(&code, function.address, &rows, function.kind, &[]).unwrap();
            println!(
                "{path} {} {:?} +{} {:?}",
                function.name, function.kind, point.offset, point.stepped_because
            );
            if function.kind != Free {
                assert!(
                    caller_on_top(&code, function.address, &rows, point.offset),
                    "{path} {}",
                    function.name
                );
            }
        }
    }
}

/// Every offset of every allocating function but the few right ones is
/// refused: only those that the straight way from the entry reaches with the
/// stack untouched are left.
#[test]
fn every_wrong_entry_is_refused() {
    for path in LIBRARIES {
        for (function, code, rows) in functions(path).unwrap_or_default() {
            let mut decoder = Decoder::with_ip(64, &code, function.address, DecoderOptions::NONE);
            let mut right = Vec::new();
            while decoder.can_decode() {
                let instruction = decoder.decode();
                right.push(instruction.ip() - function.address);
                let moves_stack = instruction.is_stack_instruction()
                    || instruction.op0_register() == Register::RSP;
                if moves_stack || instruction.flow_control() != FlowControl::Next {
                    break;
                }
            }
            // Every offset of small functions; of the giants, where it matters.
            for offset in 0..(code.len() as u64 + 16).min(700) {
                if !right.contains(&offset) {
                    assert!(
                        !caller_on_top(&code, function.address, &rows, offset),
                        "{path} {} +{offset}",
                        function.name
                    );
                }
            }
        }
    }
}

#[test]
fn common_allocators_are_emulated() {
    for (path, names) in [
        (LIBRARIES[0], ["malloc", "calloc", "realloc", "free"]),
        (LIBRARIES[2], ["malloc", "calloc", "realloc", "free"]),
    ] {
        let Some(functions) = functions(path) else {
            continue;
        };
        for name in names {
            let (function, code, rows) = functions
                .iter()
                .find(|(function, _, _)| function.name == name)
                .unwrap();
            let point = choose(code, function.address, rows, function.kind, &[]).unwrap();
            assert!(point.emulated(), "{path} {name} {point:?}");
        }
    }
}

fn kinds() -> impl Strategy<Value = FunctionKind> {
    (1_u8..=10).prop_map(|number| FunctionKind::from_number(number).unwrap())
}

fn any_rows() -> impl Strategy<Value = Vec<CfaRow>> {
    let cfa = prop_oneof![
        Just(Cfa::RspPlus(8)),
        Just(Cfa::RspPlus(16)),
        Just(Cfa::Other)
    ];
    prop::collection::vec((0_u64..64, cfa), 0..6).prop_map(|rows| {
        let mut rows: Vec<CfaRow> = rows
            .into_iter()
            .map(|(offset, cfa)| row(offset, cfa))
            .collect();
        rows.sort_by_key(|row| row.pc);
        rows
    })
}

proptest! {
    #[test]
    fn any_bytes_give_an_instruction_or_a_refusal(
        code in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x55), Just(0x48), Just(0x89), Just(0x74), Just(0x90)], 0..64),
        rows in any_rows(), kind in kinds(), address: u64,
    ) {
        let rows: Vec<CfaRow> = rows.into_iter().map(|row| CfaRow { pc: row.pc.wrapping_sub(AT).wrapping_add(address), ..row }).collect();
        if let Ok(point) = choose(&code, address, &rows, kind, &[]) {
            let mut decoder = Decoder::with_ip(64, &code, address, DecoderOptions::NONE);
            let starts: Vec<u64> = std::iter::from_fn(|| decoder.can_decode().then(|| decoder.decode().ip().wrapping_sub(address))).collect();
            prop_assert!(starts.contains(&point.offset));
            prop_assert!(kind == Free || caller_on_top(&code, address, &rows, point.offset));
        }
        for offset in 0..70 {
            caller_on_top(&code, address, &rows, offset);
        }
    }
}
