//! Leaks and healthy behaviour, with everything drawn at random.

use super::world::{Random, World};

/// The stack of interest.
pub(super) const SITE: u64 = 1;
/// Stacks with the same remainder are one site.
pub(super) const KEYS: u64 = 100;
/// A busy healthy neighbour.
pub(super) const NEIGHBOUR: u64 = 2;
const EVER: f64 = 1e9;

/// A world that starts `0–30 s` before the observer, who stays `10–120 s`.
fn world(random: &mut Random) -> World {
    let mut world = World {
        attach: random.within(0.0, 30.0),
        run: random.within(12.0, 60.0),
        ..World::default()
    };
    if random.chance(0.5) {
        world.holes = random.scale(1e4, 1e7);
    }
    churn(
        &mut world,
        NEIGHBOUR,
        random.scale(1.0, 20.0),
        random.scale(0.01, 3.0),
        random.scale(32.0, 4096.0) as u64,
        random,
    );
    world
}

/// Times of arrivals, Poisson or regular.
fn arrivals(from: f64, to: f64, rate: f64, random: &mut Random) -> Vec<f64> {
    let regular = random.chance(0.3);
    let mut times = Vec::new();
    let mut at = from + random.within(0.0, 1.0 / rate);
    while at < to {
        times.push(at);
        at += if regular {
            1.0 / rate
        } else {
            random.exponential(1.0 / rate)
        };
    }
    times
}

/// Short-lived blocks in steady state.
fn churn(world: &mut World, stack: u64, rate: f64, life: f64, size: u64, random: &mut Random) {
    for at in arrivals(0.0, world.end(), rate, random) {
        let life = random.exponential(life);
        world.add(stack, at, life, size);
    }
}

/// Rate in blocks per second and size that make a leak worth finding.
fn leak_rate(world: &World, random: &mut Random) -> (f64, u64) {
    let size = random.scale(32.0, 8192.0) as u64;
    // at least 15 blocks and 512 B/s, at most 100 blocks a second
    let least = (15.0 / world.run).max(512.0 / size as f64);
    (random.scale(least, least.max(100.0)), size)
}

pub(super) type Shape = fn(&mut Random) -> World;

/// Leaks of the site [`SITE`].
pub(super) const LEAKS: &[(&str, Shape)] = &[
    ("constant or Poisson", |random| {
        let mut world = world(random);
        let (rate, size) = leak_rate(&world, random);
        for at in arrivals(0.0, world.end(), rate, random) {
            world.add(SITE, at, EVER, size);
        }
        world
    }),
    ("sizes vary", |random| {
        let mut world = world(random);
        let (rate, size) = leak_rate(&world, random);
        for at in arrivals(0.0, world.end(), rate, random) {
            let size = (size as f64 * random.scale(0.25, 4.0)) as u64;
            world.add(SITE, at, EVER, size.max(16));
        }
        world
    }),
    ("in bursts", |random| {
        let mut world = world(random);
        let (_, size) = leak_rate(&world, random);
        let period = random.within(1.0, world.run / 6.0);
        let burst = (random.scale(2.0, 40.0) as u64)
            .max((1024.0 * period / size as f64) as u64)
            .max(2);
        for at in arrivals(0.0, world.end(), 1.0 / period, random) {
            for _ in 0..burst {
                world.add(SITE, at + random.unit() * 0.1, EVER, size);
            }
        }
        world
    }),
    ("a share of short-lived blocks", |random| {
        let mut world = world(random);
        let (rate, size) = leak_rate(&world, random);
        let share = random.within(0.1, 0.5);
        let life = random.scale(0.01, world.run / 15.0);
        for at in arrivals(0.0, world.end(), rate / share, random) {
            let life = if random.chance(share) {
                EVER
            } else {
                random.exponential(life)
            };
            world.add(SITE, at, life, size);
        }
        world
    }),
    ("per connection, from one line", |random| {
        let mut world = world(random);
        let rate = random.within(3.0, 20.0);
        let life = random.scale(0.5, world.run / 8.0);
        for at in arrivals(0.0, world.end(), rate, random) {
            let life = random.exponential(life);
            world.add(SITE, at, life, 1024);
            world.add(SITE, at, life, 256);
            world.add(SITE, at, EVER, 512);
        }
        world
    }),
    ("per connection, from another line", |random| {
        let mut world = world(random);
        let rate = random.within(3.0, 20.0);
        let life = random.scale(0.5, world.run / 8.0);
        for at in arrivals(0.0, world.end(), rate, random) {
            let life = random.exponential(life);
            world.add(SITE, at, life, 1024);
            world.add(SITE, at, life, 256);
            world.add(SITE + KEYS, at, EVER, 512);
        }
        world
    }),
    ("queue with a slow reader", |random| {
        let mut world = world(random);
        let (rate, size) = leak_rate(&world, random);
        let (rate, size) = (rate.max(8.0), size.max(128));
        let share = random.within(0.1, 0.8);
        for at in arrivals(0.0, world.end(), rate, random) {
            // read in order, at `share` of the rate
            world.add(SITE, at, at / share - at + 0.01, size);
        }
        world
    }),
];

