//! Whether a history is that of a process worth looking at.
//!
//! A window of the history must pass all of these:
//!
//! 1. **Drift.** The lower bound of the rise exceeds the threshold, at a level
//!    corrected for asking in every window at every sweep ([`Bound`]). A
//!    process that only wanders fails.
//! 2. **Net growth**, less what the kernel's counters may be wrong by, exceeds
//!    the thresholds.
//! 3. **It goes on.** Growth that slows, within the window or compared with
//!    what was before it, is a cache, a start-up or settling. Half a window
//!    must have been seen before it.
//! 4. **New ground.** The floor at the window's end lies above everything seen
//!    before, by half of the largest fall seen: the next tooth of a saw, day
//!    of a week or burst goes where earlier ones have been.
//! 5. **Patience.** The window is no shorter than `patience`, unless half of
//!    what was left below the limit when it began has been used since: who
//!    waits longer then comes too late. Such growth is `urgent`, and the one
//!    kind that healthy programs can be taken for, when they fill most of
//!    their limit evenly for a minute and longer.
//!
//! On 40 000 process-days of invented healthy histories (`cargo xtask bench`,
//! ten families) two suspects were not urgent, 5e-5 a process-day, at most
//! 1.6e-4; a hundred were urgent, most of them bursts that filled a tight
//! limit evenly.
//!
//! What remains is a straight rise to new heights for longer than `patience`.
//! No number of it tells a leak from a cache that is filled evenly for that
//! long; that is for [`crate::capture`] to find out.

use std::time::Duration;

use crate::finding::Estimate;

use super::{
    history::{FINE, History, STEP},
    settings::{Settings, Thresholds},
    trend::{self, Bound, FEWEST, POINTS},
};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Windows over the coarse ring, in points: two hours to a week at 10 s.
const COARSE_WINDOWS: [usize; 12] = [1007, 768, 384, 192, 144, 96, 72, 48, 36, 24, 18, 12];

/// Growth before the window that was so much faster is growth that slows.
const FASTER: f64 = 1.2;

/// Which ring growth was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Every sample of the last hour.
    Fast,
    /// The lowest of every ten minutes, of up to a week.
    Slow,
}

/// Growth that passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Bytes per second. The lower bound is the corrected one, which is lower
    /// than that of a 95 % interval.
    pub rate: Estimate,
    /// Bytes over the window, less the counters' error.
    pub net: u64,
    /// The longest window that passed.
    pub window: Duration,
    /// Where it was found.
    pub resolution: Resolution,
    /// Judged before patience was over, because the limit is near.
    pub urgent: bool,
}

/// Judges histories.
#[derive(Clone, Debug)]
pub struct Judge {
    settings: Settings,
    /// At the level of each resolution, which share the allowed rate.
    fast: Bound,
    slow: Bound,
    /// In samples, longest first.
    fine_windows: Vec<usize>,
}

impl Judge {
    /// One for these settings.
    pub fn new(settings: &Settings) -> Self {
        let settings = settings.bounded();
        let samples = |time: Duration| {
            let samples = time.as_secs_f64() / settings.interval.as_secs_f64();
            (samples.ceil() as usize).clamp(FEWEST, FINE - 1)
        };
        let shortest = samples(settings.fast_window);
        let mut fine_windows: Vec<usize> = [1, 2, 4, 8]
            .map(|times| times * shortest)
            .into_iter()
            .chain([samples(settings.patience), 120, 180, 240, FINE - 1])
            .filter(|window| (shortest..FINE).contains(window))
            .collect();
        fine_windows.sort_unstable_by(|a, b| b.cmp(a));
        fine_windows.dedup();
        let sweeps = 86_400.0 / settings.interval.as_secs_f64();
        let level = |asked: f64| Bound::new(settings.false_suspects_per_process_day / 2.0 / asked);
        Self {
            fast: level(sweeps * fine_windows.len() as f64),
            slow: level(sweeps / STEP as f64 * COARSE_WINDOWS.len() as f64),
            settings,
            fine_windows,
        }
    }

