//! What observing may cost: the settings.

use std::time::Duration;

/// Limits on what observing costs, in percent as the configuration has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Average slowdown of a target (`budget.target_percent`).
    pub target_percent: f64,
    /// Slowdown that a window may exceed for a moment only
    /// (`budget.window_percent`).
    pub window_percent: f64,
    /// That moment, attach and detach included (`budget.window_ms`).
    pub window: Duration,
    /// Our own processor time, of one core (`budget.agent_percent`).
    pub agent_percent: f64,
    /// Slowdown that users of a target would notice.
    pub noticed_percent: f64,
    /// Share of the time that a target may be slowed by more than that. Below
    /// 1, so that the 99th percentile of its latency lies outside such
    /// windows; 100 leaves only the average to hold.
    pub noticed_share_percent: f64,
    /// Memory pressure (`some avg10` of `/proc/pressure/memory`) at which all
    /// probes come off.
    pub pressure_percent: f64,
    /// Targets with probes or windows at the same time.
    pub suspects: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            target_percent: 1.0,
            window_percent: 30.0,
            window: Duration::from_millis(300),
            agent_percent: 2.0,
            noticed_percent: 5.0,
            noticed_share_percent: 0.5,
            pressure_percent: 10.0,
            suspects: 8,
        }
    }
}

impl Budget {
    /// Every number within what it can mean, whatever a caller has put in;
    /// settings are checked, with an error, where they are read.
    #[must_use]
    pub fn sane(self) -> Self {
        let percent = |value: f64, standard: f64, low: f64, high: f64| {
            if value.is_finite() {
                value.clamp(low, high)
            } else {
                standard
            }
        };
        let standard = Self::default();
        Self {
            target_percent: percent(self.target_percent, standard.target_percent, 0.001, 100.0),
            window_percent: percent(self.window_percent, standard.window_percent, 0.1, 100.0),
            window: self
                .window
                .clamp(Duration::from_millis(1), Duration::from_mins(1)),
            agent_percent: percent(self.agent_percent, standard.agent_percent, 0.01, 100.0),
            noticed_percent: percent(self.noticed_percent, standard.noticed_percent, 0.1, 100.0),
            noticed_share_percent: percent(
                self.noticed_share_percent,
                standard.noticed_share_percent,
                0.001,
                100.0,
            ),
            pressure_percent: percent(self.pressure_percent, standard.pressure_percent, 0.1, 100.0),
            suspects: self.suspects.clamp(1, 256),
        }
    }

    /// The average that is steered for, as a ratio: a tenth is kept back for
    /// what the counters do not see.
    pub(super) fn target(&self) -> f64 {
        self.target_percent / 100.0 * 0.9
    }

    /// What counts as above [`Self::window_percent`], as a ratio: a tenth is
    /// kept back, since a few calls between two checks more or less make a
    /// slowdown at the limit look like one below it.
    pub(super) fn hot(&self) -> f64 {
        self.window_percent / 100.0 * 0.9
    }

    /// [`Self::noticed_percent`] as a ratio.
    pub(super) fn noticed(&self) -> f64 {
        self.noticed_percent / 100.0
    }

    /// [`Self::noticed_share_percent`] as a ratio.
    pub(super) fn noticed_share(&self) -> f64 {
        self.noticed_share_percent / 100.0
    }
}
