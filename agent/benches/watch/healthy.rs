//! Memory of healthy programs over time, invented.

use super::random::{Random, Wander};

const MIB: f64 = 1_048_576.0;
/// Seconds from one sample to the next.
pub(crate) const INTERVAL: f64 = 10.0;

/// Kinds of healthy histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// A straight or bent rise of 5 to 180 s, then flat; ends after hours.
    StartUp,
    /// An exponential approach, time constant 1 to 10 min.
    WarmUp,
    /// Rises evenly and falls, every 20 s to 8 min; no two teeth are alike.
    Sawtooth,
    /// A day's wave with the noise of traffic.
    Daily,
    /// Work now and then that takes memory for minutes and gives it back.
    Bursts,
    /// Sudden changes that stay.
    Steps,
    /// Wanders and comes back.
    Wandering,
    /// A cache that fills, time constant 2 to 15 min, filling with traffic.
    Cache,
    /// Fragmentation: grows with the logarithm of time.
    Creep,
    /// A day's wave, sawtooth and bursts together.
    Mixed,
    /// Fills evenly, or with a time constant, for longer than any patience.
    LongFill,
}

impl Family {
    /// Those that must not be suspected.
    pub(crate) const BARRED: [Self; 10] = [
        Self::StartUp,
        Self::WarmUp,
        Self::Sawtooth,
        Self::Daily,
        Self::Bursts,
        Self::Steps,
        Self::Wandering,
        Self::Cache,
        Self::Creep,
        Self::Mixed,
    ];
}

/// One program's life.
pub(crate) struct Life {
    random: Random,
    /// Seconds since it started.
    age: f64,
    /// Seconds that it lives.
    pub(crate) lifetime: f64,
    /// Bytes below which it never is once it has started, and all the rest.
    base: f64,
    rise: f64,
    straight: bool,
    parts: Vec<Part>,
    noise: f64,
    wander: Wander,
    /// Most that it will take.
    pub(crate) limit: f64,
}

enum Part {
    Approach {
        size: f64,
        time: f64,
        straight: bool,
        traffic: Wander,
        spread: f64,
        done: f64,
    },
    Tooth {
        size: f64,
        period: f64,
        spread: f64,
        at: f64,
        height: f64,
        floor: f64,
    },
    Wave {
        size: f64,
        phase: f64,
        traffic: Wander,
        spread: f64,
    },
    Burst {
        size: f64,
        per_sample: f64,
        length: f64,
        ramp: f64,
        at: f64,
        height: f64,
    },
    Step {
        size: f64,
        per_sample: f64,
        level: f64,
    },
    Walk {
        size: f64,
        walk: Wander,
    },
    Log {
        size: f64,
        time: f64,
    },
}

impl Life {
    pub(crate) fn new(family: Family, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let r = &mut random;
        let base = r.magnitude(2.0 * MIB, 4096.0 * MIB);
        let long = r.magnitude(3600.0, 4.0 * 86_400.0);
        let parts = match family {
            Family::StartUp => Vec::new(),
            Family::WarmUp => vec![approach(base, (60.0, 600.0), false, r)],
            Family::Sawtooth => vec![tooth(base, r)],
            Family::Daily => vec![wave(base, r)],
            Family::Bursts => vec![burst(base, r)],
            Family::Steps => vec![step(base, r)],
            Family::Wandering => {
                let time = r.magnitude(300.0, 86_400.0);
                vec![Part::Walk {
                    size: base * r.magnitude(0.01, 0.3),
                    walk: Wander::new(time / INTERVAL, r),
                }]
            }
            Family::Cache => vec![approach(base, (120.0, 900.0), false, r)],
            Family::Creep => vec![Part::Log {
                size: base * r.magnitude(0.005, 0.05),
                time: r.magnitude(30.0, 600.0),
            }],
            Family::Mixed => vec![wave(base, r), tooth(base, r), burst(base, r)],
            Family::LongFill => {
                let straight = r.happens(0.5);
                vec![approach(base, (1800.0, 43_200.0), straight, r)]
            }
        };
        let size: f64 = base + parts.iter().map(Part::most).sum::<f64>();
        let wander = Wander::new(r.magnitude(0.1, 30.0), r);
        Self {
            age: 0.0,
            lifetime: long,
            base,
            rise: r.magnitude(5.0, 180.0),
            straight: r.happens(0.5),
            parts,
            noise: base * r.magnitude(1e-5, 1e-2),
            wander,
            // Whoever sets a limit leaves some room.
            limit: size * r.magnitude(1.2, 20.0),
            random,
        }
    }

