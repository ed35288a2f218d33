//! How many decisions lie between a function's entry and each instruction.
//!
//! Where one future's body was put into another's, both are in one function;
//! the outer one's state is looked at first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

/// Targets of one jump table.
const MAX_TARGETS: u64 = 1024;
/// Instructions between the load of a table's address and the jump.
const TABLE_REACH: usize = 12;

/// Jumps and branches that are taken or passed from the first instruction to
/// each; unreachable ones are missing. `entry` reads a word of a jump table,
/// `tables` are the addresses where such may begin.
pub(super) fn from_entry(
    code: &[Instruction],
    tables: &BTreeSet<u64>,
    entry: impl Fn(u64) -> Option<i32>,
) -> BTreeMap<u64, u32> {
    let places: BTreeMap<u64, usize> = code
        .iter()
        .enumerate()
        .map(|(index, instruction)| (instruction.ip(), index))
        .collect();
    let mut distances: Vec<Option<u32>> = vec![None; code.len()];
    // Nearest first: what costs nothing goes to the front.
    let mut queue = VecDeque::from([(0_usize, 0_u32)]);
    while let Some((index, distance)) = queue.pop_front() {
        let (Some(instruction), Some(known)) = (code.get(index), distances.get_mut(index)) else {
            continue;
        };
        if known.is_some_and(|known| known <= distance) {
            continue;
        }
        *known = Some(distance);
        let next = (index + 1, distance);
        let direct = (instruction.op0_kind() == OpKind::NearBranch64)
            .then(|| places.get(&instruction.near_branch_target()))
            .flatten();
        match instruction.flow_control() {
            FlowControl::ConditionalBranch => {
                queue.push_back((index + 1, distance + 1));
                queue.extend(direct.map(|target| (*target, distance + 1)));
            }
            // Where the code went on is the compiler's choice, no decision.
            FlowControl::UnconditionalBranch => {
                if let Some(target) = direct {
                    queue.push_front((*target, distance));
                }
            }
            FlowControl::IndirectBranch => {
                for target in targets(code, index, tables, &entry) {
                    queue.extend(places.get(&target).map(|target| (*target, distance + 1)));
                }
            }
            FlowControl::Return | FlowControl::Exception => {}
            _ => queue.push_front(next),
        }
    }
    code.iter()
        .zip(distances)
        .filter_map(|(instruction, distance)| Some((instruction.ip(), distance?)))
        .collect()
}

/// Where a jump through a table may lead: compilers add an entry of four bytes
/// to the table's own address. A table ends where another one begins.
fn targets(
    code: &[Instruction],
    jump: usize,
    tables: &BTreeSet<u64>,
    entry: impl Fn(u64) -> Option<i32>,
) -> Vec<u64> {
    let before = code.get(jump.saturating_sub(TABLE_REACH)..jump);
    let base = before.into_iter().flatten().rev().find_map(|instruction| {
        let is_load =
            instruction.mnemonic() == Mnemonic::Lea && instruction.memory_base() == Register::RIP;
        let address = instruction.memory_displacement64();
        (is_load && tables.contains(&address)).then_some(address)
    });
    let Some(base) = base else {
        return Vec::new();
    };
    let end = tables
        .range(base.saturating_add(1)..)
        .next()
        .copied()
        .unwrap_or(u64::MAX)
        .min(base.saturating_add(4 * MAX_TARGETS));
    let (Some(first), Some(last)) = (code.first(), code.last()) else {
        return Vec::new();
    };
    let inside = first.ip()..last.next_ip();
    (base..end)
        .step_by(4)
        .map_while(|place| {
            let target = base.wrapping_add_signed(i64::from(entry(place)?));
            inside.contains(&target).then_some(target)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};
    use proptest::prelude::*;

    use super::*;

    fn decoded(code: &[u8]) -> Vec<Instruction> {
        Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE)
            .into_iter()
            .take_while(|instruction| !instruction.is_invalid())
            .collect()
    }

    #[test]
    fn decisions_count_and_jumps_do_not() {
        let code = decoded(&[
            0x85, 0xc0, // 1000 test eax, eax
            0x74, 0x04, // 1002 je 1008
            0x90, // 1004 nop
            0xeb, 0x02, // 1005 jmp 1009
            0xcc, // 1007 unreachable
            0xc3, // 1008 ret
            0xc3, // 1009 ret
        ]);
        let distances = from_entry(&code, &BTreeSet::new(), |_| None);
        let expected = [
            (0x1000, 0),
            (0x1002, 0),
            (0x1004, 1),
            (0x1005, 1),
            (0x1008, 1),
            (0x1009, 1),
        ];
        assert_eq!(distances, BTreeMap::from(expected));
    }

    #[test]
    fn tables_end_where_others_begin() {
        let code = decoded(&[
            0x48, 0x8d, 0x0d, 0xf9, 0x0f, 0x00, 0x00, // 1000 lea rcx, [rip+0xff9] = 2000
            0x48, 0x63, 0x04, 0x81, // 1007 movsxd rax, [rcx+rax*4]
            0x48, 0x01, 0xc8, // 100b add rax, rcx
            0xff, 0xe0, // 100e jmp rax
            0xc3, // 1010 ret
            0x90, // 1011 nop
            0xc3, // 1012 ret
        ]);
        let tables = BTreeSet::from([0x2000, 0x2008]);
        let entry = |place: u64| -> Option<i32> {
            [-0xff0, -0xfef, -0xfee]
                .get(((place - 0x2000) / 4) as usize)
                .copied()
        };
        let distances = from_entry(&code, &tables, entry);
        assert_eq!(distances.get(&0x1010), Some(&1));
        assert_eq!(distances.get(&0x1011), Some(&1), "the second entry");
        assert_eq!(distances.get(&0x1012), Some(&1), "from there on");
        assert_eq!(distances.len(), 7);
    }

    proptest! {
        #[test]
        fn arbitrary_code_is_no_trouble(code in proptest::collection::vec(any::<u8>(), 0..200), tables in proptest::collection::btree_set(any::<u64>(), 0..8), value in any::<i32>()) {
            let code = decoded(&code);
            prop_assert!(from_entry(&code, &tables, |_| Some(value)).len() <= code.len());
        }
    }
}
