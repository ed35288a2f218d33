//! What one thread is doing, as the kernel tells it.

use std::fs;

/// Processor time of a thread so far, nanoseconds (`/proc/PID/task/TID/
/// schedstat`, first number: `se.sum_exec_runtime`). It stands still while the
/// thread waits. `None` when the thread has ended or the kernel does not count
/// it (CONFIG_SCHED_INFO).
pub fn run_time_ns(pid: u32, thread: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
    text.split(' ')
        .next()?
        .parse()
        .ok()
        .filter(|time| *time > 0)
}

/// A system call that a thread waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Its number.
    pub call: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
    /// The user stack pointer.
    pub sp: u64,
    /// The user code address behind the call.
    pub ip: u64,
}

/// The system call that a thread waits in; `None` when it runs or has ended.
/// The kernel looks without disturbing the thread.
pub fn blocked_in(pid: u32, thread: u32) -> Option<Blocked> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/syscall")).ok()?;
    parse(&text)
}

/// `NUMBER ARG0 … ARG5 SP PC` (fs/proc/base.c, `proc_pid_syscall`); a running
/// thread gives `running`, one that waits elsewhere `-1 SP PC`.
fn parse(text: &str) -> Option<Blocked> {
    let mut words = text.split_ascii_whitespace();
    let call = words.next()?.parse().ok()?;
    let mut next = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = next()?;
    }
    Some(Blocked {
        call,
        arguments,
        sp: next()?,
        ip: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_a_blocked_call() {
        let text = "202 0x55d0 0x189 0x0 0x0 0x0 0xffffffff 0x7ffd10 0x7f0042\n";
        let blocked = parse(text).unwrap();
        assert_eq!(blocked.call, 202);
        assert_eq!(blocked.arguments, [0x55d0, 0x189, 0, 0, 0, 0xffff_ffff]);
        assert_eq!((blocked.sp, blocked.ip), (0x7f_fd10, 0x7f_0042));
        for other in ["running\n", "-1 0x1 0x2\n", "", "202 0x1"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_waiting_thread_does_not_run() {
        let (told, tell) = std::sync::mpsc::sync_channel::<u32>(1);
        let (end, ended) = std::sync::mpsc::sync_channel::<()>(1);
        let thread = std::thread::spawn(move || {
            // SAFETY: takes nothing and cannot fail.
            let _ = told.send(unsafe { libc::gettid() } as u32);
            let _ = ended.recv();
        });
        let id = tell.recv().unwrap();
        let pid = std::process::id();
        let mut before = None;
        for _ in 0..500 {
            std::thread::sleep(std::time::Duration::from_millis(10));
            if blocked_in(pid, id).is_some_and(|blocked| blocked.call == 202) {
                before = run_time_ns(pid, id);
                break;
            }
        }
        assert!(before.is_some());
        assert_eq!(run_time_ns(pid, id), before);
        end.send(()).unwrap();
        thread.join().unwrap();
        assert_eq!(run_time_ns(pid, id), None);
    }

    proptest! {
        #[test]
        fn any_text_is_harmless(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
