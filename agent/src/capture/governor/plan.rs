//! What to do with a target whose rates are known.
//!
//! A block is recorded with probability p, which costs `base + p × recording`
//! per allocation. Leaked blocks caught per second are proportional to p times
//! the share of the time in which windows are open, and the best p within the
//! limits is chosen by that product: mostly 1, because the traps have to be
//! paid anyway.

use std::time::Duration;

use super::{
    account::Account,
    budget::Budget,
    costs::Costs,
    reading::{Profile, Reading},
};
use agent_ebpf::abi::heap::Target;

/// How often a window is looked at.
pub(super) const CHECK: Duration = Duration::from_millis(10);
/// How often a permanently traced target is.
pub(super) const TRACE_CHECK: Duration = Duration::from_millis(100);
/// The first window, which only counts.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// Longest window; what is cheaper than that is traced for good.
const LONGEST: f64 = 1.0;
/// Longest window that users of a target would notice: for the same share of
/// the time, many short ones tell more than a few long ones.
pub(super) const SHORT: Duration = Duration::from_millis(100);
/// Pause after a window, at least: others want one too, and the blocks of the
/// last ones have to be read again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// Blocks that one window may record: their table is shared.
const RECORDS: f64 = 65_536.0;
/// Recording less than this share finds nothing in a window.
const LEAST: f64 = 0.002;
/// A window's looked-at slowdown may differ from the planned one.
const SLACK: f64 = 1.25;
/// Permanent tracing is begun below this share of the budget, for traps alone.
const TRACE_BASE: f64 = 0.6;
/// Running seconds until an account has to pay for everything.
const YOUNG: f64 = 60.0;
/// And recording fills it up to that.
const TRACE_FULL: f64 = 0.8;

/// What a target does untraced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    /// Allocations per second.
    pub(super) allocations: f64,
    /// Bytes of an average one.
    pub(super) size: f64,
    /// Frees per allocation.
    pub(super) frees: f64,
    /// Hits of single-stepped probes per allocation.
    pub(super) stepped: f64,
}

impl Rates {
    /// Slowdown when an allocation costs so many seconds.
    ///
    /// A thread that runs for a share u of the time and needs r seconds for
    /// traps per second of its work has 1 − u to spare; beyond that, work and
    /// traps share the time.
    pub(super) fn slowdown(&self, per_allocation: f64, account: &Account) -> f64 {
        let load = self.allocations * per_allocation / account.lanes.max(1.0);
        load / (account.busy() + load).max(1.0)
    }

    /// The opposite: seconds per allocation that give this slowdown.
    fn affordable(&self, slowdown: f64, account: &Account) -> f64 {
        let busy = account.busy();
        let load = if slowdown <= 1.0 - busy {
            slowdown
        } else {
            slowdown * busy / (1.0 - slowdown).max(1e-6)
        };
        load * account.lanes.max(1.0) / self.allocations.max(1e-9)
    }

    /// From what was counted in `stretch` seconds of which traps took the
    /// share `slowdown`. Few counts are taken for as many as they may stand
    /// for.
    pub(super) fn measured(
        seen: &Reading,
        stretch: f64,
        slowdown: f64,
        account: &Account,
        profile: &Profile,
    ) -> Self {
        let counted = seen.allocations as f64;
        let upper = counted + 2.0 * counted.sqrt() + 2.0;
        let slowdown = slowdown.clamp(0.0, 0.99);
        let busy = account.busy();
        // How much slower the work went on under the traps.
        let stretched = if slowdown <= 1.0 - busy {
            1.0
        } else {
            busy / (1.0 - slowdown)
        };
        let calls = counted.max(1.0);
        // A program that only frees, or only allocates, may turn.
        let frees = (seen.frees as f64 / calls).clamp(1.0, 4.0);
        let unseen = |stepped: bool, wanted: f64, seen: u64| {
            if stepped {
                (wanted - seen as f64 / calls).max(0.0)
            } else {
                0.0
            }
        };
        Self {
            allocations: upper / stretch.max(1e-3) * stretched.max(1.0),
            size: if seen.allocations == 0 {
                64.0
            } else {
                (seen.allocated_bytes as f64 / calls).max(1.0)
            },
            frees,
            stepped: seen.stepped as f64 / calls
                + unseen(profile.stepped_allocations, 1.0, seen.allocations)
                + unseen(profile.stepped_frees, frees, seen.frees),
        }
    }

