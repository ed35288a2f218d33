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
        return Err(format!(
            "observed for {:.1} s; a verdict needs at least {least:.0} s",
            process.span()
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
