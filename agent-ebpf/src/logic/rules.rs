//! What is remembered of the unwind rule of one code address.
//!
//! Finding the row of an address takes a search over mappings and rows. Stacks
//! meet the same return addresses again and again, so the row that was found is
//! kept in a table of two words an entry, which all threads of all targets
//! share without a lock.

use crate::abi::stack::Row;

/// Entries of the table.
pub const RULES: usize = 1 << 15;

/// Spreads addresses: odd, its bits without a pattern.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// rbp is saved right below the return address; without this and [`RARE`], rbp
/// is that of the caller.
pub const RBP_BELOW: u64 = 1 << 24;
/// One of the constants below is set as well.
pub const RARE: u64 = 1 << 25;
/// The canonical frame address is reckoned from rbp, not from rsp.
pub const FROM_RBP: u64 = 1 << 26;
/// As [`Row::END`].
pub const END: u64 = 1 << 27;
/// rbp is saved in another place, see [`rbp_offset`].
pub const RBP_ELSEWHERE: u64 = 1 << 28;

/// The entry a return address may be in.
#[inline]
pub const fn place(address: u64) -> usize {
    (address.wrapping_mul(SPREAD) >> 49) as usize & (RULES - 1)
}

/// A row as the second word of an entry; `None` for those that are not kept.
#[inline]
pub const fn pack(row: Row) -> Option<u64> {
    let base = match row.kind {
        Row::RSP => 0,
        Row::RBP => RARE | FROM_RBP,
        Row::END => RARE | END,
        _ => return None,
    };
    let saved = match row.rbp_offset {
        -2 => RBP_BELOW,
        Row::RBP_KEPT => 0,
        _ => RARE | RBP_ELSEWHERE,
    };
    Some(base | saved | ((row.rbp_offset as u8 as u64) << 16) | row.cfa_offset as u64)
}

/// The first word of an entry. `generation` names the mappings that the rule
/// was found by; no two lists of mappings have the same one. Two programs may
/// write one entry at once, or one while another reads it: words of different
/// entries do not fit together.
#[inline]
pub const fn seal(address: u64, rule: u64, generation: u32) -> u64 {
    address ^ (rule | (generation as u64) << 32).wrapping_mul(SPREAD)
}

/// Distance from the base register to the canonical frame address.
#[inline]
pub const fn cfa_offset(rule: u64) -> u64 {
    rule & 0xffff
}

/// As [`Row::rbp_offset`].
#[inline]
pub const fn rbp_offset(rule: u64) -> i8 {
    (rule >> 16) as i8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn rows()(cfa_offset: u16, rbp_offset in prop_oneof![any::<i8>(), Just(-2), Just(Row::RBP_KEPT)], kind in 0u8..6) -> Row {
            Row { pc: 0, cfa_offset, rbp_offset, kind }
        }
    }

    proptest! {
        #[test]
        fn a_rule_is_found_under_its_address_and_mappings_only(
            row in rows(), address in 0u64..1 << 47, other in 0u64..1 << 47, generation: u32, later: u32,
        ) {
            let Some(rule) = pack(row) else {
                prop_assert!(!matches!(row.kind, Row::RSP | Row::RBP | Row::END));
                return Ok(());
            };
            let sealed = seal(address, rule, generation);
            prop_assert_eq!(sealed == seal(other, rule, generation), other == address);
            prop_assert_eq!(sealed == seal(address, rule, later), later == generation);
            prop_assert_eq!(sealed == seal(other, rule, later), other == address && later == generation);
            prop_assert_eq!(cfa_offset(rule), u64::from(row.cfa_offset));
            prop_assert_eq!(rbp_offset(rule), row.rbp_offset);
            prop_assert_eq!(rule & FROM_RBP != 0, row.kind == Row::RBP);
            prop_assert_eq!(rule & END != 0, row.kind == Row::END);
            prop_assert_eq!(rule & RBP_BELOW != 0, row.rbp_offset == -2);
            prop_assert_eq!(rule & RBP_ELSEWHERE != 0, ![-2, Row::RBP_KEPT].contains(&row.rbp_offset));
            prop_assert_eq!(rule & RARE != 0, rule & (FROM_RBP | END | RBP_ELSEWHERE) != 0);
            prop_assert_eq!(rule >> 32, 0);
        }

        #[test]
        fn words_of_two_entries_do_not_fit(
            first in rows(), second in rows(), address in 0u64..1 << 47, distance in 1u64..1 << 32, generation: u32,
        ) {
            let (Some(one), Some(two)) = (pack(first), pack(second)) else {
                return Ok(());
            };
            prop_assume!(one != two);
            let torn = seal(address, one, generation);
            prop_assert_ne!(torn, seal(address, two, generation));
            prop_assert_ne!(torn, seal(address ^ distance, two, generation));
        }
    }

    #[test]
    fn neighbouring_addresses_get_entries_of_their_own() {
        let places: std::collections::HashSet<usize> = (0..1000)
            .map(|call| place(0x5555_5555_4000 + call * 5))
            .collect();
        assert!(places.len() > 900, "{}", places.len());
    }
}