    /// The settings, in range.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether it is worth asking for the limit and judging: a few
    /// subtractions. `completed` tells that the last sample completed a coarse
    /// point.
    pub fn is_candidate(&self, history: &History, completed: bool) -> bool {
        if history.is_still() {
            return false;
        }
        self.fine_candidates(history).next().is_some()
            || (completed && self.coarse_candidates(history).next().is_some())
    }

    /// The growth, if there is one. `error` is what a difference of two samples
    /// may be wrong by, in bytes, `headroom` the bytes left below the nearest
    /// limit.
    pub fn judge(
        &self,
        history: &History,
        completed: bool,
        error: u64,
        headroom: Option<u64>,
    ) -> Option<Growth> {
        if completed
            && let Some(growth) = self
                .coarse_candidates(history)
                .find_map(|window| self.coarse(history, window, error))
        {
            return Some(growth);
        }
        self.fine_candidates(history)
            .find_map(|window| self.fine(history, window, error, headroom))
    }

    fn fine_candidates(&self, history: &History) -> impl Iterator<Item = usize> {
        let fine = history.fine();
        let usable = history.usable_fine();
        let (last, thresholds) = (history.last(), self.settings.fast);
        let interval = self.settings.interval;
        self.fine_windows.iter().copied().filter(move |window| {
            *window < usable
                && fine.get(fine.len() - 1 - window).is_some_and(|first| {
                    exceeds(*first, last, interval * *window as u32, &thresholds)
                })
        })
    }

    fn coarse_candidates(&self, history: &History) -> impl Iterator<Item = usize> {
        let coarse = history.coarse();
        let usable = history.usable_coarse();
        let last = coarse.back().copied().unwrap_or(0);
        let thresholds = self.settings.slow;
        let step = self.settings.interval * STEP as u32;
        COARSE_WINDOWS.into_iter().filter(move |window| {
            *window < usable
                && coarse
                    .get(coarse.len() - 1 - window)
                    .is_some_and(|first| exceeds(*first, last, step * *window as u32, &thresholds))
        })
    }

    fn fine(
        &self,
        history: &History,
        window: usize,
        error: u64,
        headroom: Option<u64>,
    ) -> Option<Growth> {
        let fine = history.fine();
        let mut growth = self.rise(
            fine.iter().copied(),
            fine.len(),
            window,
            self.settings.interval,
            (error, &self.settings.fast, Resolution::Fast),
        )?;
        let patience = self.patience(history);
        if growth.window < patience {
            let left = headroom? as f64 / growth.rate.value.max(1.0);
            if left > growth.window.as_secs_f64() {
                return None;
            }
            growth.urgent = true;
        } else if !has_before(history, window) {
            return None;
        }
        let begin = fine.len() - 1 - window;
        if slows(history, window, growth.net) {
            return None;
        }
        // Coarse points inside the fine ring are seen twice, which is harmless,
        // those inside the window not at all.
        let older = history.coarse().len().saturating_sub(window / STEP + 1);
        let earlier = history
            .coarse()
            .iter()
            .take(older)
            .chain(fine.iter().take(begin));
        breaks_new_ground(
            earlier.copied(),
            end_floor(fine.iter().copied(), fine.len(), window),
        )
        .then_some(growth)
    }

    fn coarse(&self, history: &History, window: usize, error: u64) -> Option<Growth> {
        let coarse = history.coarse();
        let growth = self.rise(
            coarse.iter().copied(),
            coarse.len(),
            window,
            self.settings.interval * STEP as u32,
            (error, &self.settings.slow, Resolution::Slow),
        )?;
        if growth.window < self.patience(history) || !has_before(history, window * STEP) {
            return None;
        }
        let begin = coarse.len() - 1 - window;
        if slows(history, window * STEP, growth.net) {
            return None;
        }
        let earlier = coarse.iter().take(begin).copied();
        breaks_new_ground(
            earlier,
            end_floor(coarse.iter().copied(), coarse.len(), window),
        )
        .then_some(growth)
    }

    /// Doubles with every explanation, up to where only the slow resolution
    /// is left: what grew for a good reason will do so again.
    fn patience(&self, history: &History) -> Duration {
        self.settings.patience * (1 << history.explained().min(3))
    }

