//! Processor time of processes.

use std::time::Duration;

/// Processor time that all threads of a process have taken since its start, by
/// its own clock (clock_getcpuclockid(3)); none when it has ended.
pub fn of(pid: u32) -> Option<Duration> {
    let pid = libc::pid_t::try_from(pid).ok()?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid place for the result.
    (unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } == 0)
        .then(|| read(clock))
        .flatten()
}

/// Our own.
pub fn own() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap_or_default()
}

fn read(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result.
    let got = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (got == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_work() {
        let before = of(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while own() < before + Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(of(std::process::id()).unwrap() >= before + Duration::from_millis(20));
        assert_eq!(of(u32::MAX), None);
    }
}
