//! Who may have probes next, when not all may have them at the same time.

use std::time::Duration;

use super::{Governor, TargetId, targets::Watched};

/// A target that waits asks again after so long: the room that another leaves
/// is not empty for longer.
pub(super) const ASK_FOR_ROOM: Duration = Duration::from_millis(200);
/// Who has not asked for so long waits no more.
const FORGOTTEN: Duration = Duration::from_secs(2);

/// A target that waits for room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    since: Duration,
    asked: Duration,
}

impl Governor {
    /// Why a target must wait for room, if it must: there is none, or what is
    /// left belongs to those who have waited longer. Without the second, a
    /// target whose windows follow one another would keep all others out.
    pub(super) fn crowded(&mut self, id: TargetId, now: Duration) -> Option<String> {
        let suspects = self.allowance().suspects;
        let probed = self.probed();
        let since = self
            .targets
            .get(&id)
            .and_then(|watched| watched.waiting)
            .map_or(now, |waiting| waiting.since);
        let ahead = self
            .targets
            .iter()
            .filter(|(other, watched)| **other != id && watched.is_ahead_of(since, now))
            .count();
        let crowded = probed.saturating_add(ahead) >= suspects;
        if let Some(watched) = self.targets.get_mut(&id) {
            watched.waiting = crowded.then_some(Waiting { since, asked: now });
        }
        if !crowded {
            return None;
        }
        let waiting = match ahead {
            0 => String::new(),
            _ => format!(" and {ahead} have waited longer for them"),
        };
        Some(if suspects < self.budget.suspects {
            format!(
                "{probed} targets have probes{waiting}, and our own processor time allows {suspects} instead of {}",
                self.budget.suspects
            )
        } else {
            format!("{probed} targets have probes{waiting}, and {suspects} are allowed")
        })
    }
}

impl Watched {
    fn is_ahead_of(&self, since: Duration, now: Duration) -> bool {
        self.waiting.is_some_and(|waiting| {
            waiting.since < since && now.saturating_sub(waiting.asked) < FORGOTTEN
        })
    }
}
