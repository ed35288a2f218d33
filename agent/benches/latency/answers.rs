//! How long answers took.

/// Some answers, spread evenly over what they took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bin {
    /// Microseconds.
    pub(crate) above: f64,
    pub(crate) up_to: f64,
    pub(crate) count: u64,
}

impl Bin {
    /// One answer that took exactly that long.
    pub(crate) fn single(micros: f64) -> Self {
        Self {
            above: micros,
            up_to: micros,
            count: 1,
        }
    }

    /// How many of them took that long at most.
    fn within(&self, micros: f64) -> f64 {
        if micros >= self.up_to {
            return self.count as f64;
        }
        let part = (micros - self.above) / (self.up_to - self.above);
        self.count as f64 * part.max(0.0)
    }
}

/// Answers of one or several turns.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    bins: Vec<Bin>,
    count: u64,
    seconds: f64,
}

impl Answers {
    pub(crate) fn new(bins: Vec<Bin>, seconds: f64) -> Self {
        let count = bins.iter().map(|bin| bin.count).sum();
        Self {
            bins,
            count,
            seconds,
        }
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.bins.extend(other.bins);
        self.count += other.count;
        self.seconds += other.seconds;
    }

    /// Answers per second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// Microseconds that so many percent did not exceed. Between the ends of
    /// the bins too: redis-benchmark's lie 8 µs apart, which is 5 % of its
    /// 99th percentile.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let wanted = self.count as f64 * percent / 100.0;
        let longest = self.bins.iter().map(|bin| bin.up_to).fold(0.0, f64::max);
        let (mut low, mut high) = (0.0, longest);
        // Halved until far below what a clock tells.
        while high - low > 1e-3 {
            let middle = f64::midpoint(low, high);
            let within: f64 = self.bins.iter().map(|bin| bin.within(middle)).sum();
            if within < wanted {
                low = middle;
            } else {
                high = middle;
            }
        }
        high
    }
}