/// Healthy behaviour of the site [`SITE`].
pub(super) const HEALTHY: &[(&str, Shape)] = &[
    ("connection churn", |random| {
        let mut world = world(random);
        let life = random.scale(0.05, 5.0);
        churn(
            &mut world,
            SITE,
            random.within(5.0, 60.0),
            life,
            2048,
            random,
        );
        world
    }),
    ("long connections", |random| {
        let mut world = world(random);
        churn(
            &mut world,
            SITE,
            random.within(2.0, 20.0),
            random.within(10.0, 60.0),
            8192,
            random,
        );
        world
    }),
    ("start-up", |random| {
        let mut world = world(random);
        world.attach = random.within(0.0, 2.0);
        let length = random.within(0.5, world.run / 3.0);
        for at in arrivals(0.0, length, random.scale(20.0, 200.0), random) {
            world.add(SITE, at, EVER, 1024);
        }
        world
    }),
    ("burst then idle", |random| {
        let mut world = world(random);
        let at = world.attach + random.within(0.0, world.run * 0.5);
        for _ in 0..500 {
            world.add(SITE, at + random.within(0.0, 1.0), EVER, 4096);
        }
        world
    }),
    ("one Box::leak", |random| {
        let mut world = world(random);
        world.add(
            SITE,
            world.attach + random.within(0.0, world.run),
            EVER,
            10_000_000,
        );
        world
    }),
    ("Vec that doubles", |random| {
        let mut world = world(random);
        let rate = random.scale(1e4, 1e6);
        let mut capacity = 1024.0;
        let mut at = 0.0;
        while at < world.end() {
            let full = capacity / rate;
            world.add(SITE, at, full - at, capacity as u64);
            at = full;
            capacity *= 2.0;
        }
        world
    }),
    ("full LRU cache, attached late", |random| {
        let mut world = world(random);
        let turnover = random.within(5.0, 25.0);
        world.attach = turnover + random.within(1.0, 10.0);
        for at in arrivals(0.0, world.end(), random.within(10.0, 80.0), random) {
            let size = random.scale(128.0, 4096.0) as u64;
            // key and value
            let life = turnover * random.within(0.9, 1.5);
            world.add(SITE, at, life, size);
            world.add(SITE + 10, at, life, 48);
        }
        world
    }),
    ("full FIFO, turnover longer than the run", |random| {
        let mut world = world(random);
        let turnover = world.run * random.within(1.05, 2.0);
        world.attach = turnover + random.within(1.0, 10.0);
        for at in arrivals(0.0, world.end(), random.within(10.0, 50.0), random) {
            world.add(SITE, at, turnover, 1024);
        }
        world
    }),
    ("cache that fills and is full", |random| {
        let mut world = world(random);
        world.attach = random.within(0.0, 3.0);
        let turnover = world.attach + world.run * random.within(0.2, 0.7);
        for at in arrivals(0.0, world.end(), random.within(10.0, 60.0), random) {
            world.add(SITE, at, turnover, 2048);
        }
        world
    }),
    ("cache of few keys, fills ever more slowly", |random| {
        let mut world = world(random);
        let keys = random.within(200.0, 2000.0);
        let rate = keys / (world.run * random.within(0.1, 0.5));
        world.attach = random.within(0.0, 3.0);
        let mut held = 0.0;
        for at in arrivals(0.0, world.end(), rate, random) {
            if random.chance(1.0 - held / keys) {
                held += 1.0;
                world.add(SITE, at, EVER, 1024);
            }
        }
        world
    }),
    ("cache that fills more slowly than the run", |random| {
        let mut world = world(random);
        let (rate, size) = leak_rate(&world, random);
        for at in arrivals(0.0, world.end(), rate, random) {
            world.add(SITE, at, 600.0, size);
        }
        world
    }),
    ("the same, some entries are dropped at once", |random| {
        let mut world = world(random);
        let (rate, size) = leak_rate(&world, random);
        for at in arrivals(0.0, world.end(), rate * 2.0, random) {
            let life = if random.chance(0.5) {
                random.exponential(0.2)
            } else {
                600.0
            };
            world.add(SITE, at, life, size);
        }
        world
    }),
    ("sawtooth, shorter than the run", |random| {
        let mut world = world(random);
        let period = world.run * random.within(0.1, 0.6);
        let phase = random.within(0.0, period);
        for at in arrivals(0.0, world.end(), random.within(10.0, 80.0), random) {
            let into = (at + phase) % period;
            world.add(SITE, at, period - into + 0.001, 1024);
        }
        world
    }),
    ("sawtooth, longer than the run", |random| {
        let mut world = world(random);
        let period = world.run * random.within(1.0, 3.0);
        let phase = random.within(0.0, period);
        for at in arrivals(0.0, world.end(), random.within(10.0, 80.0), random) {
            let into = (at + phase) % period;
            world.add(SITE, at, period - into + 0.001, 1024);
        }
        world
    }),
    ("queue that breathes", |random| {
        let mut world = world(random);
        let period = random.within(3.0, 20.0);
        for at in arrivals(0.0, world.end(), random.within(20.0, 80.0), random) {
            let life = 0.5 + 2.0 * (1.0 + (at / period * std::f64::consts::TAU).sin());
            world.add(SITE, at, life, 1024);
        }
        world
    }),
    ("load that rises", |random| {
        let mut world = world(random);
        let end = world.end();
        for at in arrivals(0.0, end, random.within(40.0, 100.0), random) {
            if random.chance(0.2 + 0.8 * at / end) {
                let life = random.exponential(1.0);
                world.add(SITE, at, life, 2048);
            }
        }
        world
    }),
];
