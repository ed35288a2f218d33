//! Which processor runs what, and what this program holds of memory.

use std::{fs, io};

use anyhow::{Context as _, Result};

/// The measured program has a processor to itself, as far as that can be had.
pub(crate) struct Processors {
    /// For this program.
    pub(crate) ours: usize,
    /// For the measured program.
    pub(crate) theirs: usize,
}

impl Processors {
    /// Takes the first and the last processor that may be used, and moves this
    /// program to the first.
    pub(crate) fn choose() -> Result<Self> {
        // SAFETY: plain data, filled in by the kernel.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set is as long as it says.
        if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } != 0 {
            return Err(io::Error::last_os_error()).context("cannot ask for the processors");
        }
        let allowed = |cpu: &usize| {
            // SAFETY: below the number of bits in the set.
            unsafe { libc::CPU_ISSET(*cpu, &set) }
        };
        let mut usable = (0..libc::CPU_SETSIZE as usize).filter(allowed);
        let ours = usable.next().context("no processor may be used")?;
        let theirs = usable.next_back().unwrap_or(ours);
        pin(0, ours)?;
        Ok(Self { ours, theirs })
    }
}

/// Binds a process, or this one for 0, to one processor.
pub(crate) fn pin(pid: u32, cpu: usize) -> Result<()> {
    // SAFETY: plain data.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number comes from such a set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is as long as it says.
    if unsafe { libc::sched_setaffinity(pid as i32, size_of_val(&set), &raw const set) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot bind process {pid} to processor {cpu}"));
    }
    Ok(())
}

/// Resident memory of this program.
pub(crate) fn resident_bytes() -> Result<u64> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let kilobytes: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .context("/proc/self/status tells no VmRSS")?;
    Ok(kilobytes << 10)
}
