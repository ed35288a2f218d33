//! From the allocator's word and the contents to a sign.

use super::{Doubt, Gone, Sign, fingerprint::FirstRead, state::State};

/// Intact identifying words of the owner's own writing that are enough where
/// the allocator says that the block is not free, but none of them is one that
/// a free destroys.
const ENOUGH: u32 = 2;

/// Judges a block. `read` are the words read both times, `same` those of them
/// that have not changed, `destroyed` those that no free leaves intact.
pub(super) fn judge(first: &FirstRead, state: State, read: u32, same: u32, destroyed: u32) -> Sign {
    if let State::Freed(how) = state {
        return Sign::Gone(how);
    }
    let identifying = first.identifying & read;
    if identifying == 0 {
        return Sign::Unknown(Doubt::Plain);
    }
    let intact = identifying & same;
    if intact & destroyed != 0 {
        return if intact == identifying {
            Sign::Alive
        } else {
            Sign::Mutated
        };
    }
    if intact == 0 {
        return Sign::Gone(Gone::Reused);
    }
    match state {
        _ if intact != identifying => Sign::Unknown(Doubt::Rewritten),
        State::Held if (intact & first.written).count_ones() >= ENOUGH => Sign::Alive,
        State::Held => Sign::Held,
        State::Untold { touched: true } => Sign::Unknown(Doubt::Rewritten),
        _ => Sign::Unchanged,
    }
}
