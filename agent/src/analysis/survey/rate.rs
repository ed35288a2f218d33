//! The rate at which a site's memory stays, with its interval.

use std::time::Duration;

use agent_ebpf::logic::sampling::weight;

use crate::{
    analysis::estimate::{count_bounds, student},
    finding::Estimate,
    ledger::survivors::{SurveyGroup, Survivors, Window, WindowAccount},
};

use super::curve::{Curve, hazard, reached};

/// The block that stands for those of a site of which none outlived its
/// window; their sizes are not known.
const BLOCK: u64 = 4096;

/// The windows of a survey as a site sees them.
pub(super) struct View<'a> {
    windows: &'a [Window],
    now: Duration,
    mean: u64,
}

impl<'a> View<'a> {
    pub(super) fn of(survivors: &'a Survivors) -> Self {
        Self {
            windows: survivors.windows(),
            now: survivors.now(),
            mean: survivors.sampling_mean(),
        }
    }

    /// The windows that are old enough for a step, with a site's account of
    /// each.
    pub(super) fn complete<'b>(
        &'b self,
        group: &'b SurveyGroup,
        step: usize,
    ) -> impl Iterator<Item = (usize, &'a Window, Option<&'b WindowAccount>)> {
        self.windows
            .iter()
            .enumerate()
            .filter(move |(_, window)| reached(window, step, self.now))
            .map(|(index, window)| (index, window, group.windows.get(index)))
    }
}

/// Bytes per second that were still there at the end of the curve. None
/// where there were survivors of which nothing is known.
///
/// The estimate is A · S: A is what outlived the windows per second of open
/// time, over all windows old enough to show the plateau's begin (so that
/// what is merely in flight when the youngest windows close does not count),
/// and S the share of it that the curve says stayed. Windows are clusters:
/// the variance is that of the linearised ratio between windows, and at least
/// that of a Poisson number of blocks; the interval is Byar's for a count
/// with this variance, with Student's quantile for the number of windows.
///
/// The low end is 0 unless the curve has come to rest, and it leaves out what
/// of the plateau may have fallen unnoticed; so a healthy site's interval
/// contains 0.
pub(super) fn rate(group: &SurveyGroup, curve: &Curve, view: &View<'_>) -> Option<Estimate> {
    // A curve that falls is told by its last step, and by the windows that
    // are old enough for it.
    let from = curve.plateau.map_or(curve.last, |plateau| plateau.from);
    let complete: Vec<_> = view.complete(group, from).collect();
    let open: f64 = complete.iter().map(|(_, window, _)| window.open).sum();
    if open <= 0.0 {
        return None;
    }
    let born = |account: Option<&WindowAccount>| account.map(|a| a.born).unwrap_or_default();
    let bytes: f64 = complete.iter().map(|(.., a)| born(*a).bytes).sum();
    let squares: f64 = complete.iter().map(|(.., a)| born(*a).squares).sum();
    let t = student(complete.len().saturating_sub(1));
    let stays = Factors::of(group, curve, &complete, from)?;
    let value = bytes / open * stays.share;
    let mark = stays.mark(group, from).unwrap_or_else(|| {
        if bytes > 0.0 {
            squares / bytes
        } else {
            weight(BLOCK, view.mean) * BLOCK as f64
        }
    });
    if bytes > 0.0 && stays.blind {
        return None;
    }
    if value <= 0.0 {
        return Some(Estimate {
            value: 0.0,
            low: 0.0,
            high: mark * count_bounds(0.0, t).1 / open,
        });
    }
    let mut between = 0.0;
    for (index, window, account) in &complete {
        let ratio = (born(*account).bytes - bytes / open * window.open) / open * stays.share;
        between += (ratio - value * stays.influence(*index)).powi(2);
    }
    // Younger windows only tell of the plateau.
    for index in complete.len()..group.windows.len() {
        between += (value * stays.influence(index)).powi(2);
    }
    let windows = complete.len() as f64;
    let between = between * windows / (windows - 1.0).max(1.0);
    let variance = between.max(mark * value / open);
    let count = value * value / variance;
    let (low, high) = count_bounds(count, t);
    let sure = curve.plateau.map_or(0.0, |plateau| 1.0 - plateau.may_fall);
    Some(Estimate {
        value,
        low: (value * low / count * sure).clamp(0.0, value),
        high: (value * high / count).max(value),
    })
}

/// What share of the survivors stays, and what each window adds to that.
struct Factors {
    share: f64,
    /// By window: Σ (d − h n) / (N (1 − h)) over the steps it counts for.
    influence: Vec<f64>,
    /// Nothing is known of any survivor.
    blind: bool,
}

impl Factors {
    fn of(
        group: &SurveyGroup,
        curve: &Curve,
        complete: &[(usize, &Window, Option<&WindowAccount>)],
        from: usize,
    ) -> Option<Self> {
        let mut factors = Self {
            share: 1.0,
            influence: vec![0.0; group.windows.len()],
            blind: curve.rows.len() <= 1,
        };
        for step in 1..=curve.last {
            let counts: Vec<usize> = if step <= from {
                complete.iter().map(|(index, ..)| *index).collect()
            } else {
                (0..group.windows.len()).collect()
            };
            let mut row = crate::ledger::survivors::StepCount::default();
            for index in &counts {
                row.merge(
                    &group
                        .windows
                        .get(*index)
                        .map(|a| a.step(step))
                        .unwrap_or_default(),
                );
            }
            let hazard = hazard(&row);
            if row.at_risk <= 0.0 {
                continue;
            }
            factors.share *= 1.0 - hazard;
            if hazard >= 1.0 {
                break;
            }
            for index in counts {
                let mine = group.windows.get(index)?.step(step);
                if let Some(sum) = factors.influence.get_mut(index) {
                    *sum += (mine.died - hazard * mine.at_risk) / (row.at_risk * (1.0 - hazard));
                }
            }
        }
        Some(factors)
    }

    fn influence(&self, window: usize) -> f64 {
        self.influence.get(window).copied().unwrap_or(0.0)
    }

    /// What one block of the plateau stands for, in bytes.
    fn mark(&self, group: &SurveyGroup, from: usize) -> Option<f64> {
        let (mut sum, mut squares) = (0.0, 0.0);
        for kept in group.kept.iter().filter(|kept| kept.step >= from.max(1)) {
            let bytes = kept.weight * kept.size.max(1) as f64;
            sum += bytes;
            squares += bytes * bytes;
        }
        (sum > 0.0 && self.share > 0.0).then(|| squares / sum)
    }
}
