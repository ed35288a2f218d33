//! Allocates and frees in a tight loop below a stack of a given depth, and
//! prints what a pair costs: the program that `cargo xtask bench` measures.
//!
//! `pairs DEPTH` prints one line every 50 ms: nanoseconds per pair. `pairs DEPTH
//! varied` allocates all over a tree of calls instead, so that no pair has the
//! stack of the one before.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Calls in one measurement, so that reading the clock does not count.
const PAIRS: u32 = 100;

fn main() {
    let argument = std::env::args().nth(1);
    let depth = argument.and_then(|depth| depth.parse().ok()).unwrap_or(50);
    let varied = std::env::args().nth(2).as_deref() == Some("varied");
    println!("PID {}", std::process::id());
    descend(depth, if varied { measure_varied } else { measure });
}

/// Frames of different shapes: each keeps values across the call, so that
/// callee-saved registers and stack space are in use.
#[inline(never)]
fn descend(depth: u32, measure: fn() -> u64) -> u64 {
    let kept = black_box(u64::from(depth) * 3);
    let below = match depth {
        0 => measure(),
        depth if depth % 2 == 0 => descend(black_box(depth - 1), measure),
        depth => descend_with_buffer(black_box(depth - 1), measure),
    };
    black_box(kept) + below
}

#[inline(never)]
fn descend_with_buffer(depth: u32, measure: fn() -> u64) -> u64 {
    let buffer = black_box([u64::from(depth); 12]);
    let below = descend(black_box(depth), measure);
    black_box(buffer).iter().sum::<u64>() + below
}

fn pair() {
    black_box(Box::new(black_box([1u8; 64])));
}

#[inline(never)]
fn measure() -> u64 {
    report(PAIRS, || {
        for _ in 0..PAIRS {
            pair();
        }
    })
}

/// Levels of a tree of calls below its root.
const LEVELS: u32 = 6;
/// Trees that are walked in one measurement.
const TREES: u32 = 8;

#[inline(never)]
fn measure_varied() -> u64 {
    let pairs = TREES * ((2 << LEVELS) - 1);
    report(pairs, || {
        for tree in 0..TREES {
            black_box(NODES[tree as usize % NODES.len()](LEVELS, tree));
        }
    })
}

/// A node of the tree: a pair of its own, and two further nodes, called from
/// places of their own.
type Node = fn(u32, u32) -> u64;

/// Makes functions that differ in their frames and in what they call.
macro_rules! nodes {
    ($($name:ident: $words:literal),*) => {
        $(#[inline(never)]
        fn $name(level: u32, seed: u32) -> u64 {
            let kept = black_box([u64::from(seed); $words]);
            pair();
            let mut sum = 0;
            if level > 0 {
                let next = seed.wrapping_mul(5).wrapping_add(level);
                sum += black_box(NODES[next as usize % NODES.len()])(level - 1, next);
                sum += black_box(NODES[(next as usize + $words) % NODES.len()])(level - 1, next + 1);
            }
            black_box(kept).iter().sum::<u64>() + sum
        })*
        const NODES: &[Node] = &[$($name),*];
    };
}
nodes!(n1: 1, n2: 2, n3: 3, n5: 5, n7: 7, n9: 9, n11: 11, n13: 13, n17: 17, n20: 20, n24: 24);

/// Prints the least nanoseconds per pair of `batch` over and over.
fn report(pairs: u32, batch: impl Fn()) -> u64 {
    loop {
        let (mut best, end) = (f64::MAX, Instant::now() + Duration::from_millis(50));
        while Instant::now() < end {
            let began = Instant::now();
            batch();
            best = best.min(began.elapsed().as_nanos() as f64 / f64::from(pairs));
        }
        println!("{best:.1}");
    }
}
