//! How many of a site's survivors still live at each age, and whether that
//! has come to rest.

use crate::ledger::survivors::{STEPS, StepCount, SurveyGroup, Window, age};

use crate::analysis::estimate::{Z, count_bounds};

/// Share of the blocks of the plateau's first age that may be gone at its
/// last: a twentieth would be asking more than a dozen blocks can tell.
const MAY_FALL: f64 = 0.1;
/// Known blocks that a step needs to be the last one that counts.
const LEAST_KNOWN: u32 = 5;
/// A plateau is at least so many times longer than what came before it.
const LENGTH: f64 = 3.0;
/// The same, for a plateau that stands for the last decade of age.
const DECADE: f64 = 10.0;
/// Shortest plateau, seconds.
const SHORTEST: f64 = 30.0;

/// The Kaplan-Meier curve of a site's survivors, weighted by bytes.
///
/// Time runs from the end of a block's window. All blocks are there at 0, so
/// none enters late; a block's true age is more by at most the length of its
/// window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// By step; 1 at the first. Only steps at which some block is known.
    pub survival: Vec<f64>,
    /// The table's rows over all windows, likewise.
    pub rows: Vec<StepCount>,
    /// The last step that enough blocks reached.
    pub last: usize,
    /// Where the curve came to rest.
    pub plateau: Option<Plateau>,
}

/// The rest of a curve that falls no longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plateau {
    /// Its first step.
    pub from: usize,
    /// Its first step after the windows' end: the one at which its members
    /// are counted.
    pub counted: usize,
    /// Its last step.
    pub to: usize,
    /// It is ten times longer than what came before.
    pub decade: bool,
    /// The largest share of it that may still have fallen unnoticed, 95 %.
    pub may_fall: f64,
    /// Blocks known to have lived at `counted`.
    pub members: u32,
    /// Windows they come from.
    pub windows: usize,
    /// Share of the signs at its end that were no positive ones.
    pub unchanged: f64,
    /// Share of the signs at its end that were the allocator's only.
    pub mutated: f64,
}

impl Curve {
    /// The curve of a group.
    pub fn of(group: &SurveyGroup) -> Self {
        let mut rows: Vec<StepCount> = (0..STEPS).map(|step| sum(group, step)).collect();
        let reached = rows.iter().rposition(|row| row.known > 0).unwrap_or(0);
        rows.truncate(reached + 1);
        let mut survival = Vec::with_capacity(rows.len());
        let mut left = 1.0;
        for row in &rows {
            left *= 1.0 - hazard(row);
            survival.push(left);
        }
        let last = rows
            .iter()
            .rposition(|row| row.known >= LEAST_KNOWN)
            .unwrap_or(reached);
        let mut curve = Self {
            survival,
            rows,
            last,
            plateau: None,
        };
        curve.plateau = curve.find_plateau(group);
        curve
    }

    /// Share that survives a step.
    pub fn at(&self, step: usize) -> f64 {
        self.survival
            .get(step)
            .or(self.survival.last())
            .copied()
            .unwrap_or(1.0)
    }

    pub(super) fn row(&self, step: usize) -> StepCount {
        self.rows.get(step).copied().unwrap_or_default()
    }

    fn gone(&self, steps: impl Iterator<Item = usize>) -> u32 {
        steps.fold(0, |sum, step| sum.saturating_add(self.row(step).gone))
    }

    fn find_plateau(&self, group: &SurveyGroup) -> Option<Plateau> {
        let to = self.last;
        let end = age(to).as_secs_f64();
        if end < SHORTEST || self.at(to) <= 0.0 {
            return None;
        }
        let from = (0..to).find(|from| {
            let start = self.at(*from);
            start > 0.0 && 1.0 - self.at(to) / start <= MAY_FALL
        })?;
        let counted = from.max(1);
        let start = age(counted).as_secs_f64();
        if end < LENGTH * start {
            return None;
        }
        // The few that went further do not take it back.
        let (beyond, gone) = (self.row(to + 1).known, self.gone(to + 1..self.rows.len()));
        if gone >= 2 && gone.saturating_mul(2) >= beyond {
            return None;
        }
        // Blocks whose fate is known for long enough.
        let watched = (counted..=to).find(|step| age(*step).as_secs_f64() >= LENGTH * start)?;
        let gone = f64::from(self.gone(from + 1..=to));
        let known = f64::from(self.row(watched).known).max(1.0);
        let alive = |row: StepCount| row.known.saturating_sub(row.gone);
        let end_row = self.row(to);
        let of_known = |count: u32| f64::from(count) / f64::from(end_row.known.max(1));
        Some(Plateau {
            from,
            counted,
            to,
            decade: end >= DECADE * start,
            may_fall: (count_bounds(gone, Z).1 / known).min(1.0),
            members: alive(self.row(counted)),
            windows: group
                .windows
                .iter()
                .filter(|window| alive(window.step(counted)) > 0)
                .count(),
            unchanged: of_known(end_row.unchanged),
            mutated: of_known(end_row.mutated),
        })
    }
}

/// Whether all blocks of a window have had the chance to be seen at a step.
pub(super) fn reached(window: &Window, step: usize, now: std::time::Duration) -> bool {
    now.saturating_sub(window.closed) >= age(step)
}

pub(super) fn hazard(row: &StepCount) -> f64 {
    if row.at_risk > 0.0 {
        (row.died / row.at_risk).clamp(0.0, 1.0)
    } else {
        0.0
    }
}

fn sum(group: &SurveyGroup, step: usize) -> StepCount {
    let mut sum = StepCount::default();
    for window in &group.windows {
        sum.merge(&window.step(step));
    }
    sum
}
