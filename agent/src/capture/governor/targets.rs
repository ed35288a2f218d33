// long because the states of one target and every step between them
//! Decisions on targets: which mode, when, and why.

use std::time::Duration;

use super::{
    Account, Budget, Check, Close, Costs, Decision, Governor, Kind, Mode, Plan, Profile, Reading,
    Slot, TargetId, Window, Wish,
    account::Terms,
    plan::{self, Rates, Scene},
    room::{ASK_FOR_ROOM, Waiting},
};

/// A target that cannot be surveyed now is asked about again after so long.
const ASK_AGAIN: Duration = Duration::from_mins(10);
/// A host whose probes were slow to come off is tried again after so long.
const SLOW_AGAIN: Duration = Duration::from_mins(1);
/// Windows in a row that a fork has ended before the target counts as one
/// that forks often.
const FORKED_WINDOWS: u32 = 3;
/// Longest pause after that.
const FORK_PAUSE: Duration = Duration::from_hours(6);
/// Permanent tracing that proved too dear is tried again after so long.
const TRACE_PAUSE: Duration = Duration::from_mins(1);
/// Longest of such pauses.
const TRACE_PAUSE_MAX: Duration = Duration::from_hours(1);
/// Windows are staggered by this much.
const STAGGER: Duration = Duration::from_millis(50);
/// How long a held target waits before it is worth asking again.
const HOLD: Duration = Duration::from_secs(1);

/// What a target has cost so far, for reports.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Standing {
    /// Average slowdown since its account was opened, percent.
    pub slowdown_percent: f64,
    /// Trap time in all, that of children with inherited breakpoints
    /// included.
    pub trapped: Duration,
    /// Windows so far.
    pub windows: u64,
    /// Time in which they were open.
    pub open: Duration,
    /// Windows that ended earlier than planned.
    pub cut_short: u64,
    /// Allocations per second, as last learnt.
    pub allocations_per_s: Option<f64>,
    /// Slowdown that tracing it for good would be, by traps alone, percent.
    pub trace_percent: Option<f64>,
}

/// One target.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) profile: Profile,
    pub(super) account: Account,
    rates: Option<Rates>,
    window: Option<Window>,
    /// The plan of the last decision.
    planned: Option<Plan>,
    /// No probes before that, and why.
    refused: Option<(Duration, String)>,
    /// The first window that catches blocks has been.
    credit_used: bool,
    forked_windows: u32,
    fork_pause: Duration,
    trace_from: Duration,
    trace_pause: Duration,
    time_to_limit: Option<Duration>,
    /// It waits for room.
    pub(super) waiting: Option<Waiting>,
    /// No window before that.
    rests_until: Duration,
    told: Option<Told>,
    windows: u64,
    open: Duration,
    cut_short: u64,
}

/// What users were told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Look,
    Survey,
    Trace,
    Hold,
    Refuse,
}

impl Watched {
    pub(super) fn new(profile: Profile, account: Account) -> Self {
        Self {
            profile,
            account,
            rates: None,
            window: None,
            planned: None,
            refused: None,
            credit_used: false,
            forked_windows: 0,
            fork_pause: ASK_AGAIN,
            trace_from: Duration::ZERO,
            trace_pause: TRACE_PAUSE,
            time_to_limit: None,
            waiting: None,
            rests_until: Duration::ZERO,
            told: None,
            windows: 0,
            open: Duration::ZERO,
            cut_short: 0,
        }
    }

    fn scene<'a>(&'a self, budget: &'a Budget, costs: &'a Costs, shared: bool) -> Scene<'a> {
        Scene {
            budget,
            costs,
            profile: &self.profile,
            account: &self.account,
            shared,
        }
    }

    fn is_surveyed(&self) -> bool {
        self.window
            .as_ref()
            .is_some_and(|window| window.plan.kind != Kind::Trace)
    }

    fn shares_a_file(&self, other: &Self) -> bool {
        self.profile
            .files
            .iter()
            .any(|file| other.profile.files.contains(file))
    }
}

impl Scene<'_> {
    fn terms(&self) -> Terms {
        Terms {
            target: self.budget.target(),
            noticed: self.budget.noticed_share(),
            most: self.most(),
            most_noticed: self.most_noticed(),
        }
    }
}

