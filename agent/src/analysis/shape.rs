//! The shape of a series over time: how fast it grows, whether that slows,
//! whether it falls back.

use super::estimate::student;

/// Parts that a run is divided into.
pub(super) const PARTS: usize = 8;

/// Growth at the end over growth at the beginning, below which growth slows.
const SLOWING: f64 = 0.5;
/// Standard errors that make it significant: with eight parts, one steady
/// leak in eighty is taken for slowing.
const SIGNIFICANT: f64 = 3.0;

/// Growth of a series in equal parts of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parts {
    /// Growth per second in each part.
    pub(super) rates: Vec<f64>,
    /// Mean growth per second.
    pub(super) mean: f64,
    /// Standard error of `mean`, from how the parts differ.
    pub(super) error: f64,
}

impl Parts {
    /// Divides a series of (seconds, value), ordered by time, into up to
    /// [`PARTS`] parts that begin and end at its points; none for less than
    /// four points.
    pub(super) fn of(series: &[(f64, f64)]) -> Option<Self> {
        let (first, last) = (series.first()?, series.last()?);
        let span = last.0 - first.0;
        if series.len() < 4 || span <= 0.0 {
            return None;
        }
        let parts = PARTS.min(series.len() - 1);
        let mut rates = Vec::with_capacity(parts);
        let mut from = *first;
        for part in 1..=parts {
            let end = first.0 + span * part as f64 / parts as f64;
            let at = series.partition_point(|point| point.0 <= end + span * 1e-9);
            let to = *series.get(at.saturating_sub(1))?;
            if to.0 > from.0 {
                rates.push((to.1 - from.1) / (to.0 - from.0));
                from = to;
            }
        }
        Self::of_rates(rates, (last.1 - first.1) / span)
    }

    /// Counts of events, as growth per second in equal parts of `span`.
    pub(super) fn of_events(
        events: impl Iterator<Item = (f64, f64)>,
        start: f64,
        span: f64,
    ) -> Option<Self> {
        let mut rates = vec![0.0; PARTS];
        let mut total = 0.0;
        for (at, amount) in events {
            let part = ((at - start) / span * PARTS as f64).clamp(0.0, PARTS as f64 - 1.0) as usize;
            total += amount;
            if let Some(rate) = rates.get_mut(part) {
                *rate += amount * PARTS as f64 / span;
            }
        }
        Self::of_rates(rates, total / span)
    }

    /// Growth per second in each of at least three parts, and its mean.
    pub(super) fn of_rates(rates: Vec<f64>, mean: f64) -> Option<Self> {
        let n = rates.len() as f64;
        if rates.len() < 3 {
            return None;
        }
        let middle = rates.iter().sum::<f64>() / n;
        let variance = rates
            .iter()
            .map(|rate| (rate - middle).powi(2))
            .sum::<f64>()
            / (n - 1.0);
        Some(Self {
            rates,
            mean,
            error: (variance / n).sqrt(),
        })
    }

    /// Bounds that contain the mean growth with about 95 %.
    pub(super) fn bounds(&self) -> (f64, f64) {
        let margin = student(self.rates.len() - 1) * self.error;
        (self.mean - margin, self.mean + margin)
    }

    /// Parts that grew.
    pub(super) fn growing(&self) -> usize {
        self.rates.iter().filter(|rate| **rate > 0.0).count()
    }

    /// Whether growth slows: at the end it is less than half of what it was at
    /// the beginning, and not by chance.
    pub(super) fn slows(&self) -> bool {
        let (ratio, t) = self.slowing();
        ratio < SLOWING && t < -SIGNIFICANT
    }

