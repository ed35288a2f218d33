//! What a hit costs on this machine.

pub mod measure;

use std::time::Duration;

use super::reading::{Profile, Reading};
use crate::capture::links::Method;

/// Costs of probing, measured at start where that works; nanoseconds unless
/// the type says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// A trap at an instruction that the kernel emulates, our program
    /// included.
    pub trap: f64,
    /// A trap at one that it must single-step.
    pub stepped: f64,
    /// Entering a block in the tables and taking it out again, without its
    /// stack's frames.
    pub record: f64,
    /// One frame of its stack.
    pub frame: f64,
    /// A malloc and free pair in a forked child that inherited breakpoints.
    pub inherited: f64,
    /// What an allocation costs more while another target is probed in the same
    /// file.
    pub shared: f64,
    /// From asking for probes until all are on.
    pub attach: Duration,
    /// From asking for their end until none is on.
    pub detach: Duration,
}

/// Least and most of what is believed of a measurement.
const TRAP: (f64, f64) = (100.0, 20_000.0);
const STEPPED: (f64, f64) = (200.0, 100_000.0);
const RECORD: (f64, f64) = (50.0, 20_000.0);
const FRAME: (f64, f64) = (5.0, 2_000.0);
const INHERITED: (f64, f64) = (0.0, 50_000.0);
const ATTACH: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(30));

impl Costs {
    /// What is assumed until it is measured, on the dear side: measured on
    /// Linux 6.18 in a virtual machine.
    pub fn assumed(method: Method) -> Self {
        let multi = Self {
            trap: 800.0,
            stepped: 15_000.0,
            record: 1_500.0,
            frame: 110.0,
            inherited: 2_100.0,
            shared: 100.0,
            attach: Duration::from_millis(12),
            detach: Duration::from_millis(10),
        };
        match method {
            Method::Multi => multi,
            Method::Perf => Self {
                // A child takes each breakpoint off at its first hit.
                inherited: 10.0,
                // A millisecond for each of up to 64 events, and some 80 for the
                // end of each: 4.6 s for glibc's 52.
                attach: Duration::from_millis(100),
                detach: Duration::from_millis(4800),
                ..multi
            },
        }
    }

    /// Within what is believable.
    #[must_use]
    pub fn clamped(self) -> Self {
        let within = |value: f64, (low, high): (f64, f64)| {
            if value.is_finite() {
                value.clamp(low, high)
            } else {
                high
            }
        };
        let trap = within(self.trap, TRAP);
        Self {
            trap,
            stepped: within(self.stepped, STEPPED).max(trap),
            record: within(self.record, RECORD),
            frame: within(self.frame, FRAME),
            inherited: within(self.inherited, INHERITED),
            shared: within(self.shared, INHERITED),
            attach: self.attach.clamp(ATTACH.0, ATTACH.1),
            detach: self.detach.clamp(ATTACH.0, ATTACH.1),
        }
    }

    /// A child pays noticeably for inherited breakpoints.
    pub(super) fn children_pay(&self) -> bool {
        self.inherited > 50.0
    }

    /// Seconds of trap time for one allocation that is not recorded: its entry
    /// and its result, with its share of frees and of hits that are
    /// single-stepped.
    pub(super) fn pair(&self, frees: f64, stepped: f64, shared: bool) -> f64 {
        let shared = if shared { self.shared } else { 0.0 };
        ((2.0 + frees) * self.trap + shared) * 1e-9 + stepped * self.step()
    }

    /// Seconds that a single-stepped hit takes longer than an emulated one.
    fn step(&self) -> f64 {
        (self.stepped - self.trap) * 1e-9
    }

    /// Seconds that recording an allocation adds.
    pub(super) fn recording(&self, profile: &Profile) -> f64 {
        (self.record + self.frame * profile.frames.clamp(1.0, 128.0)) * 1e-9
    }

    /// Seconds of trap time between two readings.
    pub(super) fn spent(
        &self,
        profile: &Profile,
        before: &Reading,
        now: &Reading,
        shared: bool,
    ) -> f64 {
        let counted = now.since(before);
        counted.allocations as f64 * self.pair(0.0, 0.0, shared)
            + counted.frees as f64 * self.trap * 1e-9
            + counted.stepped as f64 * self.step()
            + counted.sampled as f64 * self.recording(profile)
    }

    /// Learns how long attaching took: at once when it was longer, slowly when
    /// it was shorter.
    pub(super) fn learn_attach(&mut self, took: Duration) {
        self.attach = learn(self.attach, took);
    }

    /// As [`Self::learn_attach`].
    pub(super) fn learn_detach(&mut self, took: Duration) {
        self.detach = learn(self.detach, took);
    }
}

fn learn(known: Duration, took: Duration) -> Duration {
    took.max(known.mul_f64(0.9) + took.mul_f64(0.1))
        .clamp(ATTACH.0, ATTACH.1)
}