impl Governor {
    /// What to do with a target now. Nothing is opened by asking.
    pub fn decide(&mut self, id: TargetId, now: Duration, cpu: Option<Duration>) -> Decision {
        let (told, decision) = self.judge(id, now, cpu);
        let planned = match decision.mode {
            Mode::Trace { .. } | Mode::Survey(_) => self.plan_for(id, now),
            Mode::Hold { .. } | Mode::Refuse { .. } => None,
        };
        let news = self.targets.get_mut(&id).is_some_and(|watched| {
            watched.planned = planned;
            watched.told.replace(told) != Some(told)
        });
        if news {
            self.note(now, Some(id), decision.why.clone());
        }
        decision
    }

    fn judge(&mut self, id: TargetId, now: Duration, cpu: Option<Duration>) -> (Told, Decision) {
        let hold = |why: String, again: Duration| {
            let mode = Mode::Hold { again };
            (Told::Hold, Decision { mode, why })
        };
        let refuse = |why: String, again: Option<Duration>| {
            let mode = Mode::Refuse { again };
            (Told::Refuse, Decision { mode, why })
        };
        let shared = self.shared(id);
        let budget = self.budget;
        let Some(watched) = self.targets.get_mut(&id) else {
            return refuse("the target has no account".to_owned(), None);
        };
        if watched.window.is_some() {
            return hold("its probes are on".to_owned(), now + HOLD);
        }
        let terms = watched.scene(&budget, &self.costs, shared).terms();
        watched.account.pass(now, cpu, None, terms);
        if let Some(sentence) = &watched.profile.refusal {
            return refuse(sentence.clone(), None);
        }
        if let Some(sentence) = self.brake.held(now) {
            return hold(sentence, now + HOLD);
        }
        if let Some((until, sentence)) = watched.refused.clone() {
            if now < until {
                return refuse(sentence, Some(until));
            }
            watched.refused = None;
        }
        if let Some(why) = self.crowded(id, now) {
            return hold(why, now + ASK_FOR_ROOM);
        }
        let Some(watched) = self.targets.get_mut(&id) else {
            return refuse("the target has no account".to_owned(), None);
        };
        let forced = watched.profile.wish == Wish::Trace;
        if !forced
            && watched
                .scene(&budget, &self.costs, shared)
                .hot_open()
                .is_none()
        {
            let why = format!(
                "attaching takes {} ms and detaching {} ms here, so that a burst of allocations could slow it by more than {:.0} % for longer than {} ms: no breakpoints, page-fault stacks must do",
                self.costs.attach.as_millis(),
                self.costs.detach.as_millis(),
                budget.window_percent,
                budget.window.as_millis()
            );
            // A busy moment of the host may have been the cause.
            let worn = |learnt: Duration, base: Duration| learnt.mul_f64(0.5).max(base);
            self.costs.attach = worn(self.costs.attach, self.base.attach);
            self.costs.detach = worn(self.costs.detach, self.base.detach);
            watched.refused = Some((now + SLOW_AGAIN, why.clone()));
            return refuse(why, Some(now + SLOW_AGAIN));
        }
        let Some(plan) = self.plan_for(id, now) else {
            let why = self.hopeless(id, shared);
            if let Some(watched) = self.targets.get_mut(&id) {
                watched.refused = Some((now + ASK_AGAIN, why.clone()));
            }
            return refuse(why, Some(now + ASK_AGAIN));
        };
        self.schedule(id, now, plan, shared)
    }

    /// The plan for a target whose probes are off.
    fn plan_for(&self, id: TargetId, now: Duration) -> Option<Plan> {
        let watched = self.targets.get(&id)?;
        let scene = watched.scene(&self.budget, &self.costs, self.shared(id));
        let Some(rates) = &watched.rates else {
            return Some(Scene::look());
        };
        let survey = || {
            let plan = scene.survey(rates)?;
            Some(if watched.credit_used {
                plan
            } else {
                scene.first(plan)
            })
        };
        let trace = || {
            (now >= watched.trace_from)
                .then(|| scene.trace(rates))
                .flatten()
        };
        match watched.profile.wish {
            Wish::Trace => Some(scene.forced_trace(rates)),
            Wish::Survey => survey(),
            Wish::Auto => trace().or_else(survey),
        }
    }

