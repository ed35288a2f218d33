//! Whom the daemon follows, and for how long. Pure; times are passed in.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use crate::host::population::Identity;

/// A process that does not grow any more, and of which nothing was found, is
/// followed for so long, so that its blocks can show their age.
const AFTER_GROWTH: Duration = Duration::from_mins(15);
/// Every one is followed for so long, whoever waits.
const LEAST: Duration = Duration::from_mins(5);
/// One that cannot be followed is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_mins(30);
/// Refusals that are remembered.
const MAX_REFUSED: usize = 1024;

/// A followed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pursuit {
    pub(super) identity: Identity,
    /// Since when it is followed.
    since: Duration,
    /// When it was a suspect the last time.
    grew: Duration,
    /// It is followed whether it grows or not.
    pinned: bool,
    /// Something was found in it at the last judgement.
    pub(super) found: bool,
    /// When it was judged the last time.
    pub(super) judged: Duration,
}

/// The followed processes.
#[derive(Debug, Default)]
pub(super) struct Pursuits {
    followed: BTreeMap<u32, Pursuit>,
    refused: HashMap<Identity, Duration>,
}

impl Pursuits {
    /// Notes that a process is followed from now on.
    pub(super) fn begin(&mut self, identity: Identity, pinned: bool, now: Duration) {
        let pursuit = Pursuit {
            identity,
            since: now,
            grew: now,
            pinned,
            found: false,
            judged: now,
        };
        self.followed.insert(identity.pid, pursuit);
    }

    /// Notes that it is followed no more.
    pub(super) fn end(&mut self, pid: u32) -> Option<Pursuit> {
        self.followed.remove(&pid)
    }

    /// Notes that a process cannot be followed.
    pub(super) fn refuse(&mut self, identity: Identity, now: Duration) {
        if self.refused.len() >= MAX_REFUSED {
            self.refused
                .retain(|_, since| now.saturating_sub(*since) < ASK_AGAIN);
        }
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(identity, now);
        }
    }

    /// Forgets refusals, as settings have changed.
    pub(super) fn ask_again(&mut self) {
        self.refused.clear();
    }

    /// Whether a process may be asked for now.
    pub(super) fn may_follow(&self, identity: Identity, now: Duration) -> bool {
        let refused = self
            .refused
            .get(&identity)
            .is_some_and(|since| now.saturating_sub(*since) < ASK_AGAIN);
        !refused && !self.followed.contains_key(&identity.pid)
    }

    /// Notes that a followed process still grows.
    pub(super) fn grows(&mut self, identity: Identity, now: Duration) {
        if let Some(pursuit) = self.followed.get_mut(&identity.pid) {
            pursuit.grew = now;
        }
    }

    /// A followed process.
    pub(super) fn get_mut(&mut self, pid: u32) -> Option<&mut Pursuit> {
        self.followed.get_mut(&pid)
    }

    /// The followed processes.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pursuit> {
        self.followed.values()
    }

    /// Whom to give up first: of those of which nothing was found, the newest.
    pub(super) fn least(&self) -> Option<Identity> {
        self.followed
            .values()
            .min_by_key(|pursuit| (pursuit.found, pursuit.pinned, Reverse(pursuit.since)))
            .map(|pursuit| pursuit.identity)
    }

    /// How many are followed.
    pub(super) fn len(&self) -> usize {
        self.followed.len()
    }

    /// Whose judgement is longest ago, if that is `period` or more.
    pub(super) fn to_judge(&self, now: Duration, period: Duration) -> Option<u32> {
        self.followed
            .values()
            .filter(|pursuit| now.saturating_sub(pursuit.judged) >= period)
            .min_by_key(|pursuit| pursuit.judged)
            .map(|pursuit| pursuit.identity.pid)
    }

    /// Those that need not be followed any more; with `waiting`, also one that
    /// has had its time.
    pub(super) fn to_release(&self, now: Duration, waiting: bool) -> Vec<u32> {
        let idle = |pursuit: &&Pursuit| !pursuit.pinned && !pursuit.found;
        let calm = |pursuit: &Pursuit| now.saturating_sub(pursuit.grew);
        let mut over: Vec<u32> = self
            .followed
            .values()
            .filter(idle)
            .filter(|pursuit| calm(pursuit) >= AFTER_GROWTH)
            .map(|pursuit| pursuit.identity.pid)
            .collect();
        if over.is_empty() && waiting {
            over.extend(
                self.followed
                    .values()
                    .filter(idle)
                    .filter(|pursuit| {
                        now.saturating_sub(pursuit.since) >= LEAST && !calm(pursuit).is_zero()
                    })
                    .max_by_key(|pursuit| calm(pursuit))
                    .map(|pursuit| pursuit.identity.pid),
            );
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32) -> Identity {
        Identity { pid, start_time: 7 }
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_mins(minutes)
    }

    #[test]
    fn who_stops_growing_is_released_in_the_end() {
        let mut pursuits = Pursuits::default();
        pursuits.begin(process(1), false, minutes(0));
        pursuits.begin(process(2), true, minutes(0));
        pursuits.begin(process(3), false, minutes(0));
        pursuits.grows(process(1), minutes(10));
        if let Some(pursuit) = pursuits.get_mut(3) {
            pursuit.found = true;
        }
        assert!(pursuits.to_release(minutes(20), false).is_empty());
        assert_eq!(pursuits.to_release(minutes(25), false), [1]);
        // Somebody waits: the calmest goes, but not before its time.
        assert!(pursuits.to_release(minutes(4), true).is_empty());
        assert_eq!(pursuits.to_release(minutes(12), true), [1]);
    }

    #[test]
    fn findings_are_given_up_last() {
        let mut pursuits = Pursuits::default();
        assert_eq!(pursuits.least(), None);
        pursuits.begin(process(7), false, minutes(0));
        pursuits.begin(process(8), true, minutes(3));
        pursuits.begin(process(9), false, minutes(1));
        pursuits.begin(process(1), false, minutes(2));
        assert_eq!(pursuits.least(), Some(process(1)));
        if let Some(pursuit) = pursuits.get_mut(1) {
            pursuit.found = true;
        }
        for (pid, next) in [(9, 7), (7, 8), (8, 1)] {
            assert_eq!(pursuits.least(), Some(process(pid)));
            pursuits.end(pid);
            assert_eq!(pursuits.least(), Some(process(next)));
        }
    }

    #[test]
    fn refusals_hold_for_a_while() {
        let mut pursuits = Pursuits::default();
        assert!(pursuits.may_follow(process(1), minutes(0)));
        pursuits.refuse(process(1), minutes(0));
        assert!(!pursuits.may_follow(process(1), minutes(1)));
        assert!(pursuits.may_follow(process(1), minutes(31)));
        pursuits.begin(process(1), false, minutes(31));
        assert!(!pursuits.may_follow(process(1), minutes(32)));
    }

    #[test]
    fn the_longest_unjudged_is_judged() {
        let mut pursuits = Pursuits::default();
        pursuits.begin(process(1), false, minutes(0));
        pursuits.begin(process(2), false, minutes(1));
        assert_eq!(pursuits.to_judge(minutes(1), minutes(2)), None);
        assert_eq!(pursuits.to_judge(minutes(3), minutes(2)), Some(1));
    }
}
