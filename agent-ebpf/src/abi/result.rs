//! Where a call's result can be read, as the cookie of a probe.
//!
//! | bits | |
//! | --- | --- |
//! | 0–7 | [`ResultCookie::KIND`] |
//! | 9 | as in [`super::heap::Cookie`] |
//! | 10–13 | number of the condition |
//! | 14 | the condition counts |
//! | 15 | the slot is counted from `rbp`, not `rsp` |
//! | 16–31 | the target's slot, as in [`super::heap::Cookie`] |
//! | 32–35 | register of the answer |
//! | 36–38 | kind of the answer |
//! | 39–48 | what is added to the register, signed |
//! | 49–63 | words from the register to the return address, signed |

use super::heap::Cookie;

/// What a call will return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// A register's value, by the number that x86-64 gives it, plus this.
    Register {
        /// `rax` 0 to `r15` 15.
        register: u8,
        /// Bytes.
        add: i16,
    },
    /// The word at that address.
    Memory {
        /// As above.
        register: u8,
        /// Bytes.
        add: i16,
    },
    /// Nothing: it failed.
    Null,
    /// It goes on as a call of another function, which is probed itself.
    HandedOver,
    /// That is not known.
    Unknown,
}

impl Answer {
    /// Whether the cookie has room for what is added.
    pub const fn fits(add: &i16) -> bool {
        *add >= -512 && *add < 512
    }
}

/// Where the return address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// So many words above the stack pointer.
    FromRsp(i16),
    /// So many words above `rbp`.
    FromRbp(i16),
}

/// When a result point at a branch speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Branch {
    /// Always.
    Any,
    /// If the branch with this condition is taken, or would be.
    Taken(u8),
}

/// The cookie of a result point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultCookie(pub u64);

const CONDITION: u32 = 10;
const CONDITIONAL: u64 = 1 << 14;
const FROM_RBP: u64 = 1 << 15;
const SLOT: u64 = 0xffff << 16;
const REGISTER: u32 = 32;
const ANSWER: u32 = 36;
const ADD: u32 = 39;
const WORDS: u32 = 49;

impl ResultCookie {
    /// In place of a function kind.
    pub const KIND: u64 = 11;
    /// [`Answer::Register`].
    pub const REGISTER: u8 = 0;
    /// [`Answer::Memory`].
    pub const MEMORY: u8 = 1;
    /// [`Answer::Null`].
    pub const NULL: u8 = 2;
    /// [`Answer::HandedOver`].
    pub const HANDED_OVER: u8 = 3;
    /// [`Answer::Unknown`].
    pub const UNKNOWN: u8 = 4;

    /// Packs a cookie; [`Self::of`] makes it a target's.
    pub const fn new(answer: Answer, slot: Slot, branch: Branch, stepped: bool) -> Self {
        let (kind, register, add) = match answer {
            Answer::Register { register, add } => (Self::REGISTER, register, add),
            Answer::Memory { register, add } => (Self::MEMORY, register, add),
            Answer::Null => (Self::NULL, 0, 0),
            Answer::HandedOver => (Self::HANDED_OVER, 0, 0),
            Answer::Unknown => (Self::UNKNOWN, 0, 0),
        };
        let (from, words) = match slot {
            Slot::FromRsp(words) => (0, words),
            Slot::FromRbp(words) => (FROM_RBP, words),
        };
        let when = match branch {
            Branch::Any => 0,
            Branch::Taken(condition) => CONDITIONAL | ((condition & 0xf) as u64) << CONDITION,
        };
        let stepped = if stepped { Cookie::STEPPED } else { 0 };
        Self(
            Self::KIND
                | stepped
                | when
                | from
                | ((register & 0xf) as u64) << REGISTER
                | (kind as u64) << ANSWER
                | ((add as u64) & 0x3ff) << ADD
                | ((words as u64) & 0x7fff) << WORDS,
        )
    }

    /// The same for the target in this slot.
    #[must_use]
    pub const fn of(self, slot: u32) -> Self {
        Self(self.0 & !SLOT | ((slot & 0xffff) as u64) << 16)
    }

