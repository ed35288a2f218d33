//! Everything that can happen to the daemon.

use std::{future::pending, os::fd::OwnedFd, time::Duration};

use anyhow::Result;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};

/// One turn of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Asked to end.
    Stop,
    /// Asked to read the settings again.
    Reload,
    /// The kernel programs have something to tell.
    Records,
    /// A window or another step of an investigation is due.
    Step,
    /// A second has passed.
    Tick,
    /// Time to look at every process.
    Sweep,
    /// Time to judge one of the followed processes.
    Judge,
}

/// Where events come from.
pub(super) struct Events {
    /// None while nothing is loaded into the kernel.
    ring: Option<AsyncFd<OwnedFd>>,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    ticks: Interval,
    sweeps: Interval,
    judgements: Interval,
    /// When the next step is due.
    pub(super) step: Instant,
}

impl Events {
    pub(super) fn new(ring: Option<OwnedFd>, sweep: Duration, judge: Duration) -> Result<Self> {
        let mut events = Self {
            ring: None,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            ticks: every(Duration::from_secs(1)),
            sweeps: every(sweep),
            judgements: every(judge),
            step: Instant::now(),
        };
        events.listen(ring)?;
        Ok(events)
    }

    /// Takes another ring buffer to listen to, or none.
    pub(super) fn listen(&mut self, ring: Option<OwnedFd>) -> Result<()> {
        // SAFETY: the descriptor is its own, and nothing else closes it.
        let register = |ring: OwnedFd| unsafe { AsyncFd::register(ring) };
        self.ring = ring.map(register).transpose()?;
        Ok(())
    }

    /// Waits for the next event. What ends or protects comes first; what is
    /// late is not made up for.
    pub(super) async fn next(&mut self) -> Result<Event> {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Ok(Event::Stop),
            _ = self.interrupt.recv() => Ok(Event::Stop),
            () = sleep_until(self.step) => Ok(Event::Step),
            ready = readable(self.ring.as_ref()) => {
                ready?;
                Ok(Event::Records)
            }
            _ = self.hangup.recv() => Ok(Event::Reload),
            _ = self.ticks.tick() => Ok(Event::Tick),
            _ = self.sweeps.tick() => Ok(Event::Sweep),
            _ = self.judgements.tick() => Ok(Event::Judge),
        }
    }
}

/// Waits until something is in the ring buffer.
async fn readable(ring: Option<&AsyncFd<OwnedFd>>) -> Result<()> {
    match ring {
        Some(ring) => {
            ring.readable().await?.clear_ready();
            Ok(())
        }
        None => pending().await,
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
