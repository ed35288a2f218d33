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
    host::kernel,
    ledger::StackId,
};

/// What the switch of a followed thread takes longer, nanoseconds (`cargo
/// xtask bench`: 315, and 440 when it waits for a futex).
const SWITCH_NS: u64 = 450;
/// What a stack takes in addition.
const STACK_NS: u64 = 2500;
/// What the switch of any other thread takes longer meanwhile (130 there).
const STRANGERS_SWITCH_NS: u64 = 150;
/// Share of one processor that may go into following a process, and of every
/// processor that may go into the switches of all others.
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
pub(super) struct Debt {
    last: Option<(Instant, Spent)>,
    until: Option<Instant>,
}

/// Totals, of one process or of the host.
#[derive(Clone, Copy, Debug)]
struct Spent {
    switches: u64,
    ns: u64,
}

impl Spent {
    fn of(counts: WaitCounts) -> Self {
        Self {
            switches: counts.switches,
            ns: counts.switches * SWITCH_NS + counts.unwound * STACK_NS,
        }
    }

    fn of_the_host(switches: u64) -> Self {
        Self {
            switches,
            ns: switches * STRANGERS_SWITCH_NS,
        }
    }
}

impl Debt {
    /// Enters the totals as they stand; `share` of a processor may go into it.
    /// For how long to pause, and the switches a second that are the reason.
    fn enter(&mut self, now: Instant, spent: Spent, share: f64) -> Option<(Duration, f64)> {
        let (then, before) = self.last.replace((now, spent))?;
        let elapsed = now.duration_since(then).as_secs_f64();
        let cost = spent.ns.saturating_sub(before.ns) as f64 * 1e-9;
        if elapsed <= 0.0 || cost <= elapsed * share {
            return None;
        }
        let pause = Duration::from_secs_f64(cost / share - elapsed).min(LONGEST_PAUSE);
        self.until = Some(now + pause);
        self.last = None;
        let switches = spent.switches.saturating_sub(before.switches) as f64;
        Some((pause, switches / elapsed))
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

fn too_often(rate: f64) -> String {
    format!("{rate:.0} times a second, so waits are followed now and then only")
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
        if !self.strangers.is_paid(now) {
            return;
        }
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
            if let Some((pause, rate)) = following.debt.enter(now, Spent::of(counts), SHARE) {
                following.why_not = Some(format!("its threads switch {}", too_often(rate)));
                tracing::debug!(pid = id, ?pause, rate, "its waits are followed later again");
                self.capture.pause_waits(id);
            }
        }
        self.spare_strangers(now)
    }

    /// Follows nobody's waits for a while when the host switches so often that
    /// all others would pay too much.
    fn spare_strangers(&mut self, now: Instant) -> anyhow::Result<()> {
        let spent = Spent::of_the_host(self.capture.switches()?);
        let share = SHARE * f64::from(kernel::processors());
        let Some((pause, rate)) = self.strangers.enter(now, spent, share) else {
            return Ok(());
        };
        tracing::debug!(?pause, rate, "waits are followed later again");
        for (id, account) in &mut self.accounts {
            if account.waits.known.is_followed {
                account.waits.why_not =
                    Some(format!("this host's threads switch {}", too_often(rate)));
                self.capture.pause_waits(*id);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(switches: u64, unwound: u64) -> Spent {
        Spent::of(WaitCounts {
            switches,
            unwound,
            ..WaitCounts::default()
        })
    }

    #[test]
    fn busy_processes_are_paused_until_it_is_paid() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut debt = Debt::default();
        assert_eq!(debt.enter(start, spent(0, 0), SHARE), None);
        // A thousand switches and fifty stacks in a second: 0.6 ms.
        let now = start + second;
        assert_eq!(debt.enter(now, spent(1000, 50), SHARE), None);
        assert!(debt.is_paid(now));
        // A hundred thousand: 45 ms, of 2 that are allowed.
        let now = start + second * 2;
        let (pause, rate) = debt.enter(now, spent(101_000, 50), SHARE).unwrap();
        assert!(pause > second * 20 && pause < second * 23, "{pause:?}");
        assert!((rate - 100_000.0).abs() < 1.0, "{rate}");
        assert!(!debt.is_paid(start + second * 3));
        assert!(debt.is_paid(start + second * 30));
        // A pause is not counted as time in which nothing was spent.
        assert_eq!(
            debt.enter(start + second * 30, spent(101_000, 50), SHARE),
            None
        );
    }

    #[test]
    fn all_are_paused_when_the_host_pays_too_much() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut debt = Debt::default();
        let share = SHARE * 2.0;
        assert_eq!(debt.enter(start, Spent::of_the_host(0), share), None);
        let calm = Spent::of_the_host(20_000);
        assert_eq!(debt.enter(start + second, calm, share), None);
        let busy = Spent::of_the_host(220_000);
        let (pause, _) = debt.enter(start + second * 2, busy, share).unwrap();
        assert!(pause > second * 6 && pause < second * 7, "{pause:?}");
    }
}
