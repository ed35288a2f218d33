//! Breakpoints in a process: bytes of its text that differ from the file's.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// Addresses in `pid` that hold the breakpoint instruction where the mapped
/// file has another byte.
pub(crate) fn in_process(pid: u32) -> Result<Vec<u64>> {
    let differing = differing(pid)?.into_iter();
    let breakpoints = differing.filter(|(_, byte)| *byte == 0xCC);
    Ok(breakpoints.map(|(address, _)| address).collect())
}

/// Bytes of the code of `pid` that are others than in the mapped files.
pub(crate) fn differing(pid: u32) -> Result<Vec<(u64, u8)>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("the process is gone")?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut found = Vec::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.splitn(6, ' ').map(str::trim).collect();
        let [range, permissions, offset, _, _, path] = fields[..] else {
            continue;
        };
        if !permissions.contains('x') || !path.starts_with('/') {
            continue;
        }
        let (low, high) = range.split_once('-').context("maps")?;
        let (low, high) = (
            u64::from_str_radix(low, 16)?,
            u64::from_str_radix(high, 16)?,
        );
        let mut live = vec![0; (high - low) as usize];
        memory.read_exact_at(&mut live, low)?;
        let mut original = vec![0; live.len()];
        // By the mapping itself: names may lead to another file by now.
        // They are written without the zeros in front that the list has.
        let file = File::open(format!("/proc/{pid}/map_files/{low:x}-{high:x}"))?;
        let length = read_up_to(&file, &mut original, u64::from_str_radix(offset, 16)?)?;
        let pairs = live.iter().zip(&original).take(length).enumerate();
        found.extend(
            pairs
                .filter(|(_, (live, original))| live != original)
                .map(|(index, (live, _))| (low + index as u64, *live)),
        );
    }
    Ok(found)
}

/// Reads until the buffer or the file ends.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + length as u64)? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

/// Waits until the process has breakpoints; how long it took.
pub(crate) fn wait_for(pid: u32, limit: Duration) -> Result<Duration> {
    let begin = Instant::now();
    while in_process(pid)?.is_empty() {
        ensure!(
            begin.elapsed() < limit,
            "no breakpoint in {pid} within {limit:?}"
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(begin.elapsed())
}

/// Waits until none is left; how long it took.
pub(crate) fn wait_until_gone(pid: u32, limit: Duration) -> Result<Duration> {
    let begin = Instant::now();
    loop {
        let left = in_process(pid)?;
        if left.is_empty() {
            return Ok(begin.elapsed());
        }
        ensure!(
            begin.elapsed() < limit,
            "{} breakpoints left in {pid} after {limit:?}, the first at {:#x}",
            left.len(),
            left[0]
        );
        thread::sleep(Duration::from_millis(50));
    }
}