    /// Joined with newer ones: up at once, down slowly.
    pub(super) fn joined(self, newer: Self) -> Self {
        let slow = |old: f64, new: f64| new.max(0.6 * old + 0.4 * new);
        Self {
            allocations: slow(self.allocations, newer.allocations),
            size: newer.size,
            frees: newer.frees,
            stepped: newer.stepped,
        }
    }
}

/// A planned stretch of probing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    /// Sampling mean in bytes.
    pub(super) mean: u64,
    /// Time between attach and detach; none for permanent tracing.
    pub(super) open: Duration,
    /// Slowdown expected meanwhile.
    pub(super) slowdown: f64,
    /// Trap time that must be there before.
    pub(super) needs: f64,
    /// Noticeable time that must be there before.
    pub(super) needs_noticed: f64,
    /// Seconds from one window to the next in the long run.
    pub(super) period: f64,
    /// Spent before it is earned; short, and once.
    pub(super) credit: bool,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// To learn the rates.
    Look,
    /// To catch blocks.
    Survey,
    /// For good.
    Trace,
}

/// All that planning depends on.
pub(super) struct Scene<'a> {
    pub(super) budget: &'a Budget,
    pub(super) costs: &'a Costs,
    pub(super) profile: &'a Profile,
    pub(super) account: &'a Account,
    /// Another target's returns are probed in the same file.
    pub(super) shared: bool,
}

