//! A stretch with probes on, watched from its first moment to its last.

use std::{fmt, time::Duration};

use super::{
    account::{Account, Terms},
    plan::{CHECK, Kind, LOOK, Plan, Rates, Scene, TRACE_CHECK},
    reading::{Profile, Reading},
};

/// How often permanent tracing's mean is looked at.
const SLICE: Duration = Duration::from_secs(2);
/// Its mean may become finer for so long.
const SETTLING: Duration = Duration::from_secs(10);
/// A first look sees so many calls, or takes ten times as long.
const ENOUGH: u64 = 200;
/// Shorter stretches tell no rates.
const TELLING: Duration = Duration::from_millis(4);

/// What a window's loop has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Check {
    /// Nothing; check again after so long.
    Stay {
        /// At most.
        again: Duration,
    },
    /// Set this sampling mean; check again after so long.
    Resample {
        /// In bytes.
        mean: u64,
        /// At most.
        again: Duration,
    },
    /// Take all probes off, now.
    Detach(Close),
}

/// Why a window ends. A sentence by `Display`.
#[derive(Clone, Debug, PartialEq)]
pub enum Close {
    /// As planned.
    Done {
        /// How long it was open.
        open: Duration,
    },
    /// Too hot for too long.
    Hot {
        /// Slowdown of late, percent.
        percent: f64,
        /// For so long, detaching included.
        time: Duration,
        /// Allowed so long.
        limit: Duration,
    },
    /// Nothing left to spend.
    Spent {
        /// Average slowdown of the target with this, percent.
        percent: f64,
        /// Allowed, percent.
        limit: f64,
    },
    /// Noticeable for too large a share of the time.
    Noticed {
        /// Noticeable above this, percent.
        percent: f64,
        /// Allowed share of the time, percent.
        limit: f64,
    },
    /// Children inherited the breakpoints.
    Forked {
        /// So many live.
        children: u32,
        /// What a malloc and free pair costs each of them, nanoseconds.
        cost: f64,
    },
    /// Paused, or memory pressure.
    Held(String),
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { open } => write!(f, "open for {} ms, as planned", open.as_millis()),
            Self::Hot {
                percent,
                time,
                limit,
            } => write!(
                f,
                "it was slowed by {percent:.0} %, and would have been for {} ms with the time to detach; {} ms are allowed",
                time.as_millis(),
                limit.as_millis()
            ),
            Self::Spent { percent, limit } => write!(
                f,
                "its average slowdown reached {percent:.2} %, and {limit:.2} % are allowed: the rest is kept to pay for detaching"
            ),
            Self::Noticed { percent, limit } => write!(
                f,
                "it was slowed by more than {percent:.0} % for {limit:.1} % of the time, which is all that is allowed"
            ),
            Self::Forked { children, cost } => write!(
                f,
                "{children} children inherited its breakpoints, at {cost:.0} ns for each malloc and free"
            ),
            Self::Held(sentence) => f.write_str(sentence),
        }
    }
}

/// Probes of one target, from the call to attach to the return of detach.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) plan: Plan,
    /// When the probes were asked for.
    asked: Duration,
    /// When all were on, and the counters then.
    opened: Option<(Duration, Reading)>,
    /// The decision to end it, and when.
    pub(super) close: Option<(Duration, Close)>,
    last: (Duration, Reading),
    /// What the rates are learnt from: begin and end of an undisturbed
    /// stretch, and its trap and running time.
    slice: Slice,
    /// Time above the limit: in all, or the latest stretch of permanent
    /// tracing.
    hot: f64,
    /// For how long, at most, the end of the last stretch may have been above
    /// it when the stretch as a whole was not.
    edge: f64,
    /// Slowdown between the last two readings.
    slowdown: f64,
    mean: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slice {
    from: (Duration, Reading),
    trapped: f64,
    running: f64,
    wall: f64,
}

impl Slice {
    fn new(at: Duration, reading: Reading) -> Self {
        Self {
            from: (at, reading),
            trapped: 0.0,
            running: 0.0,
            wall: 0.0,
        }
    }

