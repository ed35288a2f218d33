//! Generated programs under survey: what windows see of them, and what
//! readings would show.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use agent_ebpf::logic::sampling::weight;

use crate::ledger::{
    Calls, LiveBlock, StackId, Survivors,
    survivors::{BlockId, Sign, StackCount, SurveyBlock, WindowOutcome},
};

/// A small random generator (splitmix64), so that every failure repeats.
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub(super) fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Evenly over the orders of magnitude.
    pub(super) fn scale(&mut self, low: f64, high: f64) -> f64 {
        self.within(low.ln(), high.ln()).exp()
    }

    pub(super) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    pub(super) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    pub(super) fn poisson(&mut self, mean: f64) -> usize {
        if mean > 200.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as usize;
        }
        let (mut left, mut n) = (mean, 0);
        loop {
            left -= self.exponential(1.0);
            if left < 0.0 {
                return n;
            }
            n += 1;
        }
    }
}

/// How long a block born at some second lives.
pub(super) type Life = Box<dyn Fn(f64, &mut Random) -> f64>;

pub(super) fn exponential(mean: f64) -> Life {
    Box::new(move |_, random| random.exponential(mean))
}

pub(super) fn lognormal(median: f64, sigma: f64) -> Life {
    Box::new(move |_, random| median * (sigma * random.normal()).exp())
}

pub(super) fn fixed(life: f64) -> Life {
    Box::new(move |_, _| life)
}

/// An allocation site.
pub(super) struct Site {
    stack: u64,
    size: u64,
    /// Allocations a second at full load.
    rate: f64,
    life: Life,
    leak: f64,
    /// From 0 to 1, by time.
    load: Box<dyn Fn(f64) -> f64>,
    /// Blocks allocated at once.
    burst: f64,
    /// Mean of exponential lives, for a site that is only there to be in the
    /// way: those of its blocks that die in their window are not drawn one by
    /// one.
    quick: Option<f64>,
}

impl Site {
    pub(super) fn new(stack: u64, size: u64, rate: f64, life: Life) -> Self {
        Self {
            stack,
            size,
            rate,
            life,
            leak: 0.0,
            load: Box::new(|_| 1.0),
            burst: 1.0,
            quick: None,
        }
    }

    /// Short exponential lives, at a high rate.
    pub(super) fn churn(stack: u64, size: u64, rate: f64, mean_life: f64) -> Self {
        Self {
            quick: Some(mean_life),
            ..Self::new(stack, size, rate, exponential(mean_life))
        }
    }

    pub(super) fn leaking(mut self, share: f64) -> Self {
        self.leak = share;
        self
    }

    pub(super) fn at_load(mut self, load: impl Fn(f64) -> f64 + 'static) -> Self {
        self.load = Box::new(load);
        self
    }

    pub(super) fn in_bursts(mut self, blocks: f64) -> Self {
        self.burst = blocks.round();
        self
    }
}

/// What the allocator's memory tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allocator {
    /// Free leaves a mark.
    Marks,
    /// Free leaves none; a block is given out again after this many
    /// milliseconds, on average.
    Silent(u64),
}

/// How a program is surveyed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// Seconds.
    pub(super) run: f64,
    /// Seconds that a window is open.
    pub(super) window: f64,
    /// Share of the time that windows are open.
    pub(super) duty: f64,
    pub(super) mean: u64,
}

pub(super) struct Program {
    pub(super) schedule: Schedule,
    pub(super) sites: Vec<Site>,
    pub(super) allocator: Allocator,
    /// Growth of its memory, bytes per second; the leaks', unless set.
    pub(super) growth: Option<f64>,
    /// Calls are counted.
    pub(super) counted: bool,
    /// How often a block that was freed and given out again looks alive.
    pub(super) deceit: f64,
    /// Seconds after which nobody finds the time to read blocks again.
    pub(super) read_until: f64,
}

impl Program {
    pub(super) fn new(schedule: Schedule, sites: Vec<Site>) -> Self {
        Self {
            schedule,
            sites,
            allocator: Allocator::Marks,
            growth: None,
            counted: false,
            deceit: 0.0,
            read_until: f64::INFINITY,
        }
    }

    /// The true rate over the run.
    pub(super) fn leak_rate(&self, stack: u64) -> f64 {
        let rate = |site: &Site| {
            let steps = 2000;
            let load: f64 = (0..steps)
                .map(|at| (site.load)((f64::from(at) + 0.5) * self.schedule.run / f64::from(steps)))
                .sum();
            site.rate * site.leak * site.size as f64 * load / f64::from(steps)
        };
        self.sites
            .iter()
            .filter(|site| site.stack == stack)
            .map(rate)
            .sum()
    }

