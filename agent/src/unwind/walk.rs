//! Follows a stack by the rows of its files, from outside: for threads that
//! wait in the kernel, whose stacks do not change meanwhile.

use agent_ebpf::abi::stack::{MAX_FRAMES, Row, StackEnd};

/// Offsets in the x86-64 signal frame, as the kernel unwinder has them.
const SIGNAL_RBP: u64 = 40 + 8 * 10;
const SIGNAL_RSP: u64 = 40 + 8 * 15;
const SIGNAL_RIP: u64 = 40 + 8 * 16;

/// The frames from a code address, stack pointer and frame pointer on, each
/// with whether it is exact or a return address, and how the stack ends. `row`
/// is what holds at a code address, `word` reads the stack. Without the frame
/// pointer, a function that finds its caller by it ends the stack early.
pub fn walk(
    (ip, sp, bp): (u64, u64, Option<u64>),
    row: impl Fn(u64) -> Option<Row>,
    word: impl Fn(u64) -> Option<u64>,
) -> (Vec<(u64, bool)>, StackEnd) {
    let mut frames = vec![(ip, true)];
    let (mut ip, mut sp, mut bp, mut exact) = (ip, sp, bp, true);
    while frames.len() < MAX_FRAMES {
        let lookup = if exact { ip } else { ip.wrapping_sub(1) };
        let Some(row) = row(lookup) else {
            return (frames, StackEnd::UnknownMapping);
        };
        let cfa = match (row.kind, bp) {
            (Row::RSP, _) => sp.wrapping_add(u64::from(row.cfa_offset)),
            (Row::RBP, Some(bp)) => u64::wrapping_add(bp, u64::from(row.cfa_offset)),
            (Row::PLT, _) => sp.wrapping_add(8 + if ip & 15 >= 11 { 8 } else { 0 }),
            (Row::END, _) => return (frames, StackEnd::Complete),
            (Row::SIGNAL, _) => {
                let at = |offset| word(sp.wrapping_add(offset));
                let (Some(base), Some(top), Some(back)) =
                    (at(SIGNAL_RBP), at(SIGNAL_RSP), at(SIGNAL_RIP))
                else {
                    return (frames, StackEnd::UnreadableStack);
                };
                (ip, sp, bp, exact) = (back, top, Some(base), true);
                frames.push((ip, true));
                continue;
            }
            _ => return (frames, StackEnd::NoUnwindRule),
        };
        // The stack grows downwards: no caller is below.
        if cfa <= sp {
            return (frames, StackEnd::NoUnwindRule);
        }
        if row.rbp_offset != Row::RBP_KEPT {
            bp = word(cfa.wrapping_add((i64::from(row.rbp_offset) * 8) as u64));
        }
        let Some(next) = word(cfa.wrapping_sub(8)) else {
            return (frames, StackEnd::UnreadableStack);
        };
        if next == 0 {
            return (frames, StackEnd::Complete);
        }
        (ip, sp, exact) = (next, cfa, false);
        frames.push((ip, false));
    }
    (frames, StackEnd::TooDeep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(kind: u8, cfa_offset: u16, rbp_offset: i8) -> Row {
        Row {
            pc: 0,
            cfa_offset,
            rbp_offset,
            kind,
        }
    }

    #[test]
    fn follows_saved_frame_pointers() {
        // 10: saves rbp; 20: finds its caller by rbp; 30: the start.
        let rows = |ip: u64| {
            Some(match ip {
                10 => row(Row::RSP, 24, -2),
                19 => row(Row::RBP, 16, Row::RBP_KEPT),
                29 => row(Row::END, 0, Row::RBP_KEPT),
                _ => return None,
            })
        };
        let stack = |address: u64| match address {
            1008 => Some(2000),
            1016 => Some(20),
            2008 => Some(30),
            _ => None,
        };
        assert_eq!(
            walk((10, 1000, None), rows, stack),
            (
                vec![(10, true), (20, false), (30, false)],
                StackEnd::Complete
            )
        );
        // Without the first frame, nobody knows rbp.
        let (frames, end) = walk((19, 1000, None), rows, stack);
        assert_eq!((frames.len(), end), (1, StackEnd::NoUnwindRule));
        let (frames, end) = walk((10, 1000, None), rows, |_| None);
        assert_eq!((frames.len(), end), (1, StackEnd::UnreadableStack));
    }

    proptest! {
        #[test]
        fn any_rows_and_any_stack_come_to_an_end(
            kind in 0u8..8, offset in any::<u16>(), rbp in any::<i8>(), stack in any::<u64>(),
        ) {
            let (frames, _) = walk((1, stack, Some(stack)), |_| Some(row(kind, offset, rbp)), |at| Some(at ^ stack));
            prop_assert!(frames.len() <= MAX_FRAMES);
        }
    }
}
