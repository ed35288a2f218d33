//! Targets that allocate by a given law, slowed by probes as a processor
//! would be, under a governor that sees only their counters. The truth is kept
//! apart, in steps of a millisecond.

use std::time::Duration;

use agent_ebpf::{abi::heap::Target, logic::sampling};

use crate::capture::governor::{Budget, Check, Costs, Governor, Mode, Profile, Reading};

const STEP: f64 = 0.001;

/// How a target behaves.
pub(super) struct Law {
    /// Allocations per second at a moment, untraced, of all threads.
    pub(super) rate: Box<dyn Fn(f64) -> f64>,
    /// Threads that allocate.
    pub(super) lanes: f64,
    /// Share of the time that each of them runs, untraced.
    pub(super) busy: f64,
    /// Bytes of a block.
    pub(super) size: u64,
    /// Seconds between forks; a child lives for a second.
    pub(super) forks_every: Option<f64>,
    /// Single-stepped hits per allocation.
    pub(super) stepped: f64,
    /// What the governor is told beforehand.
    pub(super) profile: Profile,
}

impl Law {
    pub(super) fn steady(rate: f64) -> Self {
        Self::varying(move |_| rate)
    }

    pub(super) fn varying(rate: impl Fn(f64) -> f64 + 'static) -> Self {
        Self {
            rate: Box::new(rate),
            lanes: 1.0,
            busy: 1.0,
            size: 64,
            forks_every: None,
            stepped: 0.0,
            profile: Profile::default(),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Idle { wake: f64 },
    Attaching { until: f64 },
    Open { check: f64 },
    Detaching { until: f64 },
}

/// One target with its truth.
pub(super) struct Subject {
    pub(super) law: Law,
    phase: Phase,
    mean: u64,
    reading: Reading,
    counted: [f64; 5],
    cpu: f64,
    at: f64,
    hot_now: f64,
    /// Breakpoints are on since.
    since: f64,
    /// Trap time, of its own threads and of children.
    pub(super) trapped: f64,
    /// Time in which it could have run.
    pub(super) running: f64,
    /// Longest stretch above the limit for windows.
    pub(super) hottest: f64,
    /// Largest excess of trap time over a hundredth of running time, at
    /// first and later: a look at a target with many threads that do not run
    /// is repaid by one.
    pub(super) excess: [f64; 2],
    /// Time with more than noticeable slowdown.
    pub(super) noticed: f64,
    /// Time between attached and detaching.
    pub(super) open: f64,
    /// Blocks recorded per block allocated, times time: seconds of full
    /// recording.
    pub(super) caught: f64,
    pub(super) windows: u32,
    pub(super) modes: Vec<&'static str>,
    pub(super) said: Vec<String>,
    pub(super) refused: bool,
    /// Other subjects were probed in the same file at the same time.
    pub(super) overlaps: u32,
}

impl Subject {
    fn new(law: Law) -> Self {
        Self {
            law,
            phase: Phase::Idle { wake: 0.0 },
            mean: 1,
            reading: Reading::default(),
            counted: [0.0; 5],
            cpu: 0.0,
            at: 0.0,
            hot_now: 0.0,
            since: 0.0,
            trapped: 0.0,
            running: 0.0,
            hottest: 0.0,
            excess: [f64::NEG_INFINITY; 2],
            noticed: 0.0,
            open: 0.0,
            caught: 0.0,
            windows: 0,
            modes: Vec::new(),
            said: Vec::new(),
            refused: false,
            overlaps: 0,
        }
    }

    pub(super) fn slowdown(&self) -> f64 {
        self.trapped / self.running
    }

    fn probed(&self) -> bool {
        !matches!(self.phase, Phase::Idle { .. })
    }

    fn reading(&self) -> Reading {
        let [allocations, bytes, frees, sampled, stepped] = self.counted;
        Reading {
            allocations: allocations as u64,
            allocated_bytes: bytes as u64,
            frees: frees as u64,
            sampled: sampled as u64,
            stepped: stepped as u64,
            ..self.reading
        }
    }

    /// Time passes.
    fn step(&mut self, to: f64, costs: &Costs, budget: &Budget) {
        let passed = to - self.at;
        let law = &self.law;
        self.at = to;
        let lanes = law.lanes;
        if !self.probed() {
            self.cpu += passed * law.busy * lanes;
            self.running += passed * (law.busy * lanes).max(1.0).min(lanes);
            self.reading.cpu = Some(Duration::from_secs_f64(self.cpu));
            return;
        }
        let rate = (law.rate)(to);
        let recorded = match self.mean {
            Target::COUNT_ONLY => 0.0,
            mean => 1.0 / sampling::weight(law.size, mean),
        };
        let cost = costs.pair(1.0, law.stepped, false) + recorded * costs.recording(&law.profile);
        let load = rate * cost / lanes;
        let slower = (law.busy + load).max(1.0);
        let slowdown = load / slower;
        let allocations = rate / slower * passed;
        for (sum, value) in self.counted.iter_mut().zip([
            allocations,
            allocations * law.size as f64,
            allocations,
            allocations * recorded,
            allocations * law.stepped,
        ]) {
            *sum += value;
        }
        // A child that was forked while breakpoints were on keeps them.
        let children = law.forks_every.map_or(0, |every| {
            let young = (to / every) as u64 - (self.since.max(to - 1.0) / every) as u64;
            young as u32
        });
        let inherited = (rate / slower * costs.inherited * 1e-9).min(1.0) * f64::from(children);
        let busy = (law.busy + load).min(1.0);
        self.cpu += passed * busy * lanes;
        let running = passed * (busy * lanes).max(1.0).min(lanes);
        self.running += running;
        self.trapped += slowdown * lanes * passed + inherited * passed;
        self.reading.cpu = Some(Duration::from_secs_f64(self.cpu));
        self.reading.children = children;
        self.reading.lanes = lanes;
        let share = slowdown * lanes * passed / running;
        if share > budget.window_percent / 100.0 {
            self.hot_now += passed;
        } else {
            self.hot_now = 0.0;
        }
        self.hottest = self.hottest.max(self.hot_now);
        if share > budget.noticed_percent / 100.0 {
            self.noticed += passed;
        }
        let late = usize::from(to > 60.0 * self.law.lanes.max(2.0) / 2.0);
        if let Some(excess) = self.excess.get_mut(late) {
            *excess = excess.max(self.trapped - self.running * budget.target_percent / 100.0);
        }
        if matches!(self.phase, Phase::Open { .. }) {
            self.open += passed;
            self.caught += passed * recorded;
        }
    }
}

/// Targets, a governor and a machine.
pub(super) struct World {
    pub(super) governor: Governor,
    pub(super) subjects: Vec<Subject>,
    pub(super) now: f64,
    /// What attaching and detaching really takes.
    pub(super) attach: f64,
    pub(super) detach: f64,
    truth: Costs,
    budget: Budget,
    /// For uneven delays.
    noise: u64,
}

impl World {
    pub(super) fn new(budget: Budget, costs: Costs, laws: Vec<Law>) -> Self {
        let mut governor = Governor::new(budget, costs, Duration::ZERO);
        for (id, law) in laws.iter().enumerate() {
            let cpu = Some(Duration::ZERO);
            governor
                .admit(id as u32, law.profile.clone(), Duration::ZERO, cpu)
                .unwrap();
        }
        Self {
            governor,
            subjects: laws.into_iter().map(Subject::new).collect(),
            now: 0.0,
            attach: costs.attach.as_secs_f64(),
            detach: costs.detach.as_secs_f64(),
            truth: costs,
            budget,
            noise: 1,
        }
    }

    /// A standard world with one target.
    pub(super) fn of(law: Law) -> Self {
        Self::new(Budget::default(), multi(), vec![law])
    }

    pub(super) fn run(mut self, seconds: f64) -> Self {
        self.go(self.now + seconds);
        self
    }

    pub(super) fn go(&mut self, until: f64) {
        while self.now < until {
            for id in 0..self.subjects.len() {
                self.act(id);
            }
            let probed = self.subjects.iter().any(Subject::probed);
            let wake = self
                .subjects
                .iter()
                .filter_map(|subject| match subject.phase {
                    Phase::Idle { wake } => Some(wake),
                    _ => None,
                })
                .fold(until, f64::min);
            // Unprobed time is passed in one go.
            self.now = if probed {
                self.now + STEP
            } else {
                wake.max(self.now + STEP)
            };
            for subject in &mut self.subjects {
                subject.step(self.now, &self.truth, &self.budget);
            }
        }
    }

    fn late(&mut self) -> f64 {
        self.noise = self
            .noise
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.noise >> 60) as f64 * 0.0003
    }

    fn act(&mut self, id: usize) {
        let (now, target) = (self.now, id as u32);
        let at = Duration::from_secs_f64(now);
        let late = self.late();
        let others = self
            .subjects
            .iter()
            .enumerate()
            .filter(|(other, subject)| *other != id && subject.probed())
            .any(|(_, subject)| subject.law.profile.files == self.subjects[id].law.profile.files);
        let subject = &mut self.subjects[id];
        match subject.phase {
            Phase::Idle { wake } if now >= wake => {
                let decision = self.governor.decide(target, at, subject.reading.cpu);
                let later = |time: Duration| Phase::Idle {
                    wake: time.as_secs_f64().max(now + STEP),
                };
                let name;
                match decision.mode {
                    Mode::Refuse { again } => {
                        name = "refuse";
                        subject.refused = true;
                        subject.phase = later(again.unwrap_or(at + Duration::from_hours(1_000)));
                    }
                    Mode::Hold { again } => {
                        name = "hold";
                        subject.phase = later(again);
                    }
                    Mode::Survey(slot) if slot.at > at => {
                        name = "survey";
                        subject.phase = later(slot.at);
                    }
                    Mode::Survey(slot) => {
                        name = "survey";
                        subject.begin(slot.mean, now, self.attach);
                        subject.overlaps += u32::from(others);
                        self.governor.opening(target, at);
                    }
                    Mode::Trace { mean } => {
                        name = "trace";
                        subject.begin(mean, now, self.attach);
                        self.governor.opening(target, at);
                    }
                }
                if subject.modes.last() != Some(&name) {
                    subject.modes.push(name);
                    subject.said.push(decision.why);
                }
            }
            Phase::Attaching { until } if now >= until => {
                let reading = subject.reading();
                let check = self.governor.opened(target, at, &reading);
                subject.follow(&check, now, late, self.detach);
            }
            Phase::Open { check } if now >= check => {
                let reading = subject.reading();
                let check = self.governor.check(target, at, &reading);
                subject.follow(&check, now, late, self.detach);
            }
            Phase::Detaching { until } if now >= until => {
                let reading = subject.reading();
                self.governor.closed(target, at, &reading);
                subject.phase = Phase::Idle { wake: now };
                subject.windows += 1;
            }
            _ => {}
        }
    }
}

impl Subject {
    fn begin(&mut self, mean: u64, now: f64, attach: f64) {
        self.mean = mean;
        self.since = now;
        self.counted = [0.0; 5];
        self.hot_now = 0.0;
        self.phase = Phase::Attaching {
            until: now + attach,
        };
    }

    fn follow(&mut self, check: &Check, now: f64, late: f64, detach: f64) {
        let next = |again: &Duration| Phase::Open {
            check: now + again.as_secs_f64() + late,
        };
        self.phase = match check {
            Check::Stay { again } => next(again),
            Check::Resample { mean, again } => {
                self.mean = *mean;
                next(again)
            }
            Check::Detach(close) => {
                self.said.push(close.to_string());
                Phase::Detaching {
                    until: now + detach,
                }
            }
        };
    }
}

/// Costs as they were measured with multi-point links.
pub(super) fn multi() -> Costs {
    Costs {
        trap: 700.0,
        stepped: 12_000.0,
        record: 300.0,
        frame: 80.0,
        inherited: 2_095.0,
        shared: 650.0,
        attach: Duration::from_millis(8),
        detach: Duration::from_millis(10),
    }
}
