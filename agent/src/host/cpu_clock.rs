//! Processor time of a process, exact and cheap: about a microsecond, where
//! `/proc/PID/stat` counts in hundredths of a second.

use std::{io, time::Duration};

/// The clock of one process: counts the time for which its threads ran, in
/// user space and in the kernel, ended threads included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// Our own.
    pub const OURS: Self = Self(libc::CLOCK_PROCESS_CPUTIME_ID);

    /// That of the calling thread.
    pub const THIS_THREAD: Self = Self(libc::CLOCK_THREAD_CPUTIME_ID);

    /// That of a process. It does not tell a later process of the same id
    /// from this one.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut clock = 0;
        // SAFETY: room for the answer; a number that is no process id gives
        // an error.
        match unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) } {
            0 => Ok(Self(clock)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Time so far.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn read(self) -> io::Result<Duration> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: room for the answer.
        if unsafe { libc::clock_gettime(self.0, &raw mut time) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_a_process_runs_and_ends_with_it() {
        let mut busy = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let clock = CpuClock::of(busy.id()).unwrap();
        let before = clock.read().unwrap();
        let began = std::time::Instant::now();
        while clock.read().unwrap() < before + Duration::from_millis(20) {
            assert!(began.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert!(clock.read().is_err());
        assert!(CpuClock::of(busy.id()).is_err());
    }

    #[test]
    fn ours_runs_while_we_do() {
        let before = CpuClock::OURS.read().unwrap();
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        assert!(CpuClock::OURS.read().unwrap() > before);
    }
}
