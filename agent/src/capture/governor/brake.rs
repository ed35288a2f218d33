//! What stops everything: a pause that was asked for, and memory pressure.

use std::time::Duration;

/// Pressure below this share of the threshold is calm.
const CALM: f64 = 0.5;
/// How long it must be calm before probes are set again.
const CALM_FOR: Duration = Duration::from_mins(1);

/// Whether probes may be set at all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Brake {
    /// Paused until then.
    paused: Option<Duration>,
    /// Under pressure; since when it has been calm.
    pressure: Option<Pressure>,
}

#[derive(Clone, Copy, Debug)]
struct Pressure {
    percent: f64,
    calm_since: Option<Duration>,
}

impl Brake {
    pub(super) fn pause(&mut self, until: Duration) {
        self.paused = Some(until);
    }

    pub(super) fn resume(&mut self) {
        self.paused = None;
    }

    /// Enters the pressure at a moment; a sentence when that changes
    /// anything.
    pub(super) fn press(&mut self, now: Duration, percent: f64, limit: f64) -> Option<String> {
        if percent >= limit {
            let first = self.pressure.is_none();
            self.pressure = Some(Pressure {
                percent,
                calm_since: None,
            });
            return first.then(|| {
                format!(
                    "memory pressure is {percent:.0} %, the limit {limit:.0} %: all probes come off"
                )
            });
        }
        let pressure = self.pressure.as_mut()?;
        if percent > limit * CALM {
            pressure.calm_since = None;
            return None;
        }
        let since = *pressure.calm_since.get_or_insert(now);
        if now.saturating_sub(since) < CALM_FOR {
            return None;
        }
        self.pressure = None;
        Some(format!(
            "memory pressure has been below {:.0} % for {} s: probes may be set again",
            limit * CALM,
            CALM_FOR.as_secs()
        ))
    }

    /// Why no probe may be on now, if so.
    pub(super) fn held(&self, now: Duration) -> Option<String> {
        if let Some(pressure) = self.pressure {
            return Some(format!(
                "memory pressure reached {:.0} %: no probes until it has been calm for {} s",
                pressure.percent,
                CALM_FOR.as_secs()
            ));
        }
        let until = self.paused.filter(|until| *until > now)?;
        Some(format!(
            "paused for another {} s",
            until.saturating_sub(now).as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn pressure_holds_until_it_was_calm_for_a_minute() {
        let mut brake = Brake::default();
        assert_eq!(brake.press(s(0), 9.9, 10.0), None);
        assert_eq!(brake.held(s(0)), None);
        assert!(brake.press(s(1), 12.0, 10.0).is_some());
        assert!(brake.press(s(2), 14.0, 10.0).is_none(), "said once");
        // Falling below the threshold alone is not calm.
        brake.press(s(100), 7.0, 10.0);
        assert!(brake.held(s(300)).is_some());
        brake.press(s(310), 2.0, 10.0);
        brake.press(s(340), 6.0, 10.0);
        brake.press(s(350), 1.0, 10.0);
        brake.press(s(409), 1.0, 10.0);
        assert!(brake.held(s(409)).is_some());
        assert!(brake.press(s(410), 1.0, 10.0).is_some());
        assert_eq!(brake.held(s(410)), None);
    }

    #[test]
    fn a_pause_ends_by_itself_or_by_resume() {
        let mut brake = Brake::default();
        brake.pause(s(100));
        assert!(brake.held(s(99)).is_some());
        assert_eq!(brake.held(s(100)), None);
        brake.pause(s(200));
        brake.resume();
        assert_eq!(brake.held(s(150)), None);
    }
}