    /// When a plan can begin.
    fn schedule(&self, id: TargetId, now: Duration, plan: Plan, shared: bool) -> (Told, Decision) {
        let Some(watched) = self.targets.get(&id) else {
            let mode = Mode::Refuse { again: None };
            let why = "the target has no account".to_owned();
            return (Told::Refuse, Decision { mode, why });
        };
        let scene = watched.scene(&self.budget, &self.costs, shared);
        let wait = if watched.profile.wish == Wish::Trace {
            0.0
        } else {
            watched
                .account
                .wait_for(plan.needs, plan.needs_noticed, scene.terms())
        };
        // An hour is for ever; it also keeps the sum from overflowing.
        let mut at = now + Duration::from_secs_f64(wait.min(3600.0));
        if plan.kind == Kind::Survey {
            at = at.max(watched.rests_until);
        }
        let neighbour = self.targets.iter().find(|(other, neighbour)| {
            **other != id
                && plan.kind != Kind::Trace
                && neighbour.is_surveyed()
                && neighbour.shares_a_file(watched)
        });
        if neighbour.is_some() {
            at = at.max(now + STAGGER);
        }
        let rate = watched.rates.map_or(0.0, |rates| rates.allocations);
        let bare = watched
            .rates
            .map_or(0.0, |rates| scene.bare(&rates) * 100.0);
        let target = self.budget.target_percent;
        let waiting = if at > now {
            format!(
                ", the next in {:.1} s",
                at.saturating_sub(now).as_secs_f64().max(0.05)
            )
        } else {
            String::new()
        };
        let slot = Slot {
            at,
            open: plan.open,
            mean: plan.mean,
            period: Duration::from_secs_f64(plan.period.clamp(0.0, 1e6)),
        };
        match plan.kind {
            Kind::Look => {
                let why = format!(
                    "its allocation rate is unknown: a first window of {} ms only counts{waiting}",
                    plan.open.as_millis()
                );
                (
                    Told::Look,
                    Decision {
                        mode: Mode::Survey(slot),
                        why,
                    },
                )
            }
            Kind::Survey => {
                let why = format!(
                    "{rate:.0} allocations a second would slow it by {bare:.1} % if traced for good, {target:.1} % are allowed: windows of {} ms every {:.0} s, {}{waiting}",
                    plan.open.as_millis(),
                    plan.period,
                    sampling(plan.mean)
                );
                (
                    Told::Survey,
                    Decision {
                        mode: Mode::Survey(slot),
                        why,
                    },
                )
            }
            Kind::Trace if at > now => {
                let why = format!(
                    "it may be traced for good in {wait:.1} s, when what was spent is repaid"
                );
                let mode = Mode::Hold { again: at };
                (Told::Hold, Decision { mode, why })
            }
            Kind::Trace => {
                let why = format!(
                    "{rate:.0} allocations a second slow it by {:.2} %, {target:.1} % are allowed: traced for good, {}",
                    plan.slowdown * 100.0,
                    sampling(plan.mean)
                );
                let mode = Mode::Trace { mean: plan.mean };
                (Told::Trace, Decision { mode, why })
            }
        }
    }

    /// Why there is no plan at all.
    fn hopeless(&self, id: TargetId, shared: bool) -> String {
        let Some(watched) = self.targets.get(&id) else {
            return String::new();
        };
        let scene = watched.scene(&self.budget, &self.costs, shared);
        let rates = watched.rates;
        format!(
            "{:.0} allocations a second slow it by {:.0} % while probed, and within {:.0} % on average no window records anything: no breakpoints, page-fault stacks must do",
            rates.map_or(0.0, |rates| rates.allocations),
            rates.map_or(0.0, |rates| scene.bare(&rates)) * 100.0,
            self.budget.target_percent
        )
    }

    /// Enters which probes of a target are single-stepped: on allocating and
    /// on freeing functions. A program that it executed later has others.
    pub fn set_stepped(&mut self, id: TargetId, (allocations, frees): (bool, bool)) {
        if let Some(watched) = self.targets.get_mut(&id) {
            watched.profile.stepped_allocations = allocations;
            watched.profile.stepped_frees = frees;
        }
    }