    /// Whether it is what [`Self::new`] can have packed.
    pub const fn is_sound(self) -> bool {
        self.0 & 0xff == Self::KIND && self.0 & SLOT == 0 && self.answer() <= Self::UNKNOWN
    }

    /// Which kind of answer.
    pub const fn answer(self) -> u8 {
        (self.0 >> ANSWER & 7) as u8
    }

    /// Its register.
    pub const fn register(self) -> u8 {
        (self.0 >> REGISTER & 0xf) as u8
    }

    /// What is added to that, as a number of 64 bits.
    pub const fn add(self) -> u64 {
        ((self.0 << (54 - ADD)) as i64 >> 54) as u64
    }

    /// Bytes from the register below to the return address, as a number of 64
    /// bits.
    pub const fn distance(self) -> u64 {
        ((self.0 as i64 >> WORDS) * 8) as u64
    }

    /// The return address is found from `rbp`, not from the stack pointer.
    pub const fn from_rbp(self) -> bool {
        self.0 & FROM_RBP != 0
    }

    /// Whether it speaks with these processor flags: whether the branch's
    /// condition is met (Intel SDM, volume 1, appendix B).
    pub const fn holds(self, flags: u64) -> bool {
        if self.0 & CONDITIONAL == 0 {
            return true;
        }
        let condition = (self.0 >> CONDITION & 0xf) as u32;
        let (carry, parity, zero, sign, overflow) = (
            flags & 1 != 0,
            flags & 1 << 2 != 0,
            flags & 1 << 6 != 0,
            flags & 1 << 7 != 0,
            flags & 1 << 11 != 0,
        );
        let met = match condition >> 1 {
            0 => overflow,
            1 => carry,
            2 => zero,
            3 => carry || zero,
            4 => sign,
            5 => parity,
            6 => sign != overflow,
            _ => zero || sign != overflow,
        };
        met != (condition & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_and_unpacks() {
        for (add, words) in [(0, 0), (-512, -16384), (511, 16383), (16, 3), (-8, -1)] {
            let answer = Answer::Memory { register: 13, add };
            let cookie = ResultCookie::new(answer, Slot::FromRbp(words), Branch::Taken(13), false);
            assert_eq!(cookie.answer(), ResultCookie::MEMORY);
            assert_eq!(cookie.register(), 13);
            assert_eq!(cookie.add() as i64, i64::from(add));
            assert_eq!(cookie.distance() as i64, i64::from(words) * 8);
            assert!(cookie.from_rbp());
            assert!(cookie.is_sound());
            assert_eq!(Cookie(cookie.of(0xabc).0).slot(), 0xabc);
            assert!(!cookie.of(0xabc).is_sound());
            assert_eq!(u64::from(Cookie(cookie.0).kind()), ResultCookie::KIND);
        }
    }

    #[test]
    fn conditions_are_the_processors() {
        let at = |condition| {
            ResultCookie::new(
                Answer::Null,
                Slot::FromRsp(0),
                Branch::Taken(condition),
                false,
            )
        };
        let (carry, zero, sign, overflow) = (1, 1 << 6, 1 << 7, 1 << 11);
        // Each with flags that meet it and flags that do not.
        for (condition, met, not) in [
            (0, overflow, 0),
            (2, carry, zero),
            (4, zero, carry),
            (6, zero, sign),
            (6, carry, 0),
            (8, sign, carry),
            (10, 1 << 2, 1),
            (12, sign, sign | overflow),
            (14, zero | sign | overflow, 0),
        ] {
            assert!(at(condition).holds(met), "{condition}");
            assert!(!at(condition).holds(not), "{condition}");
            assert!(!at(condition | 1).holds(met), "{condition}");
            assert!(at(condition | 1).holds(not), "{condition}");
        }
        let always = ResultCookie::new(Answer::Null, Slot::FromRsp(1), Branch::Any, false);
        assert!(always.holds(0) && always.holds(u64::MAX));
    }
}
