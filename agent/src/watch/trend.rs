//! How fast a short series rises, and how slowly it may do so in truth.

use super::student;

/// Most points of a series.
pub const POINTS: usize = 32;
/// Fewest steps from one point to the next that can carry a bound.
pub const FEWEST: usize = 6;
/// The variance of steps is taken over so many of them together.
const LUMPS: [usize; 3] = [1, 2, 4];
/// The last third of a rise has at least this share of the first's speed.
const STEADY: f64 = 0.85;
/// Standard deviations by which it must be seen to have it.
const SURE: f64 = 0.5;

/// Slope of a series, per step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// Median of the slopes between all pairs of points (Theil and Sen): a minority of odd points does not move it.
    pub value: f64,
    /// Bounds at the level of the [`Bound`].
    pub low: f64,
    /// Upper one.
    pub high: f64,
}

/// Bounds of a rise that hold for wandering series.
///
/// The slope's own interval supposes independent errors; memory wanders, and
/// a random walk has a slope in nearly every window. So the bound is that of
/// the *mean step* against steps of mean zero: Student's t at a level that is
/// corrected for all the times it is asked. Steps that tend to follow one
/// another in one direction vary less than their sum does, so the variance is
/// that of one, two or four steps together, whichever is largest.
///
/// Few points are better here than many: with noise that does not wander, the
/// t of a rise goes with 1 ÷ √points, and at the levels asked for the quantile
/// of t stops falling at about 30.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Of t, by degrees of freedom.
    critical: Vec<f64>,
}

impl Bound {
    /// A bound that is wrong with this probability each time.
    pub fn new(level: f64) -> Self {
        let critical = (0..POINTS)
            .map(|freedom| student::quantile(level, freedom.max(1) as f64))
            .collect();
        Self { critical }
    }

    /// Half the width of the interval of the mean step; `None` when there are
    /// too few points.
    fn half_width(&self, points: &[f64]) -> Option<f64> {
        let steps = points
            .len()
            .checked_sub(1)
            .filter(|steps| *steps >= FEWEST)?;
        Some(self.critical.get(steps - 1)? * (variance(points) / steps as f64).sqrt())
    }

    /// Lower bound of the mean step; `None` when there are too few points.
    pub fn low(&self, points: &[f64]) -> Option<f64> {
        Some(mean_step(points)? - self.half_width(points)?)
    }

    /// The slope with its bounds.
    pub fn slope(&self, points: &[f64]) -> Option<Slope> {
        let mean = mean_step(points)?;
        let half = self.half_width(points)?;
        let value = theil_sen(points)?;
        Some(Slope {
            value,
            low: value.min(mean) - half,
            high: value.max(mean) + half,
        })
    }
}

/// Variance of a step, by the lumps that vary most.
fn variance(points: &[f64]) -> f64 {
    let steps = points.len().saturating_sub(1);
    LUMPS
        .into_iter()
        .filter(|lump| steps / lump >= FEWEST)
        .filter_map(|lump| {
            let lumps = steps / lump;
            // The youngest steps are all in.
            let used = points.get(points.len() - 1 - lumps * lump..)?;
            let ends = used.iter().step_by(lump);
            let rises = ends.clone().zip(ends.skip(1)).map(|(from, to)| to - from);
            let mean = rises.clone().sum::<f64>() / lumps as f64;
            let squares: f64 = rises.map(|rise| (rise - mean).powi(2)).sum();
            Some(squares / (lumps - 1) as f64 / lump as f64)
        })
        .fold(0.0, f64::max)
}

fn mean_step(points: &[f64]) -> Option<f64> {
    let steps = points.len().checked_sub(1).filter(|steps| *steps > 0)?;
    Some((points.last()? - points.first()?) / steps as f64)
}

/// Median slope, per step.
fn theil_sen(points: &[f64]) -> Option<f64> {
    let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
    for (at, from) in points.iter().enumerate() {
        for (distance, to) in points.iter().skip(at + 1).enumerate() {
            slopes.push((to - from) / (distance + 1) as f64);
        }
    }
    let middle = slopes.len() / 2;
    if slopes.is_empty() {
        return None;
    }
    let (_, median, _) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
    Some(*median)
}