impl Scene<'_> {
    /// Time with probes on besides the open time of a window.
    pub(super) fn latency(&self) -> Duration {
        self.costs.attach + self.costs.detach
    }

    /// The trap time that can come after the decision to detach, at worst.
    pub(super) fn tail(&self) -> f64 {
        (self.costs.detach + CHECK * 3).as_secs_f64() * self.account.lanes.max(1.0)
    }

    /// The longest open time of a window whose slowdown is not limited.
    pub(super) fn hot_open(&self) -> Option<Duration> {
        self.budget
            .window
            .checked_sub(self.latency() + CHECK * 2)
            .filter(|open| *open >= LOOK)
    }

    pub(super) fn look() -> Plan {
        Plan {
            kind: Kind::Look,
            mean: Target::COUNT_ONLY,
            open: LOOK,
            slowdown: 0.0,
            // A debt is repaid first.
            needs: 0.0,
            needs_noticed: 0.0,
            period: 0.0,
            credit: true,
        }
    }

    fn base(&self, rates: &Rates) -> f64 {
        self.costs.pair(rates.frees, rates.stepped, self.shared)
    }

    /// Slowdown by traps alone.
    pub(super) fn bare(&self, rates: &Rates) -> f64 {
        rates.slowdown(self.base(rates), self.account)
    }

    /// The share of allocations that may be recorded at a slowdown.
    fn share(&self, rates: &Rates, slowdown: f64) -> f64 {
        let rest = rates.affordable(slowdown, self.account) - self.base(rates);
        (rest / self.costs.recording(self.profile)).clamp(0.0, 1.0)
    }

    /// Permanent tracing, when the budget has room for it.
    pub(super) fn trace(&self, rates: &Rates) -> Option<Plan> {
        let target = self.budget.target();
        (self.bare(rates) <= target * TRACE_BASE)
            .then(|| self.tracing(rates, self.share(rates, target * TRACE_FULL)))
            .filter(|plan| plan.slowdown > 0.0)
    }

    /// Permanent tracing whatever it costs; recording adds half of what the
    /// traps cost at most.
    pub(super) fn forced_trace(&self, rates: &Rates) -> Plan {
        let half = self.base(rates) / 2.0 / self.costs.recording(self.profile);
        let share = self
            .share(rates, self.budget.target() * TRACE_FULL)
            .max(half)
            .min(1.0);
        self.tracing(rates, share)
    }

    fn tracing(&self, rates: &Rates, share: f64) -> Plan {
        let cost = self.base(rates) + share * self.costs.recording(self.profile);
        Plan {
            kind: Kind::Trace,
            mean: mean_for(share, rates.size),
            open: Duration::MAX,
            slowdown: rates.slowdown(cost, self.account),
            needs: self.burst(),
            needs_noticed: 0.0,
            period: 0.0,
            credit: false,
        }
    }

    /// Trap time that permanent tracing keeps back, for a burst that begins
    /// right after a look at the target. Young accounts have it on credit; as
    /// they grow older, what is not spent of the budget comes to pay for it.
    pub(super) fn burst(&self) -> f64 {
        let lanes = self.account.lanes.max(1.0);
        if self.account.running < YOUNG * lanes {
            return 0.0;
        }
        let unplanned = self.budget.target_percent / 100.0 - self.budget.target();
        let price = (TRACE_CHECK + self.costs.detach + CHECK * 2).as_secs_f64();
        (price.min(self.most()) * lanes - self.account.running * unplanned).max(0.0)
    }

    /// The windows that catch most.
    pub(super) fn survey(&self, rates: &Rates) -> Option<Plan> {
        let limits = [1.0, self.budget.hot() * 0.8, self.budget.noticed() * 0.8];
        let mut best: Option<(f64, Plan)> = None;
        for limit in limits {
            let share = if limit >= 1.0 {
                1.0
            } else {
                self.share(rates, limit)
            };
            let Some((score, plan)) = self.windows(rates, share) else {
                continue;
            };
            if best.as_ref().is_none_or(|(least, _)| score > *least) {
                best = Some((score, plan));
            }
        }
        best.map(|(_, plan)| plan)
    }

    /// The first window that catches blocks is as short as a hot one, and on
    /// credit: a minute of observation would otherwise wait for half of it.
    /// Not when it would be as dear as half a window that stops the target.
    pub(super) fn first(&self, plan: Plan) -> Plan {
        let open = plan.open.min(self.hot_open().unwrap_or(LOOK));
        let lanes = self.account.lanes.max(1.0);
        let spent = plan.slowdown * (open + self.latency()).as_secs_f64() * lanes;
        if spent > self.budget.window.as_secs_f64() / 2.0 * self.account.earning() {
            return plan;
        }
        Plan {
            open,
            needs: 0.0,
            credit: true,
            ..plan
        }
    }

    /// Windows that record this share, and the share of blocks they catch.
    fn windows(&self, rates: &Rates, share: f64) -> Option<(f64, Plan)> {
        if share < LEAST {
            return None;
        }
        let lanes = self.account.lanes.max(1.0);
        let cost = self.base(rates) + share * self.costs.recording(self.profile);
        let slowdown = rates.slowdown(cost, self.account).max(1e-9);
        let latency = self.latency().as_secs_f64();
        let hottest = self.hot_open()?.as_secs_f64();
        let mut open = if slowdown > self.budget.hot() * 0.85 {
            hottest
        } else {
            LONGEST
        };
        // No dearer than what is saved up at most, which is a hot window.
        let most = self.budget.window.as_secs_f64() / (slowdown * SLACK);
        open = open.min((most - latency).max(hottest));
        let noticeable = slowdown > self.budget.noticed() * 0.9;
        if noticeable {
            let most = self.most_noticed() - (CHECK * 3).as_secs_f64();
            open = open.min((most - latency).max(hottest));
            if self.budget.noticed_share() < 1.0 {
                open = open.min(SHORT.as_secs_f64());
            }
        }
        // Fewer records rather than a table that overflows.
        let rate = slowdown * lanes / cost;
        let share = share.min(RECORDS / (rate * open).max(1.0));
        let cost = self.base(rates) + share * self.costs.recording(self.profile);
        let slowdown = rates.slowdown(cost, self.account).max(1e-9);
        let total = open + latency;
        let spent = slowdown * total * lanes;
        let earning = self.budget.target() * self.account.earning();
        let mut period = (spent / earning).max(total + PAUSE.as_secs_f64());
        if noticeable {
            period = period.max(total / self.budget.noticed_share());
        }
        let plan = Plan {
            kind: Kind::Survey,
            mean: mean_for(share, rates.size),
            open: Duration::from_secs_f64(open),
            slowdown,
            needs: spent * SLACK + self.tail(),
            needs_noticed: if noticeable {
                total + (CHECK * 3).as_secs_f64()
            } else {
                self.costs.detach.as_secs_f64()
            },
            period,
            credit: false,
        };
        Some((share * open / period, plan))
    }

    /// Most noticeable time that is saved up: a few hot windows.
    pub(super) fn most_noticed(&self) -> f64 {
        self.budget.window.as_secs_f64() * 4.0
    }

    /// Most trap time that is saved up, per lane.
    pub(super) fn most(&self) -> f64 {
        self.budget.window.as_secs_f64() * SLACK + self.tail() / self.account.lanes.max(1.0)
    }
}

/// The sampling mean that records this share of blocks of a size.
fn mean_for(share: f64, size: f64) -> u64 {
    if share >= 0.999 {
        return 1;
    }
    let mean = -size / (-share.max(1e-9)).ln_1p();
    (mean as u64).clamp(1, 1 << 40)
}
