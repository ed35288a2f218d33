//! Letting blocks go without a bias: threshold sampling.

/// Finds the threshold at which a block of weighted bytes `b` is kept with
/// probability min(1, b / threshold) and `keep` are kept on average. One that
/// is kept then stands for max(b, threshold), so every sum keeps its mean,
/// however often this is repeated (Duffield, Lund, Thorup 2005). None when
/// all can stay.
pub(super) fn threshold(bytes: &[f64], keep: usize) -> Option<f64> {
    if bytes.len() <= keep {
        return None;
    }
    let keep = keep.max(1);
    let mut sorted = bytes.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mut rest: f64 = sorted.iter().sum();
    for (sure, largest) in sorted.iter().enumerate().take(keep) {
        let threshold = rest / (keep - sure) as f64;
        if *largest <= threshold {
            return Some(threshold);
        }
        rest -= largest;
    }
    // only by rounding
    sorted.get(keep).copied()
}

/// The cap per list at which all lists together keep at most `room` blocks:
/// those with few keep all of them.
pub(super) fn fair_cap(counts: &[usize], room: usize) -> usize {
    let mut sorted = counts.to_vec();
    sorted.sort_unstable();
    let mut left = room;
    for (at, count) in sorted.iter().enumerate() {
        let share = left / (sorted.len() - at);
        if *count > share {
            return share;
        }
        left -= count;
    }
    usize::MAX
}

/// A small random generator (splitmix64); thinning needs no better one.
#[derive(Clone, Debug, Default)]
pub(super) struct Random(pub(super) u64);

impl Random {
    /// From [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_keep_as_many_as_asked() {
        let mut random = Random::default();
        for n in [3usize, 10, 100, 1000] {
            let bytes: Vec<f64> = (0..n).map(|_| 1.0 / (0.001 + random.unit())).collect();
            for keep in [1, n / 3 + 1, n - 1] {
                let threshold = threshold(&bytes, keep).unwrap();
                let kept: f64 = bytes.iter().map(|b| (b / threshold).min(1.0)).sum();
                assert!((kept - keep as f64).abs() < 1e-6, "{kept} of {keep}");
            }
            assert_eq!(threshold(&bytes, n), None);
        }
    }

    #[test]
    fn caps_are_fair() {
        assert_eq!(fair_cap(&[1, 2, 3], 10), usize::MAX);
        assert_eq!(fair_cap(&[100, 2, 100], 22), 10);
        assert_eq!(fair_cap(&[5, 5], 0), 0);
        assert_eq!(fair_cap(&[], 0), usize::MAX);
    }
}
