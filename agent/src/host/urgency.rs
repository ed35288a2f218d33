//! Our own thread ahead of all ordinary ones, for a moment: for work that
//! takes microseconds and comes too late after a turn of the scheduler.

/// Real-time scheduling of the calling thread, until it is dropped. Where it
/// is refused (it takes CAP_SYS_NICE), everything goes on as before.
///
/// Who holds it must sleep between its pieces of work.
#[derive(Debug)]
pub struct Urgency {
    before: Option<(libc::c_int, libc::sched_param)>,
}

impl Urgency {
    /// Begins.
    pub fn begin() -> Self {
        let mut ordinary = libc::sched_param { sched_priority: 0 };
        let urgent = libc::sched_param { sched_priority: 1 };
        // SAFETY: both structures live on this stack; 0 is the calling thread.
        let before = unsafe {
            let policy = libc::sched_getscheduler(0);
            let known = policy >= 0 && libc::sched_getparam(0, &raw mut ordinary) == 0;
            let policy_now = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
            (known && libc::sched_setscheduler(0, policy_now, &raw const urgent) == 0)
                .then_some((policy, ordinary))
        };
        Self { before }
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        if let Some((policy, parameter)) = self.before {
            // SAFETY: as above.
            unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: takes a number.
        unsafe { libc::sched_getscheduler(0) & !libc::SCHED_RESET_ON_FORK }
    }

    #[test]
    fn lasts_no_longer_than_it_is_held() {
        let before = policy();
        let urgency = Urgency::begin();
        let raised = urgency.before.is_some();
        assert_eq!(policy() == libc::SCHED_FIFO, raised);
        drop(urgency);
        assert_eq!(policy(), before);
    }
}