    fn rates(&self, now: &Reading, account: &Account, profile: &Profile) -> Rates {
        Rates::measured(
            &now.since(&self.from.1),
            self.wall,
            self.trapped / self.running.max(1e-9),
            account,
            profile,
        )
    }
}

impl Window {
    pub(super) fn new(plan: Plan, now: Duration) -> Self {
        let nothing = Reading::default();
        Self {
            plan,
            asked: now,
            opened: None,
            close: None,
            last: (now, nothing),
            slice: Slice::new(now, nothing),
            hot: 0.0,
            edge: 0.0,
            slowdown: 0.0,
            mean: plan.mean,
        }
    }

    /// Enters what was spent since the reading before.
    pub(super) fn enter(
        &mut self,
        now: Duration,
        reading: &Reading,
        scene: &Scene<'_>,
        terms: Terms,
    ) -> Account {
        let mut account = scene.account.clone();
        let before = &self.last.1;
        let lanes = reading.lanes.max(1.0);
        let stretch = account.pass(now, reading.cpu, Some(lanes), terms);
        let own = scene
            .costs
            .spent(scene.profile, before, reading, scene.shared);
        // Children are supposed to allocate like their parent.
        let children = if scene.costs.children_pay() {
            let allocations = reading.allocations.saturating_sub(before.allocations) as f64;
            let each = (allocations * scene.costs.inherited * 1e-9).min(stretch.wall);
            each * f64::from(reading.children.max(before.children))
        } else {
            0.0
        };
        account.spend(own + children);
        self.slice.trapped += own;
        self.slice.running += stretch.running;
        self.slice.wall += stretch.wall;
        if stretch.wall > 0.0 {
            self.slowdown = own / stretch.running;
            if self.slowdown > scene.budget.hot() {
                self.hot += std::mem::take(&mut self.edge) + stretch.wall;
            } else {
                if self.plan.kind == Kind::Trace {
                    self.hot = 0.0;
                }
                self.edge = self.slowdown / scene.budget.hot() * stretch.wall;
            }
            if self.slowdown > scene.budget.noticed() {
                account.noticed -= stretch.wall;
            }
        }
        self.last = (now, *reading);
        account
    }

    /// The probes are on.
    pub(super) fn open(&mut self, now: Duration, reading: &Reading) {
        self.opened = Some((now, *reading));
        self.slice = Slice::new(now, *reading);
    }

    /// How long attaching took.
    pub(super) fn attached_in(&self) -> Option<Duration> {
        Some(self.opened?.0.saturating_sub(self.asked))
    }

    /// Open time, from the last probe on to the call to detach.
    pub(super) fn open_time(&self) -> Duration {
        match (&self.opened, &self.close) {
            (Some((opened, _)), Some((closed, _))) => closed.saturating_sub(*opened),
            (Some((opened, _)), None) => self.last.0.saturating_sub(*opened),
            (None, _) => Duration::ZERO,
        }
    }

    /// Judges after a reading was entered. `held` is why no probe may be on.
    pub(super) fn judge(
        &mut self,
        now: Duration,
        scene: &Scene<'_>,
        held: Option<String>,
        forced: bool,
    ) -> Check {
        if let Some((_, close)) = &self.close {
            return Check::Detach(close.clone());
        }
        if let Some(close) = self.reason_to_close(now, scene, held, forced) {
            self.close = Some((now, close.clone()));
            return Check::Detach(close);
        }
        let again = self.next_check(now, scene);
        match self.resample(scene, forced) {
            Some(mean) => Check::Resample { mean, again },
            None => Check::Stay { again },
        }
    }

    fn next_check(&self, now: Duration, scene: &Scene<'_>) -> Duration {
        if self.plan.kind == Kind::Trace {
            let left = scene
                .budget
                .window
                .saturating_sub(scene.costs.detach + CHECK);
            return if self.hot + self.edge > CHECK.as_secs_f64() / 2.0 {
                CHECK
            } else {
                TRACE_CHECK.min(left / 2).max(CHECK)
            };
        }
        let opened = self.opened.map_or(now, |(at, _)| at);
        let left = (opened + self.plan.open).saturating_sub(now);
        if left.is_zero() {
            return CHECK;
        }
        CHECK.min(left).max(Duration::from_millis(1))
    }