/// Whether the rise is seen to go on: its last third is not slower than the
/// first, beyond what chance may have added, and its end has not come to rest.
pub fn goes_on(points: &[f64]) -> bool {
    let Some(mean) = mean_step(points) else {
        return false;
    };
    let steps = points.len() - 1;
    let rise = |from: usize, to: usize| match (points.get(from), points.get(to)) {
        (Some(from_value), Some(to_value)) if to > from => {
            (to_value - from_value) / (to - from) as f64
        }
        _ => 0.0,
    };
    let third = (steps / 3).max(1);
    let eighth = (steps / 8).max(1);
    let chance = (variance(points) * (1.0 + STEADY * STEADY) / third as f64).sqrt();
    rise(steps - third, steps) - STEADY * rise(0, third) >= SURE * chance
        && rise(steps - eighth, steps) >= 0.4 * mean
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(seed: &mut u64) -> f64 {
        // xorshift; the sum of four uniform numbers is nearly normal.
        (0..4)
            .map(|_| {
                *seed ^= *seed << 13;
                *seed ^= *seed >> 7;
                *seed ^= *seed << 17;
                (*seed >> 11) as f64 / (1u64 << 53) as f64 - 0.5
            })
            .sum::<f64>()
            * 3f64.sqrt()
    }

    #[test]
    fn the_level_holds_for_random_walks() {
        // At a level that can be counted: 1 % of walks without drift may pass.
        let bound = Bound::new(0.01);
        let mut seed = 0x9E37_79B9_7F4A_7C15;
        for length in [7, 13, 24, POINTS] {
            let walks = 20_000;
            let passed = (0..walks)
                .filter(|_| {
                    let mut at = 0.0;
                    let points: Vec<f64> = (0..length)
                        .map(|_| {
                            at += noise(&mut seed);
                            at
                        })
                        .collect();
                    bound.low(&points).unwrap() > 0.0
                })
                .count();
            assert!(passed <= 230, "{length} points: {passed} of {walks}");
            assert!(passed > 20, "{length} points: the bound is far too wide");
        }
    }

    #[test]
    fn a_line_is_its_own_bound() {
        let points: Vec<f64> = (0..POINTS as u32)
            .map(|x| f64::from(x) * 3.0 + 5.0)
            .collect();
        let slope = Bound::new(1e-9).slope(&points).unwrap();
        for value in [slope.value, slope.low, slope.high] {
            assert!((value - 3.0).abs() < 1e-9, "{slope:?}");
        }
        assert!(goes_on(&points));
    }

    #[test]
    fn slowing_and_ended_growth_is_told() {
        let filling: Vec<f64> = (0..60)
            .map(|x| 1.0 - (-f64::from(x) / 40.0).exp())
            .collect();
        assert!(!goes_on(&filling));
        let ended: Vec<f64> = (0..60).map(|x| f64::from(x.min(50))).collect();
        assert!(!goes_on(&ended));
        let rising: Vec<f64> = (0..60).map(|x| f64::from(x) * f64::from(x)).collect();
        assert!(goes_on(&rising));
    }

    proptest! {
        #[test]
        fn bounds_enclose_the_slope(points in proptest::collection::vec(0u32..1_000_000, 0..POINTS)) {
            let points: Vec<f64> = points.into_iter().map(f64::from).collect();
            let bound = Bound::new(1e-6);
            match bound.slope(&points) {
                Some(slope) => {
                    prop_assert!(slope.low <= slope.value && slope.value <= slope.high);
                    prop_assert!(slope.low <= bound.low(&points).unwrap() + 1e-9);
                }
                None => prop_assert!(points.len() <= FEWEST),
            }
            let _ = goes_on(&points);
        }

        #[test]
        fn a_shift_changes_nothing_and_a_scale_scales(
            points in proptest::collection::vec(0u32..10_000, 8..POINTS),
            shift in 0u32..10_000,
        ) {
            let bound = Bound::new(1e-6);
            let plain: Vec<f64> = points.iter().map(|x| f64::from(*x)).collect();
            let moved: Vec<f64> = points.iter().map(|x| f64::from(x + shift) * 2.0).collect();
            let (a, b) = (bound.slope(&plain).unwrap(), bound.slope(&moved).unwrap());
            prop_assert!((a.value * 2.0 - b.value).abs() < 1e-6);
            prop_assert!((a.low * 2.0 - b.low).abs() < 1e-3);
        }
    }
}
