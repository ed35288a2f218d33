//! One page of code against the file that it comes from.

use crate::host::memory::PAGE;

type Bytes = [u8; PAGE as usize];

/// The breakpoint instruction, `int3`.
const INT3: u8 = 0xcc;
/// `call` with a displacement of four bytes.
const CALL: u8 = 0xe8;
/// From 6.18 on, the kernel replaces this instruction by a call into a page of
/// its own once a breakpoint there has been hit (`arch/x86/kernel/uprobes.c`,
/// `is_nop5`, `swbp_optimize`).
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];
/// Name of that page's mapping; a process cannot give it to its own memory.
pub(super) const TRAMPOLINE: &[u8] = b"[uprobes-trampoline]";

/// How a page differs from its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Points without a breakpoint.
    pub(super) missing: usize,
    /// Breakpoints, at these points and elsewhere.
    pub(super) there: usize,
    /// The first byte that is another for any other reason.
    pub(super) changed: Option<usize>,
}

/// Compares the page at `address` of a process with its file. `points` are
/// where breakpoints are to be, sorted. `is_trampoline` tells the kernel's
/// page of calls.
///
/// A breakpoint of somebody else is one more byte: whoever traces the process
/// by the kernel shares its pages with us.
pub(super) fn compare(
    page: &Bytes,
    file: &Bytes,
    points: &[usize],
    address: u64,
    is_trampoline: impl Fn(u64) -> bool,
) -> State {
    let mut state = State {
        missing: points.len(),
        ..State::default()
    };
    let mut at = 0;
    while let (Some(here), Some(there)) = (page.get(at..), file.get(at..)) {
        let same = here.iter().zip(there).take_while(|(a, b)| a == b).count();
        at += same;
        let (Some(here), Some(there)) = (here.get(same..), there.get(same..)) else {
            break;
        };
        let (Some(first), Some(_)) = (here.first(), there.first()) else {
            break;
        };
        let call = there.starts_with(&NOP5)
            && is_call(here, address.wrapping_add(at as u64), &is_trampoline);
        if !call && *first != INT3 {
            state.changed = Some(at);
            break;
        }
        state.there += 1;
        if points.binary_search(&at).is_ok() {
            state.missing -= 1;
        }
        at += if call { NOP5.len() } else { 1 };
    }
    state
}

/// A call into the kernel's page, or on the way to one: its last four bytes
/// are written while the first is a breakpoint.
fn is_call(code: &[u8], address: u64, is_trampoline: impl Fn(u64) -> bool) -> bool {
    let [CALL | INT3, a, b, c, d, ..] = *code else {
        return false;
    };
    let by = i64::from(i32::from_le_bytes([a, b, c, d]));
    is_trampoline(
        address
            .wrapping_add(NOP5.len() as u64)
            .wrapping_add_signed(by),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x7f00_0000_1000;

    fn page(changes: &[(usize, &[u8])]) -> Box<Bytes> {
        let mut page = Box::new([0x90; PAGE as usize]);
        for (at, bytes) in changes {
            page[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        page
    }

    fn state(page: &Bytes, file: &Bytes, points: &[usize]) -> State {
        compare(page, file, points, AT, |target| target == AT - 0x1000)
    }

    #[test]
    fn breakpoints_are_counted_and_missed() {
        let file = page(&[]);
        assert_eq!(
            state(&file, &file, &[5, 9]),
            State {
                missing: 2,
                there: 0,
                changed: None
            }
        );
        let probed = page(&[(5, &[INT3]), (4095, &[INT3])]);
        assert_eq!(
            state(&probed, &file, &[5, 9, 4095]),
            State {
                missing: 1,
                there: 2,
                changed: None
            }
        );
        // Somebody else's.
        let shared = page(&[(5, &[INT3]), (7, &[INT3])]);
        assert_eq!(
            state(&shared, &file, &[5]),
            State {
                missing: 0,
                there: 2,
                changed: None
            }
        );
    }

    #[test]
    fn a_hook_is_no_breakpoint() {
        let file = page(&[]);
        let hooked = page(&[(5, &[INT3]), (9, &[0xe9, 1, 2, 3, 4])]);
        assert_eq!(state(&hooked, &file, &[5]).changed, Some(9));
        let last = page(&[(4095, &[0xe9])]);
        assert_eq!(state(&last, &file, &[]).changed, Some(4095));
        // A jump in place of the breakpoint.
        let replaced = page(&[(5, &[0xe9, 1, 2, 3, 4])]);
        assert_eq!(state(&replaced, &file, &[5]).changed, Some(5));
    }

    /// The states of a probe that the kernel makes a call of.
    #[test]
    fn a_call_into_the_kernels_page_is_a_breakpoint() {
        let file = page(&[(16, &NOP5)]);
        let by = (-0x1000 - 16 - 5i32).to_le_bytes();
        let call = |first: u8| [first, by[0], by[1], by[2], by[3]];
        let whole = State {
            missing: 0,
            there: 1,
            changed: None,
        };
        for code in [call(CALL), call(INT3), [INT3, 0x1f, 0x44, 0, 0]] {
            assert_eq!(state(&page(&[(16, &code)]), &file, &[16]), whole);
        }
        let elsewhere = page(&[(16, &[CALL, 1, 2, 3, 4])]);
        assert_eq!(state(&elsewhere, &file, &[16]).changed, Some(16));
        let no_nop = page(&[(16, &call(CALL))]);
        assert_eq!(state(&no_nop, &page(&[]), &[16]).changed, Some(16));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(
            changes in proptest::collection::vec((0usize..4096, proptest::prelude::any::<u8>()), 0..20),
            points in proptest::collection::btree_set(0usize..5000, 0..20),
        ) {
            let file = page(&[(4093, &[0x0f, 0x1f, 0x44])]);
            let mut other = file.clone();
            for (at, byte) in changes {
                other[at] = byte;
            }
            let points: Vec<usize> = points.into_iter().collect();
            let state = state(&other, &file, &points);
            proptest::prop_assert!(state.missing <= points.len());
        }
    }
}
