//! Allocates and frees 200 000 blocks a second, and beside that keeps 20 KiB a
//! second in blocks of one size for ever: the needle that `cargo xtask recall`
//! has lingerscope look for.
//!
//! `churn SIZE`: SIZE 0 keeps nothing. Most blocks live for some 10 ms, one in
//! a hundred for some seconds, and their sizes include SIZE. `churn SIZE same`:
//! all blocks have SIZE and there are more of them at times than at others, so
//! that most allocations get the block that was freed last.
#![expect(clippy::print_stdout, reason = "the driver waits for these lines")]

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

/// Allocations in a round, and as many frees.
const CALLS: usize = 200;
/// From one round to the next.
const ROUND: Duration = Duration::from_millis(1);
/// Blocks that are in use at a time: 200 000 a second, 10 ms each.
const REQUESTS: usize = 2_000;
/// The same of those that live for seconds: 2 000 a second, 5 s each.
const SESSIONS: usize = 10_000;
/// Kept for ever, bytes per second.
const KEPT: f64 = 20.0 * 1024.0;
/// Sizes of the others.
const SIZES: [usize; 8] = [24, 48, 64, 150, 512, 700, 2_000, 4_096];

type Block = Box<[u64]>;

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// What a program writes into its blocks: some of it, never twice the same.
    fn fill(&mut self, mut block: Vec<u64>) -> Block {
        for word in block.iter_mut().take(4) {
            *word = self.next();
        }
        block.into_boxed_slice()
    }
}

#[inline(never)]
fn request(random: &mut Random) -> Block {
    let size = SIZES[random.below(SIZES.len())];
    random.fill(vec![0; size / 8])
}

#[inline(never)]
fn session(random: &mut Random) -> Block {
    let size = SIZES[random.below(SIZES.len())];
    random.fill(vec![1; size / 8])
}

/// Blocks that come and go like a stack's.
#[inline(never)]
fn pushed(random: &mut Random, size: usize) -> Block {
    random.fill(vec![3; size / 8])
}

#[inline(never)]
fn keep_for_ever(random: &mut Random, size: usize) {
    Box::leak(black_box(random.fill(vec![2; size / 8])));
}

/// Blocks that are in use, and how they are replaced.
enum Churn {
    /// Of many sizes and two lengths of life.
    Mixed {
        requests: Vec<Block>,
        sessions: Vec<Block>,
    },
    /// Of one size.
    Same { size: usize, blocks: Vec<Block> },
}

impl Churn {
    fn new(random: &mut Random, same: Option<usize>) -> Self {
        match same {
            Some(size) => Self::Same {
                size,
                blocks: Vec::with_capacity(REQUESTS),
            },
            None => Self::Mixed {
                requests: (0..REQUESTS).map(|_| request(random)).collect(),
                sessions: (0..SESSIONS).map(|_| session(random)).collect(),
            },
        }
    }

    /// A round.
    fn turn(&mut self, random: &mut Random) {
        match self {
            Self::Mixed { requests, sessions } => {
                for _ in 0..CALLS {
                    if random.below(100) == 0 {
                        let place = random.below(SESSIONS);
                        sessions[place] = session(random);
                    } else {
                        let place = random.below(REQUESTS);
                        requests[place] = request(random);
                    }
                }
            }
            Self::Same { size, blocks } => {
                let mut left = CALLS;
                while left > 0 {
                    let up = random.below(left.min(100)) + 1;
                    let full = REQUESTS.saturating_sub(blocks.len());
                    blocks.extend((0..up.min(full)).map(|_| pushed(random, *size)));
                    let down = random.below(blocks.len().min(100)) + 1;
                    blocks.truncate(blocks.len() - down);
                    left -= up;
                }
            }
        }
    }
}

fn main() {
    let argument = |at| std::env::args().nth(at);
    let size = argument(1).and_then(|size| size.parse().ok());
    let size: usize = size.unwrap_or(0);
    let same = argument(2).is_some_and(|word| word == "same");
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(std::process::id()));
    let mut churn = Churn::new(&mut random, same.then_some(size.max(64)));
    println!("READY");
    let begin = Instant::now();
    let mut kept = 0.0;
    for round in 1.. {
        churn.turn(&mut random);
        while size > 0 && kept + size as f64 <= begin.elapsed().as_secs_f64() * KEPT {
            keep_for_ever(&mut random, size);
            kept += size as f64;
        }
        // What was missed is made up for: the rate holds on a busy machine.
        thread::sleep((ROUND * round).saturating_sub(begin.elapsed()));
    }
}
