//! How long blocks lived, in logarithmic classes.

use std::time::Duration;

/// Ages of blocks at their death, as far as an observation saw them alive;
/// four classes per doubling, from 1 s on. Shorter lives share class 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ages {
    counts: [u64; Self::CLASSES],
}

impl Default for Ages {
    fn default() -> Self {
        Self {
            counts: [0; Self::CLASSES],
        }
    }
}

impl Ages {
    /// Classes: up to about 12 days.
    pub const CLASSES: usize = 81;

    /// Counts `count` deaths at this age.
    pub fn add(&mut self, age: Duration, count: u64) {
        if let Some(class) = self.counts.get_mut(Self::class(age)) {
            *class += count;
        }
    }

    /// Adds another account.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
    }

    /// All deaths.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Deaths in the class of this age or a higher one.
    pub fn since(&self, age: Duration) -> u64 {
        self.counts.iter().skip(Self::class(age)).sum()
    }

    /// Where the classes begin, in seconds: 0, 1, 1.19, 1.41, …
    pub fn starts() -> impl Iterator<Item = f64> {
        (0..Self::CLASSES).map(|class| {
            if class == 0 {
                0.0
            } else {
                ((class - 1) as f64 / 4.0).exp2()
            }
        })
    }

    fn class(age: Duration) -> usize {
        let seconds = age.as_secs_f64();
        if seconds < 1.0 {
            return 0;
        }
        (1 + (seconds.log2() * 4.0) as usize).min(Self::CLASSES - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_their_starts() {
        for (class, start) in Ages::starts().enumerate() {
            assert_eq!(Ages::class(Duration::from_secs_f64(start + 1e-6)), class);
        }
        assert_eq!(Ages::class(Duration::MAX), Ages::CLASSES - 1);
    }

    #[test]
    fn deaths_add_up() {
        let mut ages = Ages::default();
        ages.add(Duration::from_millis(10), 5);
        ages.add(Duration::from_secs(30), 2);
        let mut both = ages.clone();
        both.merge(&ages);
        assert_eq!(both.total(), 14);
        assert_eq!(both.since(Duration::from_secs(20)), 4);
        assert_eq!(both.since(Duration::from_mins(1)), 0);
    }
}
