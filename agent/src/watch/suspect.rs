//! A process that grows, and how long that can go on.

use std::{
    cmp::Ordering,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    finding::Estimate,
    host::{
        cgroup::{Group, Limit},
        population::Identity,
    },
};

use super::judgement::{Growth, Resolution};

/// A process whose memory grows.
#[derive(Clone, Debug)]
pub struct Suspect {
    /// Which process.
    pub identity: Identity,
    /// Growth of anonymous memory and swap, bytes per second; `low` is
    /// corrected for repeated testing.
    pub growth: Estimate,
    /// Bytes by which it has grown since.
    pub net_growth: u64,
    /// When the growth began at the latest.
    pub since: Instant,
    /// Which history showed it.
    pub resolution: Resolution,
    /// Anonymous memory and swap now, bytes.
    pub bytes: u64,
    /// First told in this sweep.
    pub new: bool,
    /// The kernel's page tables agree with its counters. False where the
    /// process is too big to ask or may not be asked.
    pub confirmed: bool,
    /// Control group, unit and container. `None` when it could not be read.
    pub group: Option<Arc<Group>>,
    /// The limit that leaves least: of a group above, or of the host.
    pub limit: Option<Limit>,
    /// The nearest `memory.high`, above which it is slowed down.
    pub high: Option<Limit>,
    /// Until the limit, at this growth.
    pub time_to_limit: Option<Duration>,
}

impl Suspect {
    /// Order of urgency: the nearest limit first, among equals the fastest.
    pub fn urgency(&self, other: &Self) -> Ordering {
        let left = |suspect: &Self| suspect.time_to_limit.unwrap_or(Duration::MAX);
        left(self)
            .cmp(&left(other))
            .then_with(|| other.growth.value.total_cmp(&self.growth.value))
            .then_with(|| self.identity.cmp(&other.identity))
    }
}

/// Time until `limit` at `rate` bytes per second. `None` without growth.
pub(super) fn time_left(limit: &Limit, rate: f64) -> Option<Duration> {
    if rate.is_nan() || rate <= 0.0 {
        return None;
    }
    Duration::try_from_secs_f64(limit.headroom() as f64 / rate).ok()
}

/// What is remembered of a suspect between sweeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) growth: Growth,
    pub(super) since: Instant,
    /// When it passed last.
    pub(super) passed: Instant,
    pub(super) confirmed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cgroup::LimitKind;

    fn suspect(pid: u32, left: Option<u64>, rate: f64) -> Suspect {
        Suspect {
            identity: Identity { pid, start_time: 1 },
            growth: Estimate::exact(rate),
            net_growth: 0,
            since: Instant::now(),
            resolution: Resolution::Fast,
            bytes: 0,
            new: true,
            confirmed: true,
            group: None,
            limit: None,
            high: None,
            time_to_limit: left.map(Duration::from_secs),
        }
    }

    #[test]
    fn the_nearest_limit_is_first_and_no_limit_last() {
        let mut all = [
            suspect(1, None, 9.0),
            suspect(2, Some(100), 1.0),
            suspect(3, Some(10), 1.0),
            suspect(4, Some(100), 2.0),
        ];
        all.sort_by(Suspect::urgency);
        assert_eq!(all.map(|suspect| suspect.identity.pid), [3, 4, 2, 1]);
    }

    #[test]
    fn time_left_is_never_a_lie() {
        let limit = Limit {
            kind: LimitKind::Host,
            directory: None,
            used: 50,
            max: 100,
        };
        assert_eq!(time_left(&limit, 10.0), Some(Duration::from_secs(5)));
        for rate in [0.0, -1.0, f64::NAN, 1e-300] {
            assert_eq!(time_left(&limit, rate), None);
        }
        let over = Limit { used: 200, ..limit };
        assert_eq!(time_left(&over, 1.0), Some(Duration::ZERO));
    }
}