    /// Conditions 1 to 3.
    fn rise(
        &self,
        values: impl Iterator<Item = u32>,
        length: usize,
        window: usize,
        step: Duration,
        (error, thresholds, resolution): (u64, &Thresholds, Resolution),
    ) -> Option<Growth> {
        let mut room = [0.0; POINTS];
        let (points, size) = floors(values, length, window, &mut room);
        let bytes = PAGE as f64;
        let net = (points.last()? - points.first()?) * bytes - error as f64;
        let share = thresholds.min_share * points.last()? * bytes;
        if net < share.max(thresholds.min_net as f64) {
            return None;
        }
        let seconds = step.as_secs_f64() * size as f64;
        let span = seconds * (points.len() - 1) as f64;
        let loss = error as f64 / span;
        let bound = match resolution {
            Resolution::Fast => &self.fast,
            Resolution::Slow => &self.slow,
        };
        let low = bound.low(points)? * bytes / seconds - loss;
        if low < thresholds.min_rate || !trend::goes_on(points) {
            return None;
        }
        let slope = bound.slope(points)?;
        Some(Growth {
            rate: Estimate {
                value: slope.value * bytes / seconds,
                low: slope.low * bytes / seconds - loss,
                high: slope.high * bytes / seconds + loss,
            },
            net: net as u64,
            window: step * window as u32,
            resolution,
            urgent: false,
        })
    }
}

/// Conditions 2 and the value of 1, roughly: what fails here fails there.
fn exceeds(first: u32, last: u32, time: Duration, thresholds: &Thresholds) -> bool {
    // Half, because floors are compared later, not single samples.
    let net = f64::from(last.saturating_sub(first)) * PAGE as f64 * 2.0;
    net >= thresholds.min_net as f64 && net >= thresholds.min_rate * time.as_secs_f64()
}

/// Whether enough was seen before the window, in samples, to compare with.
fn has_before(history: &History, window: usize) -> bool {
    2 * history.usable_samples() >= 3 * window
}

/// Whether the rise was faster in the time before the window, in up to three
/// times its length. The window is in samples.
fn slows(history: &History, window: usize, net: u64) -> bool {
    [1, 3].into_iter().any(|times| {
        let before = (window * (1 + times)).min(history.usable_samples());
        let length = before.saturating_sub(window);
        // Less tells nothing; only urgent growth is judged without.
        if 2 * length < window {
            return false;
        }
        let (Some(from), Some(to)) = (history.ago(before), history.ago(window)) else {
            return false;
        };
        let earlier = (f64::from(to) - f64::from(from)) * PAGE as f64 / length as f64;
        earlier * window as f64 > FASTER * net as f64
    })
}

/// Lowest values of at most [`POINTS`] equal pieces of the last `window` + 1
/// values, and how many values a piece has.
fn floors(
    values: impl Iterator<Item = u32>,
    length: usize,
    window: usize,
    room: &mut [f64; POINTS],
) -> (&[f64], usize) {
    let size = piece(window);
    let pieces = ((window + 1) / size).min(POINTS);
    let mut values = values.skip(length.saturating_sub(pieces * size));
    for floor in room.iter_mut().take(pieces) {
        let lowest = values.by_ref().take(size).min().unwrap_or(0);
        *floor = f64::from(lowest);
    }
    (room.get(..pieces).unwrap_or_default(), size)
}

fn piece(window: usize) -> usize {
    (window + 1).div_ceil(POINTS)
}

/// Lowest value at the end of a window: of its last piece, or of the last two
/// values.
fn end_floor(values: impl Iterator<Item = u32>, length: usize, window: usize) -> u32 {
    values
        .skip(length.saturating_sub(piece(window).max(2)))
        .min()
        .unwrap_or(0)
}

/// Condition 4.
fn breaks_new_ground(earlier: impl Iterator<Item = u32>, floor: u32) -> bool {
    let (mut peak, mut fall) = (0u32, 0u32);
    for value in earlier {
        peak = peak.max(value);
        fall = fall.max(peak - value);
    }
    floor > peak.saturating_add(fall / 2)
}