    fn reason_to_close(
        &self,
        now: Duration,
        scene: &Scene<'_>,
        held: Option<String>,
        forced: bool,
    ) -> Option<Close> {
        if let Some(sentence) = held {
            return Some(Close::Held(sentence));
        }
        let (account, budget, costs) = (scene.account, scene.budget, scene.costs);
        let children = self.last.1.children;
        if children > 0 && costs.children_pay() {
            return Some(Close::Forked {
                children,
                cost: costs.inherited,
            });
        }
        if forced {
            return None;
        }
        let coming = (costs.detach + CHECK * 2).as_secs_f64();
        if self.slowdown > budget.hot() && self.hot + coming > budget.window.as_secs_f64() {
            return Some(Close::Hot {
                percent: self.slowdown * 100.0,
                time: Duration::from_secs_f64(self.hot + costs.detach.as_secs_f64()),
                limit: budget.window,
            });
        }
        let lanes = account.lanes.max(self.last.1.lanes).max(1.0);
        let kept = match self.plan.kind {
            _ if self.plan.credit => f64::NEG_INFINITY,
            Kind::Look => 0.0,
            Kind::Survey => scene.tail(),
            // Enough to pay for the end at the slowdown of late, and in quiet
            // times for a burst.
            Kind::Trace => (self.slowdown.min(1.0) * coming * lanes).max(scene.burst()),
        };
        if account.balance < kept {
            return Some(Close::Spent {
                percent: account.slowdown() * 100.0,
                limit: budget.target_percent,
            });
        }
        if account.noticed < 0.0 && !self.plan.credit {
            return Some(Close::Noticed {
                percent: budget.noticed_percent,
                limit: budget.noticed_share_percent,
            });
        }
        let (opened, first) = self.opened.unwrap_or((now, self.last.1));
        let open = now.saturating_sub(opened);
        let calls = self.last.1.allocations.saturating_sub(first.allocations);
        if self.plan.kind == Kind::Look && calls < ENOUGH && open < LOOK * 10 {
            // It may have been waiting for a processor: a quiet target costs
            // nothing, and a longer look tells more.
            return None;
        }
        (open >= self.plan.open).then_some(Close::Done { open })
    }

    /// A better mean for permanent tracing.
    fn resample(&mut self, scene: &Scene<'_>, forced: bool) -> Option<u64> {
        let (now, reading) = self.last;
        if self.plan.kind != Kind::Trace
            || now.saturating_sub(self.slice.from.0) < SLICE
            || self.slice.running <= 0.0
        {
            return None;
        }
        let rates = self.slice.rates(&reading, scene.account, scene.profile);
        self.slice = Slice::new(now, reading);
        let better = if forced {
            scene.forced_trace(&rates)
        } else {
            // Otherwise the traps alone are too dear, and the account will
            // soon say so.
            scene.trace(&rates)?
        };
        let coarser = better.mean / 3 >= self.mean / 2 && better.mean > self.mean;
        // Finer at the beginning only: the rates were guessed high from few
        // calls. Later it gains little and mixes weights.
        let finer = better.mean < self.mean / 2 && self.open_time() < SETTLING;
        if !(coarser || finer) {
            return None;
        }
        self.mean = better.mean;
        Some(better.mean)
    }

    /// Remembers what the undisturbed stretch showed, when it has just ended.
    pub(super) fn learnt(&self, account: &Account, profile: &Profile) -> Option<(Rates, f64)> {
        if self.slice.wall < TELLING.as_secs_f64() {
            return None;
        }
        // As many as were running and shared the traps.
        let lanes = self.slice.running / self.slice.wall;
        let mut shared = account.clone();
        shared.lanes = lanes;
        Some((self.slice.rates(&self.last.1, &shared, profile), lanes))
    }
}
