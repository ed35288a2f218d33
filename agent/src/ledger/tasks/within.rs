//! When something happened, as far as is known.

use std::time::Duration;

/// Something happened between two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Within {
    /// Not before; none: nobody knows for how long already.
    pub after: Option<Duration>,
    /// Not later.
    pub until: Duration,
}

impl Within {
    /// How long ago that is at `now`: at least, and at most.
    pub fn ago(self, now: Duration) -> (Duration, Option<Duration>) {
        let most = self.after.map(|after| now.saturating_sub(after));
        (now.saturating_sub(self.until), most)
    }
}

/// The same in eight bytes: milliseconds since a zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    after: u32,
    until: u32,
}

/// Nobody knows since when.
const OPEN: u32 = u32::MAX;

impl Packed {
    pub(super) fn of(after: Option<Duration>, until: Duration, zero: Duration) -> Self {
        let since = |at: Duration| at.saturating_sub(zero).as_millis();
        let up = until.saturating_sub(zero).as_micros().div_ceil(1000);
        Self {
            after: after.map_or(OPEN, |at| clamp(since(at))),
            until: clamp(up),
        }
    }

    /// The same with an unknown beginning.
    pub(super) fn open(self) -> Self {
        Self {
            after: OPEN,
            ..self
        }
    }

    /// When the last of two things happened, of which the other is known only
    /// to be no later than the last.
    pub(super) fn last_of(self, other: Self) -> Self {
        let after = match (self.after, other.after) {
            (OPEN, after) | (after, OPEN) => after,
            (one, other) => one.max(other),
        };
        Self {
            after,
            until: self.until.max(other.until),
        }
    }

    /// Longest time from here to `end`; at least, if the beginning is open.
    pub(super) fn longest_until(self, end: Self) -> Duration {
        let from = if self.after == OPEN {
            self.until
        } else {
            self.after
        };
        Duration::from_millis(u64::from(end.until.saturating_sub(from)))
    }

    pub(super) fn unpack(self, zero: Duration) -> Within {
        let at = |ms: u32| zero + Duration::from_millis(u64::from(ms));
        Within {
            after: (self.after != OPEN).then(|| at(self.after)),
            until: at(self.until),
        }
    }
}

fn clamp(ms: u128) -> u32 {
    u32::try_from(ms).unwrap_or(OPEN - 1).min(OPEN - 1)
}
