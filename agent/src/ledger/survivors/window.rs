//! The windows of a survey, neighbouring ones put together when there are
//! many.

use std::time::Duration;

use agent_ebpf::logic::sampling::weight;

use super::{Survivors, WindowOutcome};
use crate::ledger::Calls;

/// Block sizes for which a survey says what it would have found, in bytes.
pub const SIZE_CLASSES: [u64; 4] = [64, 512, 4096, 65_536];

/// One window, or several neighbouring ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// When the first of them opened.
    pub opened: Duration,
    /// When the last of them closed.
    pub closed: Duration,
    /// How many.
    pub windows: u32,
    /// Seconds that probes were open.
    pub open: f64,
    /// Calls inside, where they were counted in all of them.
    pub calls: Option<Calls>,
    /// For a site that allocates one block of each of [`SIZE_CLASSES`] per
    /// second: how many samples were to be expected.
    pub expected: [f64; 4],
}

impl Window {
    pub(super) fn of(opened: Duration, closed: Duration, outcome: &WindowOutcome) -> Self {
        let open = outcome.open.as_secs_f64();
        let expected = SIZE_CLASSES.map(|size| open / weight(size, outcome.mean));
        Self {
            opened,
            closed,
            windows: 1,
            open,
            calls: outcome.calls,
            expected,
        }
    }

    fn merge(&mut self, other: &Self) {
        self.opened = self.opened.min(other.opened);
        self.closed = self.closed.max(other.closed);
        self.windows = self.windows.saturating_add(other.windows);
        self.open += other.open;
        self.calls = self.calls.zip(other.calls).map(|(a, b)| Calls {
            allocations: a.allocations.saturating_add(b.allocations),
            frees: a.frees.saturating_add(b.frees),
        });
        for (mine, theirs) in self.expected.iter_mut().zip(other.expected) {
            *mine += theirs;
        }
    }
}

impl Survivors {
    /// Puts every two neighbours together, when there is no room left. Their
    /// number still says enough about how windows differ.
    pub(super) fn pair_windows(&mut self) {
        if self.windows.len() < Self::MAX_WINDOWS {
            return;
        }
        self.windows = self
            .windows
            .chunks(2)
            .filter_map(|pair| {
                let mut window = pair.first()?.clone();
                pair.iter().skip(1).for_each(|other| window.merge(other));
                Some(window)
            })
            .collect();
        for followed in self.followed.values_mut() {
            followed.window /= 2;
        }
        for site in self.sites.values_mut() {
            for (index, account) in std::mem::take(&mut site.windows) {
                site.windows.entry(index / 2).or_default().merge(&account);
            }
        }
    }
}
