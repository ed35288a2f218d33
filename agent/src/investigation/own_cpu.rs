//! What a process uses of processors itself: before it was probed, while its
//! probes are on, and in between. An average over all time says little of a
//! process that mostly waits: there, traps that take a hundredth of its time
//! may be a third of what it uses.

use std::{io, time::Duration};

use crate::{
    finding::TargetCpu,
    host::{cpu_clock::CpuClock, kernel},
};

/// Shorter stretches without probes tell nothing.
const TELLING: Duration = Duration::from_millis(100);
/// A process whose use nobody knows yet is looked at for so long before its
/// first probe.
pub(super) const BEFORE: Duration = Duration::from_secs(1);

/// A process's processor time at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// CLOCK_MONOTONIC.
    at: Duration,
    cpu: Duration,
}

impl Sighting {
    /// Now.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::read(CpuClock::of(pid)?)
    }

    fn read(clock: CpuClock) -> io::Result<Self> {
        Ok(Self {
            cpu: clock.read()?,
            at: Duration::from_nanos(kernel::monotonic_ns()),
        })
    }
}

/// Whether probes are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not yet.
    Before,
    /// They are.
    Probed,
    /// They were.
    Between,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Stretch {
    wall: Duration,
    cpu: Duration,
}

impl Stretch {
    fn cores(self, telling: Duration) -> Option<f64> {
        let known = self.wall >= telling && !self.wall.is_zero();
        known.then(|| self.cpu.as_secs_f64() / self.wall.as_secs_f64())
    }
}

/// The processor time of one process.
#[derive(Clone, Debug)]
pub(super) struct OwnCpu {
    clock: Option<CpuClock>,
    phase: Phase,
    last: Option<Sighting>,
    before: Stretch,
    probed: Stretch,
    between: Stretch,
}

impl OwnCpu {
    /// Of a process that is not probed yet. `sighting` is an earlier look at
    /// it.
    pub(super) fn new(pid: u32, sighting: Option<Sighting>) -> Self {
        let clock = CpuClock::of(pid).ok();
        let now = || Sighting::read(clock?).ok();
        Self {
            clock,
            phase: Phase::Before,
            last: sighting.or_else(now),
            before: Stretch::default(),
            probed: Stretch::default(),
            between: Stretch::default(),
        }
    }

    /// When it is known what the process uses without probes, CLOCK_MONOTONIC.
    pub(super) fn known_from(&self) -> Duration {
        let sighted = self.last.map_or(Duration::ZERO, |last| last.at);
        sighted + BEFORE.saturating_sub(self.before.wall)
    }

    /// The process runs another program: what it used before is another's.
    pub(super) fn restart(&mut self) {
        self.pass();
        self.before = Stretch::default();
        self.probed = Stretch::default();
        self.between = Stretch::default();
    }

    /// Time has passed.
    pub(super) fn pass(&mut self) {
        let Some(now) = self.clock.and_then(|clock| Sighting::read(clock).ok()) else {
            return;
        };
        if let Some(last) = self.last.replace(now) {
            let stretch = match self.phase {
                Phase::Before => &mut self.before,
                Phase::Probed => &mut self.probed,
                Phase::Between => &mut self.between,
            };
            stretch.wall += now.at.saturating_sub(last.at);
            stretch.cpu += now.cpu.saturating_sub(last.cpu);
        }
    }

    /// Probes go on, or have come off.
    pub(super) fn turn(&mut self, phase: Phase) {
        self.pass();
        self.phase = phase;
    }

    /// As reports tell it; `trapped` are the seconds that traps have taken.
    pub(super) fn told(&self, trapped: Option<f64>) -> TargetCpu {
        // It is an estimate, and no more than all.
        let share = |used: Duration| {
            let used = used.as_secs_f64();
            let trapped = trapped.filter(|_| used > 0.0)?;
            Some((trapped / used * 100.0).min(100.0))
        };
        TargetCpu {
            cores_before: self.before.cores(TELLING),
            cores_during: self.probed.cores(Duration::ZERO),
            cores_between: self.between.cores(TELLING),
            probe_percent_of_own: share(self.probed.cpu),
            probe_percent_overall: share(self.probed.cpu)
                .and(share(self.probed.cpu + self.between.cpu)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(time: Duration) {
        let began = CpuClock::OURS.read().unwrap();
        while CpuClock::OURS.read().unwrap() < began + time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn stretches_are_kept_apart() {
        let mut own = OwnCpu::new(std::process::id(), None);
        let told = own.told(Some(0.1));
        assert_eq!((told.cores_before, told.cores_during), (None, None));
        assert_eq!(told.probe_percent_of_own, None);
        std::thread::sleep(Duration::from_millis(120));
        own.turn(Phase::Probed);
        spin(Duration::from_millis(50));
        own.turn(Phase::Between);
        let told = own.told(Some(0.005));
        assert!(told.cores_before.is_some());
        assert!(told.cores_during.unwrap() > 0.0);
        assert_eq!(told.cores_between, None);
        let share = told.probe_percent_of_own.unwrap();
        assert!(share > 0.0 && share <= 10.0, "{share}");
        assert!(told.probe_percent_overall.unwrap() <= share);
        assert_eq!(own.told(Some(1e9)).probe_percent_of_own, Some(100.0));
        assert_eq!(own.told(None).probe_percent_of_own, None);
        own.restart();
        assert_eq!(own.told(None).cores_before, None);
    }

    #[test]
    fn what_was_never_seen_without_probes_is_unknown() {
        let mut own = OwnCpu::new(std::process::id(), None);
        own.turn(Phase::Probed);
        spin(Duration::from_millis(5));
        own.pass();
        assert_eq!(own.told(None).cores_before, None);
        assert!(own.told(None).cores_during.is_some());
    }

    #[test]
    fn a_process_that_is_gone_keeps_what_was_known() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let mut own = OwnCpu::new(child.id(), Sighting::of(child.id()).ok());
        std::thread::sleep(Duration::from_millis(120));
        own.turn(Phase::Probed);
        child.kill().unwrap();
        child.wait().unwrap();
        own.turn(Phase::Between);
        assert!(own.told(None).cores_before.is_some());
        assert!(Sighting::of(child.id()).is_err());
    }
}
