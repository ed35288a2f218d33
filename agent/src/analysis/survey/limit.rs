//! The smallest leaks that a survey would have found.

use crate::{
    analysis::Settings,
    ledger::survivors::{SIZE_CLASSES, Survivors, age},
};

use super::curve::reached;

/// The step that a block must have reached to belong to a plateau at least.
const LEAST_STEP: usize = 3;
/// Windows that a verdict needs.
pub(super) const LEAST_WINDOWS: u32 = 4;

/// The smallest leak that is found with 95 % probability by blocks of each of
/// [`SIZE_CLASSES`]: bytes per second of a block size, at a site whose other
/// blocks are short-lived; or why there is none.
///
/// [`Settings::least_members`] of its blocks must have been sampled in
/// windows that are old enough. Their number is a Poisson variable, so its
/// mean must be higher: the mean of which 97.5 % lies above, and a fifth
/// more, because they must be spread over windows. What could not be recorded
/// or read makes the limit higher.
pub fn detection_limits(
    survivors: &Survivors,
    settings: &Settings,
) -> Result<[(u64, f64); 4], String> {
    let windows = survivors.windows();
    if survivors.window_count() < LEAST_WINDOWS {
        return Err(format!(
            "only {} windows; a verdict needs at least {LEAST_WINDOWS}",
            survivors.window_count()
        ));
    }
    let complete = windows
        .iter()
        .filter(|window| reached(window, LEAST_STEP, survivors.now()));
    let mut expected = [0.0; 4];
    for window in complete {
        for (sum, samples) in expected.iter_mut().zip(window.expected) {
            *sum += samples;
        }
    }
    let members = f64::from(settings.least_members);
    let needed = 1.2 * (members + 1.96 * members.sqrt() + 1.0);
    let seen = seen(survivors);
    if seen <= 0.0 {
        return Err("no block could be read a second time".to_owned());
    }
    let mut limits = [(0, 0.0); 4];
    for ((limit, size), samples) in limits.iter_mut().zip(SIZE_CLASSES).zip(expected) {
        if samples <= 0.0 {
            return Err(format!(
                "no window is older than {:.0} s; before that nobody can tell what stays",
                age(LEAST_STEP).as_secs_f64()
            ));
        }
        let rate = needed * size as f64 / (samples * seen);
        *limit = (size, rate.max(1.2 * settings.least_rate));
    }
    Ok(limits)
}

/// Share of the samples that were recorded and could be followed.
fn seen(survivors: &Survivors) -> f64 {
    let losses = survivors.losses();
    let share = |lost: u64, kept: u64| kept as f64 / (lost as f64 + kept as f64).max(1.0);
    let recorded = if losses.unrecorded == 0 {
        1.0
    } else {
        share(losses.unrecorded, survivors.sampled())
    };
    let (mut born, mut known) = (0u64, 0u64);
    for window in survivors.groups(|_| ()).values().flat_map(|g| &g.windows) {
        if window.steps.len() > 1 {
            born += u64::from(window.born.sampled);
            known += u64::from(window.step(1).known);
        }
    }
    let followed = born + losses.without_site;
    if followed == 0 {
        let blind = survivors.followed() as u64 + losses.given_up > 0 && losses.unknown > 0;
        return if blind { 0.0 } else { recorded };
    }
    // Where blocks were let go, others stand for them.
    if losses.thinned > 0 {
        return recorded;
    }
    recorded * (known as f64 / followed as f64).min(1.0)
}
