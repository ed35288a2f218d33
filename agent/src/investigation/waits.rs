//! Follows the futex waits of a process as long as that costs it next to
//! nothing.
//!
//! They are followed in every mode alike, traced or surveyed, since no
//! breakpoint is needed and a wait that began before a window could not be
//! seen in it.

use std::time::{Duration, Instant};

use agent_ebpf::abi::futex::{Place, Wait, WaitCounts};

use super::Investigation;
use crate::{
    analysis::waits::{EndedWaits, OpenWait, Waits},
    capture::{TargetId, futex},
    ledger::StackId,
};

/// What a thread's switch takes longer, nanoseconds (`cargo xtask bench`).
const SWITCH_NS: f64 = 600.0;
/// What a stack takes in addition.
const STACK_NS: f64 = 2500.0;
/// Share of one processor that may go into it.
const SHARE: f64 = 0.002;
/// What was paid too much is waited for, so long at most.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Places that are looked at, those with the longest waits.
const MAX_PLACES: usize = 256;
/// Task ids count up from 1; what is larger is no id.
const MAX_TASK_ID: u64 = 1 << 44;

/// What is known of a process's waits, and whether they may be followed.
#[derive(Debug, Default)]
pub(super) struct Following {
    known: futex::Waits,
    /// CLOCK_MONOTONIC of that.
    at_ns: u64,
    debt: Debt,
    why_not: Option<String>,
}

/// What following has cost beyond what it may.
#[derive(Debug, Default)]
struct Debt {
    last: Option<(Instant, WaitCounts)>,
    until: Option<Instant>,
}

impl Debt {
    /// Enters the counters as they stand; for how long to pause, and why.
    fn enter(&mut self, now: Instant, counts: WaitCounts) -> Option<(Duration, String)> {
        let (then, before) = self.last.replace((now, counts))?;
        let elapsed = now.duration_since(then).as_secs_f64();
        let switches = counts.switches.saturating_sub(before.switches) as f64;
        let stacks = counts.unwound.saturating_sub(before.unwound) as f64;
        let cost = (switches * SWITCH_NS + stacks * STACK_NS) * 1e-9;
        if elapsed <= 0.0 || cost <= elapsed * SHARE {
            return None;
        }
        let pause = Duration::from_secs_f64(cost / SHARE - elapsed).min(LONGEST_PAUSE);
        self.until = Some(now + pause);
        self.last = None;
        let why = format!(
            "its threads switch {:.0} times a second, so waits are followed now and then only",
            switches / elapsed
        );
        Some((pause, why))
    }

    fn is_paid(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}

impl Following {
    /// The process runs another program.
    pub(super) fn restart(&mut self) {
        self.known = futex::Waits::default();
    }

    /// Losses that are not zero, by cause.
    pub(super) fn lost(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = &self.known.counts;
        [
            ("waits_without_stack", counts.without_stack),
            ("waits_without_room", counts.unrecorded),
            ("wait_stacks_untold", counts.untold),
            (
                "wait_places_not_looked_at",
                self.known.totals.len().saturating_sub(MAX_PLACES) as u64,
            ),
        ]
        .into_iter()
    }

    /// What analysis needs to know of them; none when nothing was followed.
    pub(super) fn waits(&self) -> Option<Waits> {
        let known = &self.known;
        if known.followed.is_zero() {
            return None;
        }
        // Each costs a look at its functions' names.
        let mut totals: Vec<_> = known.totals.iter().collect();
        totals.sort_by_key(|(_, totals)| std::cmp::Reverse(totals.total_ns));
        let ended = totals
            .into_iter()
            .take(MAX_PLACES)
            .map(|(place, totals)| EndedWaits {
                stack: stack(place),
                task: task(place),
                contended: place.hints & Place::CONTENDED != 0,
                count: totals.count,
                total: Duration::from_nanos(totals.total_ns),
                longest: Duration::from_nanos(totals.longest_ns),
            });
        let open = |(thread, wait): &(u32, Wait), earlier: bool| OpenWait {
            thread: *thread,
            stack: stack(&wait.place),
            task: task(&wait.place),
            contended: wait.place.hints & Place::CONTENDED != 0,
            age: Duration::from_nanos(self.at_ns.saturating_sub(wait.began_ns)),
            earlier,
        };
        let late = known.open.iter().map(|wait| open(wait, false));
        let early = known.earlier.iter().map(|wait| open(wait, true));
        Some(Waits {
            ended: ended.collect(),
            open: late.chain(early).collect(),
            followed: known.followed,
            why_not: self.why_not.clone(),
        })
    }
}

fn stack(place: &Place) -> Option<StackId> {
    (place.stack != 0).then_some(StackId(place.stack))
}

fn task(place: &Place) -> Option<u64> {
    (1..MAX_TASK_ID).contains(&place.task).then_some(place.task)
}

impl Investigation {
    /// Follows the waits of every process that can afford it. Not before the
    /// first tick, as with page faults.
    pub(super) fn follow_waits(&mut self) {
        let now = Instant::now();
        let running = self.accounts.values().filter(|account| !account.ended);
        let ids: Vec<TargetId> = running
            .filter(|account| account.waits.debt.is_paid(now))
            .map(|account| account.id)
            .collect();
        for id in ids {
            let followed = self.capture.follow_waits(id);
            if let (Err(error), Some(account)) = (followed, self.accounts.get_mut(&id)) {
                let why = format!("{error:#}");
                tracing::debug!(pid = id, error = why, "futex waits are not followed");
                account.waits.why_not = Some(why);
            }
        }
    }

    /// Enters the waits of every process.
    pub(super) fn read_waits(&mut self, now_ns: u64) -> anyhow::Result<()> {
        let now = Instant::now();
        for (id, known) in self.capture.waits()? {
            let Some(account) = self.accounts.get_mut(&id) else {
                continue;
            };
            // What a process waited for last is known until its end only.
            let nobody = known.open.is_empty() && known.earlier.is_empty();
            if account.closed || (account.ended && nobody) {
                let waits = &mut account.waits.known;
                (waits.totals, waits.counts) = (known.totals, known.counts);
                continue;
            }
            let counts = known.counts;
            let following = &mut account.waits;
            following.at_ns = now_ns;
            let is_followed = known.is_followed;
            following.known = known;
            if !is_followed {
                continue;
            }
            if let Some((pause, why)) = following.debt.enter(now, counts) {
                tracing::debug!(
                    pid = id,
                    ?pause,
                    why,
                    "futex waits are followed later again"
                );
                following.why_not = Some(why);
                self.capture.pause_waits(id);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(switches: u64, unwound: u64) -> WaitCounts {
        WaitCounts {
            switches,
            unwound,
            ..WaitCounts::default()
        }
    }

    #[test]
    fn busy_processes_are_paused_until_it_is_paid() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut debt = Debt::default();
        assert_eq!(debt.enter(start, counts(0, 0)), None);
        // A thousand switches and fifty stacks in a second: 0.7 ms.
        assert_eq!(debt.enter(start + second, counts(1000, 50)), None);
        assert!(debt.is_paid(start + second));
        // A hundred thousand: 60 ms, of 2 that are allowed.
        let (pause, why) = debt.enter(start + second * 2, counts(101_000, 50)).unwrap();
        assert!(pause > second * 25 && pause < second * 32, "{pause:?}");
        assert!(why.contains("100000 times"), "{why}");
        assert!(!debt.is_paid(start + second * 3));
        assert!(debt.is_paid(start + second * 40));
    }
}
