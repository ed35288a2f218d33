//! Generated histories: blocks that are born and die, and what an observer
//! who arrives late sees of them.

use std::{collections::BTreeMap, time::Duration};

use agent_ebpf::logic::sampling::weight;

use crate::ledger::{Calls, Ledger, LiveBlock, Observation, SiteTotals, StackId};

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

    pub(super) fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Evenly over the orders of magnitude.
    pub(super) fn scale(&mut self, low: f64, high: f64) -> f64 {
        (self.within(low.ln(), high.ln())).exp()
    }

    pub(super) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }
}

#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) born: f64,
    pub(super) died: f64,
    pub(super) size: u64,
    pub(super) stack: u64,
}

/// A program's whole life, from its start.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) blocks: Vec<Block>,
    /// When the observer arrives.
    pub(super) attach: f64,
    /// How long it stays.
    pub(super) run: f64,
    /// Free memory inside the heap when it arrives.
    pub(super) holes: f64,
}

impl World {
    pub(super) fn end(&self) -> f64 {
        self.attach + self.run
    }

    pub(super) fn add(&mut self, stack: u64, born: f64, life: f64, size: u64) {
        self.blocks.push(Block {
            born,
            died: born + life,
            size,
            stack,
        });
    }

    /// What the observer's ledger holds in the end. `mean` is the sampling
    /// mean; `witness`: whether calls are counted; `tick`: seconds between
    /// observations.
    pub(super) fn observe(
        &self,
        mean: u64,
        witness: bool,
        tick: f64,
        random: &mut Random,
    ) -> Ledger {
        let mut ledger = Ledger::default();
        let sampled: Vec<bool> = self
            .blocks
            .iter()
            .map(|b| b.born >= self.attach && random.chance(1.0 / weight(b.size, mean)))
            .collect();
        let mut events: Vec<(f64, bool, usize)> = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            events.extend([(block.born, true, index), (block.died, false, index)]);
        }
        events.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut events = events.into_iter().peekable();
        let mut sites: BTreeMap<u64, SiteTotals> = BTreeMap::new();
        let mut live: BTreeMap<usize, LiveBlock> = BTreeMap::new();
        let mut calls = Calls::default();
        let (mut all, mut heap) = (0.0, 0.0f64);
        let mut arrived = false;
        for step in 0..=(self.run / tick).floor() as u64 {
            let now = self.attach + step as f64 * tick;
            while let Some((at, birth, index)) = events.next_if(|event| event.0 <= now) {
                let block = &self.blocks[index];
                if at >= self.attach && !arrived {
                    arrived = true;
                    heap = all + self.holes;
                }
                all += if birth { 1.0 } else { -1.0 } * block.size as f64;
                heap = heap.max(all);
                if at >= self.attach {
                    *if birth {
                        &mut calls.allocations
                    } else {
                        &mut calls.frees
                    } += 1;
                }
                if !sampled[index] {
                    continue;
                }
                let totals = sites.entry(block.stack).or_insert(SiteTotals {
                    stack: StackId(block.stack),
                    allocated: 0,
                    freed: 0,
                    longest_life: Duration::ZERO,
                    lives: Duration::ZERO,
                });
                if birth {
                    totals.allocated += 1;
                    let born = Duration::from_secs_f64(block.born - self.attach);
                    let address = 0x1000 + index as u64 * 16;
                    live.insert(
                        index,
                        LiveBlock {
                            address,
                            size: block.size,
                            stack: StackId(block.stack),
                            task: None,
                            born,
                            mean,
                        },
                    );
                } else {
                    live.remove(&index);
                    let age = Duration::from_secs_f64(block.died - block.born);
                    totals.freed += 1;
                    totals.longest_life = totals.longest_life.max(age);
                    totals.lives += age;
                }
            }
            let noise = (random.unit() * 8.0).floor() * 4096.0;
            ledger.observe(Observation {
                at: Duration::from_secs_f64(step as f64 * tick),
                sites: sites.values().cloned().collect(),
                live: live.values().cloned().collect(),
                anonymous_bytes: Some((5_000_000.0 + heap * 1.06 + noise) as u64),
                calls: witness.then_some(calls),
            });
        }
        ledger
    }

    /// Bytes that a stack holds at a time.
    pub(super) fn held(&self, stack: u64, at: f64) -> f64 {
        self.blocks
            .iter()
            .filter(|b| b.stack % super::KEYS == stack && b.born <= at && b.died > at)
            .map(|b| b.size as f64)
            .sum()
    }

    /// What the program itself would count as leaked by a stack over the run,
    /// bytes per second: blocks that are never freed, or else, for a queue,
    /// the growth of what it holds.
    pub(super) fn leaked(&self, stack: u64) -> f64 {
        let run = self.run.floor();
        let within = |b: &&Block| b.stack % super::KEYS == stack && b.died > 1e8;
        if !self.blocks.iter().any(|b| within(&b)) {
            return self.growth(stack);
        }
        let window = self.attach..self.attach + run;
        self.blocks
            .iter()
            .filter(within)
            .filter(|b| window.contains(&b.born))
            .map(|b| b.size as f64)
            .sum::<f64>()
            / run
    }

    /// Growth of what a stack holds over the run, bytes per second.
    fn growth(&self, stack: u64) -> f64 {
        let run = self.run.floor();
        (self.held(stack, self.attach + run) - self.held(stack, self.attach)) / run
    }
}
