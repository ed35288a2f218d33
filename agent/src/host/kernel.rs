//! What the running kernel offers.

use std::fs;

use anyhow::{Context as _, Result};

use super::btf::{self, Btf};

/// Byte offsets of kernel fields, by the names of the globals in the kernel
/// programs that hold them.
pub type FieldOffsets = [(&'static str, u64); 9];

/// Reads the offsets that the kernel programs need.
///
/// # Errors
/// When the kernel shows no type information (CONFIG_DEBUG_INFO_BTF) or a
/// field does not exist.
pub fn field_offsets() -> Result<FieldOffsets> {
    let data = fs::read(btf::KERNEL).with_context(|| {
        format!(
            "cannot read {}: lingerscope needs a kernel with BTF (CONFIG_DEBUG_INFO_BTF)",
            btf::KERNEL
        )
    })?;
    let types = Btf::parse(data).with_context(|| format!("{} is damaged", btf::KERNEL))?;
    Ok([
        ("TASK_FSBASE", types.offset("task_struct", "thread.fsbase")?),
        ("TASK_TGID", types.offset("task_struct", "tgid")?),
        ("TASK_PID", types.offset("task_struct", "pid")?),
        ("TASK_EXIT_CODE", types.offset("task_struct", "exit_code")?),
        ("TASK_SIGNAL", types.offset("task_struct", "signal")?),
        ("SIGNAL_LIVE", types.offset("signal_struct", "live")?),
        (
            "TASK_RAN",
            types.offset("task_struct", "se.sum_exec_runtime")?,
        ),
        // Only with CONFIG_SCHED_INFO; without it, a wait includes the time
        // until the thread got a processor again.
        (
            "TASK_DELAYED",
            types
                .offset("task_struct", "sched_info.run_delay")
                .unwrap_or(0),
        ),
        // Renamed in 5.14.
        (
            "TASK_STATE",
            types
                .offset("task_struct", "__state")
                .or_else(|_| types.offset("task_struct", "state"))?,
        ),
    ])
}

/// Kernel release, such as `6.18.44`.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Major and minor number of a release; `None` for an unusual one.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Processors of the host, which may be more than we may run on.
pub fn processors() -> u32 {
    // SAFETY: takes no pointers.
    let number = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u32::try_from(number).unwrap_or(1).max(1)
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of the kernel programs.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.10.0-32-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("odd"), None);
    }
}
