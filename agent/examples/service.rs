//! Answers requests that each allocate a lot, and notes how long every one
//! took: the program whose latency `cargo xtask bench` compares with and
//! without lingerscope.
//!
//! `service FILE SECONDS`: a single thread, one request after the other, about
//! a thousand a second with 200 allocations each. FILE gets two u64 in little
//! endian per request: the CLOCK_MONOTONIC nanoseconds of its end, and the
//! nanoseconds it took.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::{
    error::Error,
    fs::File,
    hint::black_box,
    io::{BufWriter, Write as _},
    time::{Duration, Instant},
};

/// Blocks that a request allocates; those of the one before are freed.
const BLOCKS: usize = 200;
/// What a request takes when nobody looks on.
const REQUEST: Duration = Duration::from_millis(1);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("service FILE SECONDS")?;
    let seconds: u64 = arguments.next().ok_or("service FILE SECONDS")?.parse()?;
    let mut file = BufWriter::with_capacity(1 << 16, File::create(file)?);
    let rounds = calibrate();
    let mut held = Vec::new();
    println!("PID {}", std::process::id());
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let begin = Instant::now();
        if begin >= end {
            file.flush()?;
            return Ok(());
        }
        black_box(work(rounds));
        drop(std::mem::replace(&mut held, allocate()));
        let took = begin.elapsed().as_nanos() as u64;
        file.write_all(&monotonic_ns().to_le_bytes())?;
        file.write_all(&took.to_le_bytes())?;
    }
}

#[inline(never)]
fn allocate() -> Vec<Vec<u8>> {
    (0..BLOCKS)
        .map(|at| vec![at as u8; 16 + at * 37 % 500])
        .collect()
}

/// Work that allocates nothing.
#[inline(never)]
fn work(rounds: u64) -> u64 {
    (0..rounds).fold(1, |sum, at| black_box(sum * 31 + at % 7) % 1_000_003)
}

/// Rounds of work that fill up a request.
fn calibrate() -> u64 {
    const TRIED: u64 = 2_000_000;
    let mut fastest = Duration::MAX;
    let mut blocks = Duration::MAX;
    for _ in 0..5 {
        let begin = Instant::now();
        black_box(work(TRIED));
        fastest = fastest.min(begin.elapsed());
        let begin = Instant::now();
        drop(black_box(allocate()));
        blocks = blocks.min(begin.elapsed());
    }
    let left = REQUEST.saturating_sub(blocks).as_secs_f64();
    (left / fastest.as_secs_f64() * TRIED as f64) as u64
}

fn monotonic_ns() -> u64 {
    // SAFETY: the pointer is to a timespec of ours.
    let now = unsafe {
        let mut now = std::mem::zeroed::<libc::timespec>();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
        now
    };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