    /// Probes are about to be set as the last decision said.
    pub fn opening(&mut self, id: TargetId, now: Duration) {
        let shared = self.shared(id);
        let Some(watched) = self.targets.get_mut(&id) else {
            return;
        };
        let plan = watched.planned.unwrap_or_else(Scene::look);
        let terms = watched.scene(&self.budget, &self.costs, shared).terms();
        watched.account.pass(now, None, None, terms);
        watched.credit_used |= plan.kind == Kind::Survey;
        watched.window = Some(Window::new(plan, now));
    }

    /// The probes are on.
    pub fn opened(&mut self, id: TargetId, now: Duration, reading: &Reading) -> Check {
        let check = self.check(id, now, reading);
        if let Some(window) = self.window(id) {
            window.open(now, reading);
            if let Some(took) = window.attached_in() {
                self.costs.learn_attach(took);
            }
        }
        check
    }

    /// Looks at a target whose probes are on. Also to be called at once when
    /// it has forked.
    pub fn check(&mut self, id: TargetId, now: Duration, reading: &Reading) -> Check {
        let held = self.brake.held(now);
        self.enter(id, now, reading);
        let shared = self.shared(id);
        let Some(watched) = self.targets.get_mut(&id) else {
            return Check::Detach(Close::Held("the target has no account".to_owned()));
        };
        let Some(mut window) = watched.window.take() else {
            return Check::Detach(Close::Held("the target has no window".to_owned()));
        };
        let was_open = window.close.is_none();
        let scene = watched.scene(&self.budget, &self.costs, shared);
        let forced = watched.profile.wish == Wish::Trace && window.plan.kind == Kind::Trace;
        let check = window.judge(now, &scene, held, forced);
        let mut sentence = None;
        if let (true, Check::Detach(close)) = (was_open, &check) {
            sentence = watched.end(now, &window, close);
        }
        watched.window = Some(window);
        if let Some(sentence) = sentence {
            self.note(now, Some(id), sentence);
        }
        check
    }

    /// The probes are off. To be called also when attaching failed.
    pub fn closed(&mut self, id: TargetId, now: Duration, reading: &Reading) {
        self.enter(id, now, reading);
        let Some(watched) = self.targets.get_mut(&id) else {
            return;
        };
        let Some(window) = watched.window.take() else {
            return;
        };
        if let Some((asked, _)) = &window.close {
            self.costs.learn_detach(now.saturating_sub(*asked));
        } else {
            // Ended by its owner.
            watched.learn(&window);
        }
        if window.plan.kind == Kind::Survey {
            watched.rests_until = now + plan::PAUSE;
        }
        watched.open += window.open_time();
        watched.windows += u64::from(window.attached_in().is_some());
        watched.planned = None;
    }

    /// What a target has cost.
    pub fn standing(&self, id: TargetId) -> Option<Standing> {
        let watched = self.targets.get(&id)?;
        let scene = watched.scene(&self.budget, &self.costs, self.shared(id));
        let running = watched
            .window
            .as_ref()
            .map_or(Duration::ZERO, Window::open_time);
        Some(Standing {
            slowdown_percent: watched.account.slowdown() * 100.0,
            trapped: Duration::from_secs_f64(watched.account.trapped.max(0.0)),
            windows: watched.windows + u64::from(watched.window.is_some()),
            open: watched.open + running,
            cut_short: watched.cut_short,
            allocations_per_s: watched.rates.map(|rates| rates.allocations),
            trace_percent: watched.rates.map(|rates| scene.bare(&rates) * 100.0),
        })
    }

    /// Time until a target meets its memory limit: the nearer, the later it is
    /// shed.
    pub fn rank(&mut self, id: TargetId, time_to_limit: Option<Duration>) {
        if let Some(watched) = self.targets.get_mut(&id) {
            watched.time_to_limit = time_to_limit;
        }
    }

