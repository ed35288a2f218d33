//! The smallest leak that would have been found.

use agent_ebpf::logic::sampling::weight;

use super::{Context, Settings, process::Process};

/// The largest block the limit speaks of.
const BLOCK: u64 = 4096;

/// The smallest leak of blocks of at most 4 KiB that the rules find with 95 %
/// probability, in bytes per second, at a site whose other blocks are
/// short-lived; or why there is none.
///
/// A leak is found when [`Settings::least_members`] sampled blocks stayed. As
/// their number is a Poisson variable, its mean must be higher: the mean of
/// which 97.5 % lies above, and a fifth more, because they must also be
/// spread over the run. A sample stands for about one sampling mean of bytes,
/// or for one block of 4 KiB where all are taken.
pub(super) fn detection_limit(
    process: &Process,
    context: &Context,
    settings: &Settings,
) -> Result<f64, String> {
    let least = settings.least_observed.as_secs_f64();
    if process.span() < least {
        // Rounded down: 2.98 s must not read as the 3 s that are needed.
        let seen = (process.span() * 10.0).floor() / 10.0;
        return Err(format!(
            "observed for {seen:.1} s; a verdict needs at least {least:.0} s: watch longer by --for"
        ));
    }
    if process.observations < super::LEAST_OBSERVATIONS {
        return Err(format!(
            "only {} observations; a verdict needs at least {}",
            process.observations,
            super::LEAST_OBSERVATIONS
        ));
    }
    let per_sample = weight(BLOCK, context.sampling_mean) * BLOCK as f64;
    let members = f64::from(settings.least_members);
    let needed = 1.2 * (members + super::estimate::Z * members.sqrt() + 1.0);
    Ok((needed * per_sample / process.span()).max(1.2 * settings.least_rate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, Observation};
    use std::time::Duration;

    /// A run that is asked to last 3 s observes a little less.
    #[test]
    fn a_run_that_is_just_too_short_does_not_contradict_itself() {
        let mut ledger = Ledger::default();
        for at in [0.0, 1.0, 2.0, 2.98] {
            ledger.observe(Observation {
                at: Duration::from_secs_f64(at),
                ..Observation::default()
            });
        }
        let process = Process::of(&ledger);
        let why = detection_limit(&process, &Context::default(), &Settings::default()).unwrap_err();
        assert!(
            why.starts_with("observed for 2.9 s; a verdict needs at least 3 s"),
            "{why}"
        );
    }
}