    /// Bytes at the next sample.
    pub(crate) fn next(&mut self) -> f64 {
        self.age += INTERVAL;
        let share = if self.straight {
            (self.age / self.rise).min(1.0)
        } else {
            1.0 - (-3.0 * self.age / self.rise).exp()
        };
        let mut bytes = self.base * share;
        let noise = self.noise * self.wander.next(&mut self.random);
        for part in &mut self.parts {
            bytes += part.next(self.age, &mut self.random);
        }
        (bytes + noise).max(65_536.0)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.age >= self.lifetime
    }
}

fn approach(base: f64, (low, high): (f64, f64), straight: bool, r: &mut Random) -> Part {
    Part::Approach {
        size: base * r.magnitude(0.1, 4.0),
        time: r.magnitude(low, high),
        straight,
        traffic: Wander::new(r.magnitude(1.0, 60.0), r),
        spread: r.magnitude(0.05, 0.4),
        done: 0.0,
    }
}

fn tooth(base: f64, r: &mut Random) -> Part {
    let size = base * r.magnitude(0.05, 2.0);
    Part::Tooth {
        size,
        period: r.magnitude(20.0, 480.0),
        spread: r.between(0.02, 0.2),
        at: 0.0,
        height: size,
        floor: 0.0,
    }
}

fn wave(base: f64, r: &mut Random) -> Part {
    Part::Wave {
        size: base * r.magnitude(0.05, 0.5),
        phase: r.share(),
        traffic: Wander::new(r.magnitude(6.0, 60.0), r),
        spread: r.magnitude(0.05, 0.2),
    }
}

fn burst(base: f64, r: &mut Random) -> Part {
    Part::Burst {
        size: base * r.magnitude(0.1, 3.0),
        per_sample: r.magnitude(1.0, 48.0) * INTERVAL / 86_400.0,
        length: r.magnitude(30.0, 3600.0),
        ramp: r.magnitude(10.0, 300.0),
        at: f64::INFINITY,
        height: 0.0,
    }
}

fn step(base: f64, r: &mut Random) -> Part {
    Part::Step {
        size: base * r.magnitude(0.01, 0.3),
        per_sample: r.magnitude(1.0, 100.0) * INTERVAL / 86_400.0,
        level: 0.0,
    }
}

impl Part {
    fn most(&self) -> f64 {
        match self {
            Self::Approach { size, .. } => *size,
            Self::Tooth { size, .. } | Self::Burst { size, .. } => size * 1.5,
            Self::Wave { size, .. } | Self::Step { size, .. } => size * 2.0,
            Self::Walk { size, .. } => size * 4.0,
            Self::Log { size, .. } => size * 10.0,
        }
    }

    fn next(&mut self, age: f64, random: &mut Random) -> f64 {
        match self {
            Self::Approach {
                size,
                time,
                straight,
                traffic,
                spread,
                done,
            } => {
                let speed = (1.0 + *spread * traffic.next(random)).max(0.0);
                let left = if *straight { 1.0 } else { 1.0 - *done };
                *done = (*done + left * speed * INTERVAL / *time).min(1.0);
                *size * *done
            }
            Self::Tooth {
                size,
                period,
                spread,
                at,
                height,
                floor,
            } => {
                *at += INTERVAL / *period;
                if *at >= 1.0 {
                    *at = 0.0;
                    *height = *size * (1.0 + *spread * random.normal()).max(0.1);
                    *floor = *size * 0.2 * *spread * random.normal().abs();
                }
                *floor + (*height - *floor).max(0.0) * *at
            }
            Self::Wave {
                size,
                phase,
                traffic,
                spread,
            } => {
                let turn = std::f64::consts::TAU * (age / 86_400.0 + *phase);
                *size * (1.0 - turn.cos() + *spread * traffic.next(random)) / 2.0
            }
            Self::Burst {
                size,
                per_sample,
                length,
                ramp,
                at,
                height,
            } => {
                *at += INTERVAL;
                if *at > *length + 2.0 * *ramp {
                    if random.happens(*per_sample) {
                        *at = 0.0;
                        *height = *size * random.between(0.5, 1.5);
                    }
                    return 0.0;
                }
                let up = (*at / *ramp).min(1.0);
                let down = ((*length + 2.0 * *ramp - *at) / *ramp).clamp(0.0, 1.0);
                *height * up.min(down)
            }
            Self::Step {
                size,
                per_sample,
                level,
            } => {
                if random.happens(*per_sample) {
                    // What has risen rather falls next.
                    let up = random.happens(0.5 - 0.4 * (*level / (3.0 * *size)).clamp(-1.0, 1.0));
                    let by = *size * random.share();
                    *level += if up { by } else { -by };
                }
                level.max(0.0)
            }
            Self::Walk { size, walk } => *size * (walk.next(random) + 2.0).max(0.0),
            Self::Log { size, time } => *size * (1.0 + age / *time).ln(),
        }
    }
}