    /// Targets whose probes must come off because our own processor time does
    /// not suffice, each with the reason: from the control group with most of
    /// them, and of its targets the one whose memory limit is farthest.
    pub fn shed(&mut self, now: Duration) -> Vec<(TargetId, String)> {
        let allowed = self.allowance().suspects;
        let mut probed: Vec<(TargetId, String, Duration)> = self
            .targets
            .iter()
            .filter(|(_, watched)| {
                watched
                    .window
                    .as_ref()
                    .is_some_and(|window| window.close.is_none())
            })
            .map(|(id, watched)| {
                (
                    *id,
                    watched.profile.cgroup.clone(),
                    watched.time_to_limit.unwrap_or(Duration::MAX),
                )
            })
            .collect();
        let all = probed.len();
        let mut shed = Vec::new();
        while probed.len() > allowed {
            let crowd = |group: &str| probed.iter().filter(|(_, other, _)| other == group).count();
            let Some((place, group, count)) = probed
                .iter()
                .enumerate()
                .max_by_key(|(_, (id, group, limit))| (crowd(group), *limit, *id))
                .map(|(place, (_, group, _))| (place, group.clone(), crowd(group)))
            else {
                break;
            };
            let (id, ..) = probed.swap_remove(place);
            let why = format!(
                "our own processor time allows {allowed} of {all} targets with probes, and {count} of them are in control group {}",
                if group.is_empty() { "/" } else { &group }
            );
            self.note(now, Some(id), why.clone());
            shed.push((id, why));
        }
        shed
    }

    fn enter(&mut self, id: TargetId, now: Duration, reading: &Reading) {
        let shared = self.shared(id);
        let Some(watched) = self.targets.get_mut(&id) else {
            return;
        };
        let Some(mut window) = watched.window.take() else {
            return;
        };
        let scene = watched.scene(&self.budget, &self.costs, shared);
        let terms = scene.terms();
        let account = window.enter(now, reading, &scene, terms);
        watched.account = account;
        watched.window = Some(window);
    }

    fn window(&mut self, id: TargetId) -> Option<&mut Window> {
        self.targets.get_mut(&id)?.window.as_mut()
    }

    /// Whether another target's probes are in a file of this one.
    fn shared(&self, id: TargetId) -> bool {
        let Some(watched) = self.targets.get(&id) else {
            return false;
        };
        self.targets.iter().any(|(other, neighbour)| {
            *other != id && neighbour.window.is_some() && neighbour.shares_a_file(watched)
        })
    }

    /// Targets with probes.
    pub(super) fn probed(&self) -> usize {
        self.targets
            .values()
            .filter(|watched| watched.window.is_some())
            .count()
    }
}

impl Watched {
    fn learn(&mut self, window: &Window) {
        if let Some((rates, lanes)) = window.learnt(&self.account, &self.profile) {
            self.account.lanes = lanes;
            self.rates = Some(match self.rates {
                Some(known) => known.joined(rates),
                None => rates,
            });
        }
    }

    /// Draws the conclusions when a window's end was decided; a sentence when
    /// it is earlier than planned.
    fn end(&mut self, now: Duration, window: &Window, close: &Close) -> Option<String> {
        self.learn(window);
        let kind = window.plan.kind;
        if matches!(close, Close::Forked { .. }) {
            self.forked_windows += 1;
        } else if matches!(close, Close::Done { .. }) {
            self.forked_windows = 0;
            self.fork_pause = ASK_AGAIN;
        }
        if self.forked_windows >= FORKED_WINDOWS {
            self.refused = Some((
                now + self.fork_pause,
                format!(
                    "it forked in {} windows in a row, and children pay for inherited breakpoints: no breakpoints for {} min, page-fault stacks must do",
                    self.forked_windows,
                    self.fork_pause.as_secs() / 60
                ),
            ));
            self.fork_pause = (self.fork_pause * 2).min(FORK_PAUSE);
            self.forked_windows = 0;
        }
        let dear = matches!(
            close,
            Close::Hot { .. } | Close::Spent { .. } | Close::Noticed { .. }
        );
        if kind == Kind::Trace && dear {
            self.trace_from = now + self.trace_pause;
            self.trace_pause = if window.open_time() > ASK_AGAIN {
                TRACE_PAUSE
            } else {
                (self.trace_pause * 2).min(TRACE_PAUSE_MAX)
            };
        }
        // A window that was planned hot ends by that limit.
        let early = window.open_time() * 10 < window.plan.open.saturating_mul(9);
        if matches!(close, Close::Done { .. }) || !(early || kind == Kind::Trace) {
            return None;
        }
        self.cut_short += 1;
        let what = if kind == Kind::Trace {
            "tracing ended"
        } else {
            "a window was cut short"
        };
        Some(format!(
            "{what} after {} ms: {close}",
            window.open_time().as_millis()
        ))
    }
}

fn sampling(mean: u64) -> String {
    match mean {
        1 => "every allocation recorded".to_owned(),
        mean => format!("one allocation recorded per {mean} bytes"),
    }
}
