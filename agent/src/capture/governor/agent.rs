//! Our own processor time: how much is left, and what is given up for it.

use std::{collections::VecDeque, time::Duration};

/// How far back the account looks.
const MEMORY: Duration = Duration::from_mins(2);
/// Readings of our own time kept.
const SAMPLES: usize = 128;
/// Too much for so long sheds work.
const SHED_AFTER: Duration = Duration::from_secs(5);
/// Little for so long takes some back.
const TAKE_BACK_AFTER: Duration = Duration::from_mins(1);
/// Steps of shedding; the last leaves no suspect.
const MAX_LEVEL: u32 = 9;
/// Tables are read this often when there is time.
const READ_EVERY: Duration = Duration::from_secs(1);
/// And no less often than that.
const READ_AT_LEAST: Duration = Duration::from_secs(16);
/// A newcomer has saved up so much.
const START: Duration = Duration::from_secs(10);

/// Share of the limit that work which can wait may take.
const WAITING: f64 = 0.85;

/// What our own work may be now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Pause between readings of the kernel's tables.
    pub read_every: Duration,
    /// Targets with probes at the same time.
    pub suspects: usize,
}

/// The account of our own processor time.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    samples: VecDeque<(Duration, Duration)>,
    level: u32,
    changed: Duration,
}

impl Agent {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            samples: VecDeque::new(),
            level: 0,
            changed: now,
        }
    }

    /// Enters our processor time; a sentence when work is shed or taken back.
    /// `limit` is a ratio of one core.
    pub(super) fn enter(
        &mut self,
        now: Duration,
        cpu: Duration,
        limit: f64,
        suspects: usize,
    ) -> Option<String> {
        let fresh = self
            .samples
            .back()
            .is_none_or(|(at, _)| now.saturating_sub(*at) >= Duration::from_millis(900));
        if !fresh {
            return None;
        }
        self.samples.push_back((now, cpu));
        while self.samples.len() > SAMPLES
            || self
                .samples
                .front()
                .is_some_and(|(at, _)| now.saturating_sub(*at) > MEMORY)
        {
            self.samples.pop_front();
        }
        let since = now.saturating_sub(self.changed);
        // Only what was spent since the last change tells whether it helped.
        let (share, seconds) = self.share(self.changed.max(now.saturating_sub(TAKE_BACK_AFTER)))?;
        let before = self.allowance(suspects);
        // Nor is what a newcomer may spend too much.
        let most = limit * (1.0 + START.as_secs_f64() / seconds.max(1.0));
        if share > most && since >= SHED_AFTER && self.level < MAX_LEVEL {
            self.level += 1;
        } else if share < limit / 2.0 && since >= TAKE_BACK_AFTER && self.level > 0 {
            self.level -= 1;
        } else {
            return None;
        }
        self.changed = now;
        let after = self.allowance(suspects);
        Some(format!(
            "lingerscope took {:.2} % of a core in {seconds:.0} s, the budget is {:.2} %: {} targets at a time instead of {}, tables read every {} s instead of {} s",
            share * 100.0,
            limit * 100.0,
            after.suspects,
            before.suspects,
            after.read_every.as_secs(),
            before.read_every.as_secs(),
        ))
    }

    /// What is allowed now, of at most so many suspects.
    pub(super) fn allowance(&self, suspects: usize) -> Allowance {
        Allowance {
            read_every: READ_EVERY
                .saturating_mul(1 << self.level.min(8))
                .min(READ_AT_LEAST),
            suspects: if self.level < MAX_LEVEL {
                suspects.checked_shr(self.level).unwrap_or(0).max(1)
            } else {
                0
            },
        }
    }

    /// How long a piece of work that takes so much processor time must wait.
    /// Work that waits stays a little below the limit; at it, every wobble
    /// would shed some.
    pub(super) fn wait(&self, now: Duration, work: Duration, limit: f64) -> Duration {
        let limit = limit * WAITING;
        let Some((first, spent_before)) = self.samples.front() else {
            return Duration::ZERO;
        };
        let spent = self
            .samples
            .back()
            .map_or(Duration::ZERO, |(_, cpu)| cpu.saturating_sub(*spent_before));
        let earned = (now.saturating_sub(*first) + START)
            .min(MEMORY)
            .as_secs_f64()
            * limit;
        // What is dearer than all that can be saved waits for that only.
        let work = work.as_secs_f64().min(MEMORY.as_secs_f64() * limit);
        let lacking = spent.as_secs_f64() + work - earned;
        Duration::from_secs_f64((lacking / limit).clamp(0.0, 2.0 * MEMORY.as_secs_f64()))
    }

    /// Our share of a core since a moment, and the seconds it is an average
    /// of.
    pub(super) fn share(&self, since: Duration) -> Option<(f64, f64)> {
        let (first, before) = self.samples.iter().find(|(at, _)| *at >= since)?;
        let (last, after) = self.samples.back()?;
        let seconds = last.checked_sub(*first)?.as_secs_f64();
        (seconds >= 2.0).then(|| {
            (
                after.saturating_sub(*before).as_secs_f64() / seconds,
                seconds,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs for so many seconds at a share of a core that depends on the
    /// suspects allowed.
    fn run(
        agent: &mut Agent,
        from: u64,
        seconds: u64,
        share: impl Fn(usize) -> f64,
    ) -> Vec<String> {
        let mut cpu = agent
            .samples
            .back()
            .map_or(0.0, |(_, cpu)| cpu.as_secs_f64());
        let mut said = Vec::new();
        for second in from..from + seconds {
            cpu += share(agent.allowance(8).suspects);
            said.extend(agent.enter(
                Duration::from_secs(second),
                Duration::from_secs_f64(cpu),
                0.02,
                8,
            ));
        }
        said
    }

    #[test]
    fn sheds_until_the_budget_holds_and_takes_back_when_it_is_calm() {
        let mut agent = Agent::new(Duration::ZERO);
        let said = run(&mut agent, 0, 120, |suspects| suspects as f64 * 0.008);
        assert_eq!(agent.allowance(8).suspects, 2);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("6.40 % of a core") && said[0].contains("4 targets"));
        run(&mut agent, 120, 300, |_| 0.001);
        assert_eq!(agent.allowance(8).suspects, 8);
    }

    #[test]
    fn in_the_end_nothing_is_left_to_shed() {
        let mut agent = Agent::new(Duration::ZERO);
        run(&mut agent, 0, 200, |_| 0.5);
        assert_eq!(agent.allowance(8).suspects, 0);
        assert_eq!(agent.allowance(8).read_every, READ_AT_LEAST);
    }

    #[test]
    fn dear_work_waits_until_it_is_earned() {
        let mut agent = Agent::new(Duration::ZERO);
        run(&mut agent, 0, 60, |_| 0.01);
        let now = Duration::from_mins(1);
        assert_eq!(
            agent.wait(now, Duration::from_millis(100), 0.02),
            Duration::ZERO
        );
        let wait = agent.wait(now, Duration::from_millis(1500), 0.02);
        assert!(
            (Duration::from_secs(20)..Duration::from_mins(1)).contains(&wait),
            "{wait:?}"
        );
    }
}
