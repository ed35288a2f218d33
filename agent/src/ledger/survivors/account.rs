//! What became of the blocks that outlived their window.

use std::collections::BTreeMap;

use super::schedule::STEPS;

/// Blocks that were live when their window closed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Births {
    /// Sampled blocks.
    pub sampled: u32,
    /// Bytes they stand for, Σ w s.
    pub bytes: f64,
    /// Blocks they stand for, Σ w.
    pub blocks: f64,
    /// Σ (w s)²; over `bytes` it is what one sample stands for.
    pub squares: f64,
}

impl Births {
    pub(super) fn add(&mut self, bytes: f64, weight: f64) {
        self.sampled = self.sampled.saturating_add(1);
        self.bytes += bytes;
        self.blocks += weight;
        self.squares += bytes * bytes;
    }

    fn merge(&mut self, other: &Self) {
        self.sampled = self.sampled.saturating_add(other.sampled);
        self.bytes += other.bytes;
        self.blocks += other.blocks;
        self.squares += other.squares;
    }
}

/// One row of the life table: the blocks whose fate at this step is certain.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepCount {
    /// Bytes live at the step before, of blocks that are known at this one.
    pub at_risk: f64,
    /// Those of them that were found gone.
    pub died: f64,
    /// Blocks behind `at_risk`.
    pub known: u32,
    /// Blocks behind `died`.
    pub gone: u32,
    /// Blocks behind `at_risk` that were unchanged, without a positive sign
    /// of life.
    pub unchanged: u32,
    /// Blocks behind `at_risk` that live by the allocator's sign, with other
    /// contents.
    pub mutated: u32,
}

impl StepCount {
    /// Adds another row.
    pub fn merge(&mut self, other: &Self) {
        self.at_risk += other.at_risk;
        self.died += other.died;
        self.known = self.known.saturating_add(other.known);
        self.gone = self.gone.saturating_add(other.gone);
        self.unchanged = self.unchanged.saturating_add(other.unchanged);
        self.mutated = self.mutated.saturating_add(other.mutated);
    }
}

/// The survivors of one or several neighbouring windows.
///
/// The rows are a life table over the common steps of the schedule, not over
/// the moments of the single readings: every block that is known at a step
/// counts there, whenever in the batch its turn came, so a death found late
/// in the batch does not miss those that were read earlier. For deaths between
/// two neighbouring steps that is the likelihood's maximum. A death for which
/// readings in between told nothing is put at the step at which most others
/// of its site died; at the end of the interval survival is the same, wherever
/// it is put.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WindowAccount {
    /// At the window's end.
    pub born: Births,
    /// By step; the first is empty.
    pub steps: Vec<StepCount>,
    /// Deaths by the step of the last certain sign and the step that found
    /// them, further apart than one.
    pub(super) skipped: BTreeMap<(usize, usize), Deaths>,
}

/// Deaths of which the step is not certain.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Deaths {
    pub(super) bytes: f64,
    pub(super) blocks: u32,
}

impl WindowAccount {
    /// The row of a step.
    pub fn step(&self, step: usize) -> StepCount {
        self.steps.get(step).copied().unwrap_or_default()
    }

    pub(super) fn step_mut(&mut self, step: usize) -> Option<&mut StepCount> {
        if step < STEPS && self.steps.len() <= step {
            self.steps.resize(step + 1, StepCount::default());
        }
        self.steps.get_mut(step)
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.born.merge(&other.born);
        for (step, count) in other.steps.iter().enumerate() {
            if let Some(mine) = self.step_mut(step) {
                mine.merge(count);
            }
        }
        for (interval, deaths) in &other.skipped {
            let mine = self.skipped.entry(*interval).or_default();
            mine.bytes += deaths.bytes;
            mine.blocks = mine.blocks.saturating_add(deaths.blocks);
        }
    }

    /// Puts the deaths of uncertain step where most others are; `died` are
    /// the certain ones by step, of all windows.
    pub(super) fn place(&mut self, died: &[f64]) {
        for ((last, found), deaths) in std::mem::take(&mut self.skipped) {
            let mass = |step: usize| died.get(step).copied().unwrap_or(0.0);
            let step = (last + 1..=found)
                .rev()
                .max_by(|a, b| mass(*a).total_cmp(&mass(*b)))
                .filter(|step| mass(*step) > 0.0)
                .unwrap_or(found);
            for at in last + 1..=step {
                let Some(count) = self.step_mut(at) else {
                    break;
                };
                count.at_risk += deaths.bytes;
                count.known = count.known.saturating_add(deaths.blocks);
                if at == step {
                    count.died += deaths.bytes;
                    count.gone = count.gone.saturating_add(deaths.blocks);
                }
            }
        }
    }
}
