//! Intervals of sums that were estimated from a sample.

use crate::finding::Estimate;

/// Two-sided 95 % of the normal distribution.
pub(super) const Z: f64 = 1.96;

/// A weighted sum over sampled blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sum {
    /// The estimate, Σ w x.
    pub(super) value: f64,
    /// Its sampling variance, Σ w (w − 1) x².
    pub(super) variance: f64,
    /// What was seen with certainty, Σ x.
    pub(super) seen: f64,
}

impl Sum {
    pub(super) fn add(&mut self, x: f64, weight: f64) {
        self.value += weight * x;
        self.variance += weight * (weight - 1.0) * x * x;
        self.seen += x;
    }

    /// The 95 % interval. Exact where every allocation was taken. Otherwise
    /// the sum is treated as a scaled Poisson count with the same mean and
    /// variance and bounded by Byar's approximation of the exact interval,
    /// which holds for counts down to one; what was seen is certain.
    pub(super) fn interval(&self) -> Estimate {
        if self.variance <= 0.0 || self.value <= 0.0 {
            return Estimate::exact(self.value);
        }
        let scale = self.variance / self.value;
        let count = self.value / scale;
        let (low, high) = poisson_bounds(count);
        Estimate {
            value: self.value,
            low: (scale * low).max(self.seen).min(self.value),
            high: scale * high,
        }
    }
}

/// Two-sided 95 % quantile of Student's distribution (tables; between them
/// the next lower number of degrees of freedom, which is wider).
pub(super) fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 11] = [
        12.71, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23,
    ];
    match freedom {
        0..=10 => TABLE.get(freedom).copied().unwrap_or(12.71),
        11..=14 => 2.20,
        15..=19 => 2.13,
        20..=29 => 2.09,
        30..=59 => 2.04,
        _ => 2.00,
    }
}

/// 95 % bounds of the mean of a Poisson variable of which `count` was drawn,
/// by Byar's approximation (Breslow and Day 1987, equation 2.13), with a
/// quantile `t` that may be wider than the normal one.
pub(super) fn count_bounds(count: f64, t: f64) -> (f64, f64) {
    let low = if count <= 0.0 {
        0.0
    } else {
        count
            * (1.0 - 1.0 / (9.0 * count) - t / (3.0 * count.sqrt()))
                .max(0.0)
                .powi(3)
    };
    let above = count.max(0.0) + 1.0;
    let high = above * (1.0 - 1.0 / (9.0 * above) + t / (3.0 * above.sqrt())).powi(3);
    (low, high)
}

/// As [`count_bounds`], by the normal quantile.
pub(super) fn poisson_bounds(count: f64) -> (f64, f64) {
    count_bounds(count, Z)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_bounds_match_the_tables() {
        // Exact 95 % limits (Garwood 1936).
        for (count, low, high) in [
            (1.0, 0.025, 5.572),
            (3.0, 0.619, 8.767),
            (10.0, 4.795, 18.390),
            (100.0, 81.364, 121.627),
        ] {
            let (l, h) = poisson_bounds(count);
            assert!(
                (l - low).abs() < 0.03 * count.max(2.0) / 2.0,
                "{count}: {l} for {low}"
            );
            assert!((h - high).abs() < 0.03, "{count}: {h} for {high}");
        }
        assert!(poisson_bounds(0.0).0.abs() < 1e-9);
        assert!((poisson_bounds(0.0).1 - 3.689).abs() < 0.05);
    }

    #[test]
    fn a_full_count_is_exact() {
        let mut sum = Sum::default();
        sum.add(64.0, 1.0);
        sum.add(100.0, 1.0);
        assert_eq!(sum.interval(), Estimate::exact(164.0));
        assert_eq!(Sum::default().interval(), Estimate::exact(0.0));
    }

    #[test]
    fn what_was_seen_is_certain() {
        let mut sum = Sum::default();
        sum.add(1_000_000.0, 1.2);
        assert!(sum.interval().low >= 1_000_000.0);
    }

    #[test]
    fn few_windows_are_wide() {
        let mut last = f64::INFINITY;
        for freedom in 0..100 {
            assert!(student(freedom) <= last);
            last = student(freedom);
        }
        for count in [0.0, 0.3, 1.0, 14.0, 1e6] {
            let (low, high) = count_bounds(count, 1.96);
            let (lower, higher) = count_bounds(count, student(2));
            assert!(lower <= low && low <= count && count <= high && high < higher);
        }
    }
}
