//! What a target has paid and may still be made to pay.
//!
//! Slowdown here is trap time divided by the time in which the target could
//! have run: elapsed time, times the threads that share the traps. For a busy
//! thread that is exactly the share of its time that it loses. For one that
//! waits it is the delay per elapsed second: waiting is not slowed. Several
//! threads count only as far as they are seen to share the traps and to be
//! running; otherwise one thread is taken to pay everything.

use std::time::Duration;

/// Weight of the newest observation of how much a target runs.
const NEWEST: f64 = 0.3;
/// Shorter stretches tell nothing of that.
const TELLING: f64 = 0.2;

/// The account of one target. Seconds, of trap time where nothing else is
/// said.
#[derive(Clone, Debug)]
pub(super) struct Account {
    /// What may be spent; below zero, a debt.
    pub(super) balance: f64,
    /// Elapsed time for which it may be slowed noticeably.
    pub(super) noticed: f64,
    /// Threads that share the traps.
    pub(super) lanes: f64,
    /// Processors it keeps busy untraced; unknown at first.
    pub(super) cores: Option<f64>,
    /// Spent since the beginning.
    pub(super) trapped: f64,
    /// Time in which it could have run since the beginning.
    pub(super) running: f64,
    at: Duration,
    cpu: Option<Duration>,
}

/// A stretch between two looks at an account.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    /// Elapsed.
    pub(super) wall: f64,
    /// In which it could have run.
    pub(super) running: f64,
}

/// What an account earns, and how much of it is kept at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Trap time per running time.
    pub(super) target: f64,
    /// Noticeable slowdown per elapsed time.
    pub(super) noticed: f64,
    /// Most trap time kept, per lane.
    pub(super) most: f64,
    /// Most noticeable time kept.
    pub(super) most_noticed: f64,
}

impl Account {
    pub(super) fn new(now: Duration, cpu: Option<Duration>) -> Self {
        Self {
            balance: 0.0,
            noticed: 0.0,
            lanes: 1.0,
            cores: None,
            trapped: 0.0,
            running: 0.0,
            at: now,
            cpu,
        }
    }

    /// Earns for the time since the last call. `traced` holds the lanes seen
    /// meanwhile when probes were on.
    pub(super) fn pass(
        &mut self,
        now: Duration,
        cpu: Option<Duration>,
        traced: Option<f64>,
        terms: Terms,
    ) -> Stretch {
        let wall = now.saturating_sub(self.at).as_secs_f64();
        let mut cores = self.cores.unwrap_or(1.0);
        match (self.cpu, cpu) {
            (Some(before), Some(after)) if wall > 0.0 => {
                let busy = after.saturating_sub(before).as_secs_f64() / wall;
                if traced.is_some() {
                    cores = busy;
                } else if wall >= TELLING {
                    cores = busy;
                    let known = self.cores.unwrap_or(busy);
                    self.cores = Some(known + NEWEST * (busy - known));
                }
            }
            _ => {}
        }
        let lanes = traced.unwrap_or(self.lanes);
        // `max` before `min`: neither is NaN for finite input, and a hostile
        // one counts as 1.
        let sharing = lanes.max(1.0).min(cores.max(1.0));
        let running = wall * sharing;
        self.balance =
            (self.balance + running * terms.target).min(terms.most * self.lanes.max(1.0));
        self.noticed = (self.noticed + wall * terms.noticed).min(terms.most_noticed);
        self.running += running;
        if wall > 0.0 {
            self.at = now;
            self.cpu = cpu;
        }
        Stretch { wall, running }
    }

    pub(super) fn spend(&mut self, seconds: f64) {
        self.balance -= seconds;
        self.trapped += seconds;
    }

    /// Seconds until so much is there, if nothing is spent.
    pub(super) fn wait_for(&self, balance: f64, noticed: f64, terms: Terms) -> f64 {
        let paid = (balance - self.balance) / (terms.target * self.earning());
        let calm = (noticed - self.noticed) / terms.noticed;
        paid.max(calm).max(0.0)
    }

    /// Running time per elapsed time while no probes are on.
    pub(super) fn earning(&self) -> f64 {
        self.lanes.max(1.0).min(self.cores.unwrap_or(1.0).max(1.0))
    }

    /// Share of a lane's time that the target runs untraced; 0 where that is
    /// unknown, which makes costs look high.
    pub(super) fn busy(&self) -> f64 {
        self.cores
            .map_or(0.0, |cores| (cores / self.lanes.max(1.0)).clamp(0.0, 1.0))
    }

    /// Average slowdown so far, a ratio.
    pub(super) fn slowdown(&self) -> f64 {
        if self.running > 0.0 {
            self.trapped / self.running
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        target: 0.01,
        noticed: 0.008,
        most: 0.4,
        most_noticed: 1.0,
    };

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn earns_by_elapsed_time_however_little_it_runs() {
        let mut account = Account::new(s(0.0), Some(s(0.0)));
        account.pass(s(10.0), Some(s(0.1)), None, TERMS);
        assert!((account.balance - 0.1).abs() < 1e-9);
        assert!((account.busy() - 0.01).abs() < 1e-9);
    }

    #[test]
    fn more_threads_count_when_they_run_and_share() {
        // Eight busy threads of which one allocates.
        let mut one = Account::new(s(0.0), Some(s(0.0)));
        one.pass(s(1.0), Some(s(8.0)), Some(1.0), TERMS);
        assert!((one.balance - 0.01).abs() < 1e-9);
        // Eight that all allocate.
        let mut eight = Account::new(s(0.0), Some(s(0.0)));
        eight.lanes = 8.0;
        eight.pass(s(1.0), Some(s(8.0)), Some(8.0), TERMS);
        assert!((eight.balance - 0.08).abs() < 1e-9);
        // One that wanders over eight processors.
        let mut nomad = Account::new(s(0.0), Some(s(0.0)));
        nomad.pass(s(1.0), Some(s(1.0)), Some(8.0), TERMS);
        assert!((nomad.balance - 0.01).abs() < 1e-9);
    }

    #[test]
    fn debts_are_repaid_and_savings_end() {
        let mut account = Account::new(s(0.0), None);
        account.spend(0.3);
        assert!((account.wait_for(0.1, 0.0, TERMS) - 40.0).abs() < 1e-6);
        account.pass(s(30.0), None, None, TERMS);
        assert!(account.balance.abs() < 1e-9);
        account.pass(s(3000.0), None, None, TERMS);
        assert!((account.balance - 0.4).abs() < 1e-9);
        assert!((account.slowdown() - 1e-4).abs() < 1e-9);
    }
}
