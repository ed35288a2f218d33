//! Histories through the judge: false suspects, and times to suspicion.

use std::fmt;

use lingerscope::watch::{
    Growth, Resolution, Settings,
    history::{COARSE, History},
    judgement::{Judge, PAGE},
};

use super::{
    healthy::{Family, INTERVAL, Life},
    random::{Random, Wander},
};

const DAY: f64 = 86_400.0;

/// What a family of healthy histories gave.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Process-days that were judged.
    pub(crate) days: f64,
    /// Suspects of each resolution.
    pub(crate) fast: u32,
    pub(crate) slow: u32,
    /// Those that were urgent, which are not among the others.
    pub(crate) urgent: u32,
    /// Processes.
    pub(crate) lives: u32,
}

impl Tally {
    pub(crate) fn suspects(&self) -> u32 {
        self.fast + self.slow
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.days += other.days;
        self.fast += other.fast;
        self.slow += other.slow;
        self.urgent += other.urgent;
        self.lives += other.lives;
    }

    /// Upper 95 % bound of suspects per process-day (one-sided, Poisson).
    pub(crate) fn upper(&self) -> f64 {
        // Exact for none; for more the square-root approximation of the
        // chi-squared quantile, which is within 3 % from one on.
        let count = f64::from(self.suspects());
        let bound = if count < 0.5 {
            2.996
        } else {
            let next = count + 1.0;
            next * (1.0 - 1.0 / (9.0 * next) + 1.645 / (3.0 * next.sqrt())).powi(3)
        };
        bound / self.days.max(1e-9)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>9.0} process-days {:>7} lives {:>4} fast {:>4} slow: {:.1e} a process-day (at most {:.1e}); {:>4} urgent",
            self.days,
            self.lives,
            self.fast,
            self.slow,
            f64::from(self.suspects()) / self.days.max(1e-9),
            self.upper(),
            self.urgent
        )
    }
}

/// Judges one series of samples as the watch does; gives what it found.
pub(crate) struct Judged<'a> {
    judge: &'a Judge,
    history: History,
    limit: Option<f64>,
}

impl<'a> Judged<'a> {
    pub(crate) fn new(judge: &'a Judge, limit: Option<f64>) -> Self {
        let settle = judge.settings().settle.as_secs_f64() / INTERVAL;
        Self {
            judge,
            history: History::new(settle.ceil() as u64, COARSE),
            limit,
        }
    }

    pub(crate) fn next(&mut self, bytes: f64) -> Option<Growth> {
        let completed = self.history.push((bytes / PAGE as f64) as u32);
        if !self.judge.is_candidate(&self.history, completed) {
            return None;
        }
        let headroom = self.limit.map(|limit| (limit - bytes).max(0.0) as u64);
        self.judge.judge(&self.history, completed, 0, headroom)
    }

    /// As after an explanation.
    pub(crate) fn dismiss(&mut self) {
        self.history.begin_anew();
    }
}

/// Runs healthy lives of a family for so many days.
pub(crate) fn healthy(family: Family, days: f64, seed: u64) -> Tally {
    let judge = Judge::new(&Settings::default());
    let mut tally = Tally::default();
    while tally.days < days {
        let seed = seed ^ (u64::from(tally.lives) << 20) ^ family as u64;
        let mut life = Life::new(family, seed);
        let mut judged = Judged::new(&judge, Some(life.limit));
        while !life.is_over() {
            if let Some(growth) = judged.next(life.next()) {
                match growth.resolution {
                    _ if growth.urgent => tally.urgent += 1,
                    Resolution::Fast => tally.fast += 1,
                    Resolution::Slow => tally.slow += 1,
                }
                judged.dismiss();
            }
        }
        tally.days += life.lifetime / DAY;
        tally.lives += 1;
    }
    tally
}

/// Noise that a leak hides in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Noise {
    /// An idle server: 64 KiB to and fro.
    Quiet,
    /// A busy one: 1 MiB to and fro within a minute.
    Busy,
    /// A garbage collector: teeth of 8 MiB every 45 s, and the busy noise.
    Collected,
}

/// Seconds from the beginning of a leak to suspicion, in so many runs; the
/// leak begins two hours after the start. `None` in a run: not in a day.
pub(crate) fn leak(rate: f64, noise: Noise, headroom: f64, runs: u64) -> Vec<Option<f64>> {
    const KIB: f64 = 1024.0;
    const QUIET: f64 = 7200.0;
    let judge = Judge::new(&Settings::default());
    (0..runs)
        .map(|run| {
            let mut random = Random::new(run);
            let base = random.magnitude(8192.0 * KIB, 1024.0 * 1024.0 * KIB);
            let mut wander = Wander::new(6.0, &mut random);
            let (size, tooth) = match noise {
                Noise::Quiet => (64.0 * KIB, 0.0),
                Noise::Busy => (1024.0 * KIB, 0.0),
                Noise::Collected => (1024.0 * KIB, 8192.0 * KIB),
            };
            let mut judged = Judged::new(&judge, Some(base + headroom));
            let mut at = 0.0;
            loop {
                at += INTERVAL;
                let leaked = rate * f64::max(at - QUIET, 0.0);
                let teeth = tooth * (at / 45.0).fract();
                let bytes = base + leaked + teeth + size * wander.next(&mut random);
                if judged.next(bytes).is_some() {
                    return Some(at - QUIET);
                }
                if at - QUIET > DAY {
                    return None;
                }
            }
        })
        .collect()
}
