//! What the watch is told: intervals, thresholds, bounds.

use std::time::Duration;

/// What growth must exceed to be looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// The lower bound of the growth, bytes per second.
    pub min_rate: f64,
    /// The growth over the window, bytes.
    pub min_net: u64,
    /// The same as a share of the process's size: a big program creeps more
    /// than a small one.
    pub min_share: f64,
}

/// Settings of the watch. Every value is usable: what makes no sense is
/// brought into range by [`Settings::bounded`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Time between two sweeps.
    pub interval: Duration,
    /// The shortest window that growth is judged by. Taken only when a limit
    /// is so near that waiting would be too late.
    pub fast_window: Duration,
    /// How long growth must have gone on when no limit is near. Start-up,
    /// warm-up and bursts that end sooner are never suspected.
    pub patience: Duration,
    /// After the start of a process, growth does not count for so long.
    pub settle: Duration,
    /// Thresholds for windows up to an hour.
    pub fast: Thresholds,
    /// Thresholds for windows of hours to a week.
    pub slow: Thresholds,
    /// How often a process that only wanders may be suspected, per day.
    pub false_suspects_per_process_day: f64,
    /// Most processes that are watched; further ones are counted as skipped.
    pub max_processes: usize,
    /// Most suspects at a time; further ones are counted.
    pub max_suspects: usize,
    /// Most `/proc/PID/statm` that are kept open. Each costs the kernel some
    /// 1.5 KiB; processes beyond are read by opening files anew, at five times
    /// the cost. Never more than half of what `RLIMIT_NOFILE` allows.
    pub max_files: usize,
    /// Most bytes for all histories. When there are too many processes for a
    /// week of each, the slow history gets shorter, down to half a day.
    pub history_bytes: usize,
    /// A process with more anonymous memory is not confirmed page by page,
    /// which would stall it.
    pub confirm_up_to: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            fast_window: Duration::from_mins(1),
            patience: Duration::from_mins(15),
            settle: Duration::from_mins(1),
            fast: Thresholds {
                min_rate: 2.0 * 1024.0,
                min_net: 4 << 20,
                min_share: 0.01,
            },
            slow: Thresholds {
                min_rate: 256.0,
                min_net: 4 << 20,
                min_share: 0.01,
            },
            false_suspects_per_process_day: 1e-4,
            max_processes: 32_768,
            max_suspects: 64,
            max_files: 8192,
            history_bytes: 96 << 20,
            confirm_up_to: 16 << 30,
        }
    }
}

impl Settings {
    /// The same with every value in its range: an interval of 0.1 s to 5 min,
    /// the fast window at least six intervals, patience no shorter than that
    /// and at most half an hour or 360 intervals, at least one process.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.interval = self
            .interval
            .clamp(Duration::from_millis(100), Duration::from_mins(5));
        self.fast_window = self.fast_window.clamp(
            self.interval * super::trend::FEWEST as u32,
            self.interval * 360,
        );
        self.patience = self.patience.clamp(
            self.fast_window,
            (self.interval * 360)
                .min(Duration::from_mins(30))
                .max(self.fast_window),
        );
        self.settle = self.settle.min(Duration::from_hours(1));
        if !(1e-12..=1.0).contains(&self.false_suspects_per_process_day) {
            self.false_suspects_per_process_day = 1e-4;
        }
        self.max_processes = self.max_processes.clamp(1, 1 << 20);
        self.max_suspects = self.max_suspects.clamp(1, 4096);
        self
    }
}
