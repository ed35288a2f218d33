//! Verdicts from a survey: short windows, and what of their blocks still
//! lives long after.
//!
//! The same kinds of judgement as [`super::judge`] gives, from
//! [`Survivors`] instead of a complete account.

mod curve;
mod limit;
mod rate;
mod share;
mod site;
mod trend;
mod witness;
mod words;

use std::collections::BTreeMap;

use super::{
    Context, Identity, Judgements, Outcome, Residence, Settings, Stack,
    report::{key_of, outcome, site_keys},
};
use crate::{
    finding::{Estimate, Verdict},
    ledger::{StackId, Survivors, survivors::SurveyGroup},
};

use rate::View;
use site::Found;

pub use curve::{Curve, Plateau};
pub use limit::detection_limits;

/// Explained share whose low end is above this cannot be: something was
/// misread, and no verdict rests on it.
const INCONSISTENT: f64 = 1.5;

/// What one group of stacks keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteEstimate {
    /// Its survivor curve.
    pub curve: Curve,
    /// Bytes per second that stayed; none where nothing is known of any
    /// survivor.
    pub rate: Option<Estimate>,
}

/// The estimate for one group of an account. A healthy site's rate has 0 as
/// its low end.
pub fn estimate(group: &SurveyGroup, survivors: &Survivors) -> SiteEstimate {
    let curve = Curve::of(group);
    let rate = rate::rate(group, &curve, &View::of(survivors));
    SiteEstimate { curve, rate }
}

/// Everything a survey says of a process.
#[derive(Clone, Debug)]
pub struct Survey<K> {
    /// One per group, as [`super::judge`] gives them.
    pub judgements: Judgements<K>,
    /// Rate of all sites whose curve came to rest, over the growth of the
    /// memory; none where that did not surely grow. Not limited to 1.
    pub explained_share: Option<Estimate>,
    /// The share's low end is above 1.5: more memory seems to be lost than
    /// the process took. No leak is reported then.
    pub inconsistent: bool,
    /// [`detection_limits`].
    pub detection_limits: Result<[(u64, f64); 4], String>,
}

/// Judges every group of stacks of a process under survey. `group_of` names
/// the group that a stack belongs to.
pub fn judge<K: Ord + Clone>(
    survivors: &Survivors,
    group_of: impl Fn(StackId) -> K,
    context: &Context,
    settings: &Settings,
) -> Survey<K> {
    let process = witness::process(survivors);
    let groups: Vec<(K, SurveyGroup, SiteEstimate)> = survivors
        .groups(group_of)
        .into_iter()
        .map(|(key, group)| {
            let kept = estimate(&group, survivors);
            (key, group, kept)
        })
        .collect();
    let rss_growth = process.memory_growth();
    let explained_share = share::explained(groups.iter().map(|(_, _, kept)| kept), rss_growth);
    let inconsistent = explained_share.is_some_and(|share| share.low > INCONSISTENT);
    let mut detection_limits = detection_limits(survivors, settings);
    if let (true, Some(share)) = (inconsistent, explained_share) {
        detection_limits = Err(format!(
            "the estimates are inconsistent: {:.1} times as much memory seems to stay as the process took",
            share.value
        ));
    }
    let mut sites: Vec<_> = groups
        .into_iter()
        .map(|(key, group, kept)| {
            let mut found = Found::of(&group, kept, survivors, &process, context, settings);
            if inconsistent && found.verdict == Some(Verdict::UnboundedGrowth) {
                found.verdict = None;
            }
            site::describe(key, group, found, survivors, &process, context, settings)
        })
        .collect();
    super::sort(&mut sites);
    let four_kib = detection_limits.as_ref().map_err(Clone::clone);
    Survey {
        judgements: Judgements {
            sites,
            // of blocks of at most 4 KiB, so the highest of the three classes
            detection_limit: four_kib.map(|limits| {
                limits
                    .iter()
                    .filter(|(size, _)| *size <= 4096)
                    .map(|(_, limit)| *limit)
                    .fold(0.0, f64::max)
            }),
            rss: process.rss,
            rss_growth,
            process,
        },
        explained_share,
        inconsistent,
        detection_limits,
    }
}

/// Judges a process under survey and describes the outcome, as
/// [`super::findings`] does from a complete account.
pub fn findings(
    survivors: &Survivors,
    residence: &Residence,
    stacks: &BTreeMap<StackId, Stack>,
    identity: &Identity,
    context: &Context,
    settings: &Settings,
) -> Outcome {
    let keys = site_keys(stacks);
    let survey = judge(survivors, |id| key_of(&keys, id), context, settings);
    let mut outcome = outcome(survey.judgements, residence, stacks, identity, settings);
    outcome.explained_share = survey.explained_share;
    outcome
}

/// Length of the survey in seconds: from the first window to now.
fn span(survivors: &Survivors) -> f64 {
    let begin = survivors
        .windows()
        .first()
        .map_or(survivors.now(), |window| window.opened);
    survivors.now().saturating_sub(begin).as_secs_f64()
}

#[cfg(test)]
mod tests;
