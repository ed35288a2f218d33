//! How long answers took.

/// Answers of one or several turns.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    /// Microseconds, and how many answers took that long at most. In no order.
    took: Vec<(f64, u64)>,
    count: u64,
    seconds: f64,
}

impl Answers {
    pub(crate) fn new(took: Vec<(f64, u64)>, seconds: f64) -> Self {
        let count = took.iter().map(|(_, count)| count).sum();
        Self {
            took,
            count,
            seconds,
        }
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.took.extend(other.took);
        self.took.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.count += other.count;
        self.seconds += other.seconds;
    }

    /// Answers per second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// Microseconds that so many percent did not exceed.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let wanted = self.count as f64 * percent / 100.0;
        let mut sum = 0;
        for (took, count) in &self.took {
            sum += count;
            if sum as f64 >= wanted {
                return *took;
            }
        }
        self.took.last().map_or(0.0, |(took, _)| *took)
    }
}