    /// Growth at the end over growth at the beginning, of a straight line
    /// through the rates, and the line's t-statistic: how many standard
    /// errors its slope lies from level.
    pub(super) fn slowing(&self) -> (f64, f64) {
        let n = self.rates.len() as f64;
        let middle = (n - 1.0) / 2.0;
        let mean = self.rates.iter().sum::<f64>() / n;
        let spread: f64 = (0..self.rates.len())
            .map(|i| (i as f64 - middle).powi(2))
            .sum();
        let slope: f64 = self
            .rates
            .iter()
            .enumerate()
            .map(|(i, rate)| (i as f64 - middle) * rate)
            .sum::<f64>()
            / spread;
        let rest: f64 = self
            .rates
            .iter()
            .enumerate()
            .map(|(i, rate)| (rate - mean - slope * (i as f64 - middle)).powi(2))
            .sum();
        let error = (rest / (n - 2.0).max(1.0) / spread).sqrt();
        let (begin, end) = (mean - slope * middle, mean + slope * middle);
        let ratio = if begin > 0.0 {
            (end / begin).max(0.0)
        } else {
            1.0
        };
        let t = if error > 0.0 {
            slope / error
        } else {
            slope.signum() * 100.0 * f64::from(u8::from(slope != 0.0))
        };
        (ratio, t)
    }
}

/// A fall of a series by more than half of what it had grown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Drop {
    /// The last moment before it, seconds.
    pub(super) at: f64,
    /// How deep it went.
    pub(super) depth: f64,
}

/// The falls of a series of (seconds, value, standard error of the value).
pub(super) fn drops(series: &[(f64, f64, f64)]) -> Vec<Drop> {
    let mut drops: Vec<Drop> = Vec::new();
    let Some(first) = series.first() else {
        return drops;
    };
    let (mut low, mut high) = (first.1, *first);
    let mut falling = false;
    for point in series {
        if falling {
            if point.1 < low {
                low = point.1;
                if let Some(drop) = drops.last_mut() {
                    drop.depth = high.1 - low;
                }
                continue;
            }
            falling = false;
            high = *point;
        }
        if point.1 >= high.1 {
            high = *point;
            continue;
        }
        let depth = high.1 - point.1;
        // three standard errors, so that sampling noise is no fall
        if depth > 0.5 * (high.1 - low) && depth > 3.0 * high.2 {
            drops.push(Drop { at: high.0, depth });
            low = point.1;
            falling = true;
        }
    }
    drops
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        (0..=60)
            .map(|t| (f64::from(t), values(f64::from(t))))
            .collect()
    }

    #[test]
    fn steady_growth_does_not_slow() {
        let parts = Parts::of(&series(|t| 5.0 * t)).unwrap();
        assert!((parts.mean - 5.0).abs() < 1e-9 && parts.error < 1e-9);
        assert_eq!(parts.growing(), PARTS);
        let (ratio, _) = parts.slowing();
        assert!((ratio - 1.0).abs() < 1e-6, "{ratio}");
    }

    #[test]
    fn filling_slows() {
        let (ratio, t) = Parts::of(&series(|t| 1000.0 * (1.0 - (-t / 30.0).exp())))
            .unwrap()
            .slowing();
        assert!(ratio < 0.3 && t < -5.0, "{ratio} {t}");
    }

    #[test]
    fn few_points_have_no_shape() {
        assert_eq!(Parts::of(&[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]), None);
        assert_eq!(Parts::of(&[(1.0, 1.0); 10]), None);
        assert!(Parts::of(&[(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]).is_some());
    }

    #[test]
    fn falls_are_found() {
        let sawtooth: Vec<_> = (0..60)
            .map(|t| (f64::from(t), f64::from(t % 20) * 10.0, 0.0))
            .collect();
        let found = drops(&sawtooth);
        assert_eq!(
            found.iter().map(|drop| drop.at).collect::<Vec<_>>(),
            [19.0, 39.0]
        );
        assert!((found[0].depth - 190.0).abs() < 1e-9);
        let ripple: Vec<_> = (0..60)
            .map(|t| {
                (
                    f64::from(t),
                    f64::from(t) * 10.0 + f64::from(t % 3) * 15.0,
                    0.0,
                )
            })
            .collect();
        assert_eq!(drops(&ripple), []);
        let noise: Vec<_> = (0..60)
            .map(|t| (f64::from(t), f64::from(t % 2) * 10.0, 5.0))
            .collect();
        assert_eq!(drops(&noise), []);
    }
}
