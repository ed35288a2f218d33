//! Allocates and frees in a tight loop below a stack of a given depth, and
//! prints what a pair costs: the program that `cargo xtask bench` measures.
//!
//! `pairs DEPTH` prints one line every 50 ms: nanoseconds per pair.
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
    println!("PID {}", std::process::id());
    descend(depth);
}

/// Frames of different shapes: each keeps values across the call, so that
/// callee-saved registers and stack space are in use.
#[inline(never)]
fn descend(depth: u32) -> u64 {
    let kept = black_box(u64::from(depth) * 3);
    let below = match depth {
        0 => measure(),
        depth if depth % 2 == 0 => descend(black_box(depth - 1)),
        depth => descend_with_buffer(black_box(depth - 1)),
    };
    black_box(kept) + below
}

#[inline(never)]
fn descend_with_buffer(depth: u32) -> u64 {
    let buffer = black_box([u64::from(depth); 12]);
    let below = descend(black_box(depth));
    black_box(buffer).iter().sum::<u64>() + below
}

#[inline(never)]
fn measure() -> u64 {
    loop {
        let (mut best, end) = (f64::MAX, Instant::now() + Duration::from_millis(50));
        while Instant::now() < end {
            let began = Instant::now();
            for _ in 0..PAIRS {
                black_box(Box::new(black_box([1u8; 64])));
            }
            best = best.min(began.elapsed().as_nanos() as f64 / f64::from(PAIRS));
        }
        println!("{best:.1}");
    }
}