    /// What a survey knows in the end.
    pub(super) fn observe(&self, random: &mut Random) -> Survivors {
        let mut survivors = Survivors::default();
        let mut deaths: HashMap<BlockId, f64> = HashMap::new();
        let period = self.schedule.window / self.schedule.duty;
        let mut next = random.within(0.0, period.min(1.0));
        let stacks: BTreeSet<u64> = self.sites.iter().map(|site| site.stack).collect();
        let leaks: f64 = stacks.iter().map(|stack| self.leak_rate(*stack)).sum();
        let growth = self.growth.unwrap_or(leaks);
        for tick in 0..=self.schedule.run as u64 {
            let now = tick as f64;
            while next + self.schedule.window < now {
                self.window(&mut survivors, &mut deaths, next, random);
                next += period * random.within(0.8, 1.2);
            }
            let memory = 1e8 + growth * now + 20_000.0 * random.normal();
            survivors.memory(seconds(now), Some(memory as u64));
            let reads = if now < self.read_until { usize::MAX } else { 0 };
            for id in survivors.due(seconds(now), reads) {
                let sign = self.sign(deaths.get(&id).copied().unwrap_or(0.0), now, random);
                survivors.reading(id, seconds(now), sign);
            }
        }
        survivors
    }

    fn sign(&self, death: f64, now: f64, random: &mut Random) -> Sign {
        let chance = random.unit();
        if chance < 0.04 {
            return Sign::Unknown;
        }
        match self.allocator {
            Allocator::Marks if death <= now && random.unit() < self.deceit => Sign::Mutated,
            _ if death <= now => Sign::Gone,
            Allocator::Marks if chance < 0.1 => Sign::Mutated,
            Allocator::Marks => Sign::Alive,
            Allocator::Silent(_) => Sign::Unchanged,
        }
    }

    fn window(
        &self,
        survivors: &mut Survivors,
        deaths: &mut HashMap<BlockId, f64>,
        open: f64,
        random: &mut Random,
    ) {
        let close = open + self.schedule.window;
        survivors.window_opened(seconds(open));
        let mut outcome = WindowOutcome {
            open: seconds(self.schedule.window),
            mean: self.schedule.mean,
            ..WindowOutcome::default()
        };
        let mut calls = Calls::default();
        let mut ends = Vec::new();
        for site in &self.sites {
            let share = 1.0 / weight(site.size, self.schedule.mean);
            let mut count = StackCount {
                stack: StackId(site.stack),
                sampled: 0,
                freed: 0,
                longest_life: Duration::ZERO,
            };
            // Bursts as a whole: each of their blocks is sampled or not.
            let taken = if site.burst > 1.0 { 1.0 } else { share };
            let all = site.rate / site.burst * self.schedule.window;
            calls.allocations += random.poisson(all * site.burst) as u64;
            calls.frees += random.poisson(all * site.burst * (1.0 - site.leak)) as u64;
            let mut draws = random.poisson(all * taken);
            if let Some(mean) = site.quick {
                let outlive =
                    mean / self.schedule.window * -(-self.schedule.window / mean).exp_m1();
                count.sampled = draws as u64;
                draws = random.poisson(all * taken * outlive).min(draws);
                count.freed = count.sampled - draws as u64;
                count.sampled = count.freed;
                count.longest_life = seconds(10.0 * mean);
            }
            for _ in 0..draws {
                let born = if let Some(mean) = site.quick {
                    (close - random.exponential(mean)).max(open)
                } else {
                    random.within(open, close)
                };
                if random.unit() >= (site.load)(born) {
                    continue;
                }
                for _ in 0..site.burst as u64 {
                    if taken > share && random.unit() >= share {
                        continue;
                    }
                    count.sampled += 1;
                    let leaks = site.leak > 0.0 && random.unit() < site.leak;
                    let life = match site.quick {
                        _ if leaks => f64::INFINITY,
                        // it has outlived its window, and forgets
                        Some(mean) => close - born + random.exponential(mean),
                        None => (site.life)(born, random),
                    };
                    if born + life < close {
                        count.freed += 1;
                        count.longest_life = count.longest_life.max(seconds(life));
                        continue;
                    }
                    // until somebody can see that it is gone
                    let hidden = match self.allocator {
                        Allocator::Marks => 0.0,
                        Allocator::Silent(millis) => random.exponential(millis as f64 / 1e3),
                    };
                    ends.push(born + life + hidden);
                    outcome.survivors.push(SurveyBlock {
                        block: LiveBlock {
                            address: random.bits() & 0x7fff_ffff_fff0,
                            size: site.size,
                            stack: StackId(site.stack),
                            task: None,
                            born: seconds(born),
                            mean: self.schedule.mean,
                        },
                        usable: (site.size + 15) & !15,
                    });
                }
            }
            outcome.counts.push(count);
        }
        outcome.calls = self.counted.then_some(calls);
        let names = survivors.window_closed(seconds(close), outcome);
        deaths.extend(
            names
                .into_iter()
                .zip(ends)
                .filter_map(|(id, end)| Some((id?, end))),
        );
    }
}

pub(super) fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)
}
