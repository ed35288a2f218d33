//! The ages at which surviving blocks are read again.

use std::time::Duration;

/// Time since a window's end, by step. Step 0 is the first read, made while
/// frees were still followed.
const AGES: [Duration; STEPS] = [
    Duration::ZERO,
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
    Duration::from_mins(2),
    Duration::from_mins(5),
    Duration::from_mins(10),
    Duration::from_mins(20),
    Duration::from_mins(30),
    Duration::from_hours(1),
    Duration::from_hours(2),
    Duration::from_hours(4),
];

/// Steps of the schedule, the first read included.
pub const STEPS: usize = 13;

/// When a step is due, since the end of the block's window. Beyond the last
/// step: that of the last.
pub fn age(step: usize) -> Duration {
    AGES.get(step.min(STEPS - 1))
        .copied()
        .unwrap_or(Duration::MAX)
}

/// The step that has been reached so long after the window's end.
pub fn step_at(since: Duration) -> usize {
    AGES.partition_point(|age| *age <= since).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_hold_their_ages() {
        for step in 0..STEPS {
            assert_eq!(step_at(age(step)), step);
            if step > 0 {
                assert_eq!(
                    step_at(age(step).saturating_sub(Duration::from_nanos(1))),
                    step - 1
                );
                assert!(age(step) > age(step - 1));
            }
        }
        assert_eq!(step_at(Duration::MAX), STEPS - 1);
        assert_eq!(age(usize::MAX), age(STEPS - 1));
    }
}
