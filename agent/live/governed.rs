//! COST-1 on a real program that counts its own work: under the governor it
//! loses less than a hundredth of it, and never much for long.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use lingerscope::{
    capture::{
        Capture,
        governor::{Budget, Check, Governor, Meter, Mode, Profile, costs::measure},
        links::Method,
        object::Sizes,
    },
    host::{kernel, process::Process, quarantine::Quarantine},
};

use crate::{lab, program::Program, trial};

/// How long a program is governed.
const WATCHED: Duration = Duration::from_secs(35);
/// Allocations a second.
const RATE: u32 = 200_000;
/// What a program writes its work in.
const SLOT: f64 = 0.01;

pub(crate) fn trials() -> Vec<Trial> {
    // The results of posix_memalign are single-stepped.
    let builds: [(&str, &[&str], bool); 2] =
        [("glibc", &[], false), ("aligned", &["-DALIGNED"], true)];
    builds
        .into_iter()
        .map(|(name, flags, stepped)| {
            trial(format!("governed::{name}_{RATE}_a_second"), move || {
                hold(name, flags, stepped)
            })
        })
        .collect()
}

fn now() -> Duration {
    Duration::from_nanos(kernel::monotonic_ns())
}

/// One stretch with probes on.
struct Stretch {
    from: Duration,
    to: Duration,
    /// Hits, and those of them that were single-stepped.
    hits: [u64; 2],
}

fn hold(name: &str, flags: &[&str], stepped: bool) -> Result<()> {
    let path = lab::compile("cc", "paced.c", flags, &format!("paced-{name}"))?;
    let made = lab::fresh(&format!("paced-{name}-made"))?;
    let quarantine = Quarantine::open(&lab::fresh(&format!("paced-{name}-quarantine"))?);
    let mut capture = Capture::new(
        Sizes {
            live_blocks: 1 << 18,
        },
        &Method::ALL,
        quarantine,
    )?;
    let costs = measure::measure(&mut capture);
    let seconds = (WATCHED.as_secs() + 10).to_string();
    let file = made.to_str().context("an odd path")?;
    let program = Program::start(&path, &[&seconds, &RATE.to_string(), file])?;
    let pid = program.pid();
    thread::sleep(Duration::from_secs(2));

    let mut meter = Meter::new(pid);
    let mut governor = Governor::new(Budget::default(), costs, now());
    governor
        .admit(pid, Profile::default(), now(), meter.cpu())
        .map_err(anyhow::Error::msg)?;
    let mut stretches = Vec::new();
    capture.prepare(Process::of(pid)?)?;
    let mut notes = Vec::new();
    let began = now();
    while now() < began + WATCHED {
        let decision = governor.decide(pid, now(), meter.cpu());
        match decision.mode {
            Mode::Survey(slot) if slot.at > now() => {
                thread::sleep((slot.at.saturating_sub(now())).min(Duration::from_secs(1)));
            }
            Mode::Survey(slot) => {
                stretches.push(window(
                    &mut capture,
                    &mut governor,
                    &mut meter,
                    pid,
                    slot.mean,
                    began + WATCHED,
                )?);
            }
            // A loaded machine may have let it run too little to be seen.
            Mode::Trace { mean } => {
                stretches.push(window(
                    &mut capture,
                    &mut governor,
                    &mut meter,
                    pid,
                    mean,
                    began + WATCHED,
                )?);
            }
            other => anyhow::bail!("{other:?}: {}", decision.why),
        }
        notes.extend(
            governor
                .take_notes()
                .0
                .into_iter()
                .map(|note| note.sentence),
        );
    }
    let standing = governor.standing(pid).context("no account")?;
    let (lost, longest) = losses(&made, &stretches, began)?;
    let hits = |kind: usize| -> u64 { stretches.iter().map(|stretch| stretch.hits[kind]).sum() };
    let (all, steps) = (hits(0), hits(1));
    let report = format!(
        "{all} hits, {steps} of them single-stepped; lost {:.3} %, longest stretch at two thirds of its speed {:.2} s; {standing:?}; {costs:?}; {}",
        lost * 100.0,
        longest,
        notes.join(" | ")
    );
    ensure!(
        standing.windows >= 2 && !standing.open.is_zero(),
        "{report}"
    );
    ensure!(standing.slowdown_percent < 1.0, "{report}");
    ensure!((steps > all / 4) == stepped, "{report}");
    // Its own count, with something for what else runs on the machine.
    ensure!(lost < 0.012, "{report}");
    ensure!(longest < 0.35, "{report}");
    Ok(())
}

/// A window as the loop of a survey runs it.
fn window(
    capture: &mut Capture,
    governor: &mut Governor,
    meter: &mut Meter,
    pid: u32,
    mean: u64,
    until: Duration,
) -> Result<Stretch> {
    meter.restart();
    let from = now();
    governor.opening(pid, from);
    capture.set_mean(pid, mean)?;
    capture.open_window(pid)?;
    let reading = meter.read(capture, 0);
    let mut check = governor.opened(pid, now(), &reading);
    loop {
        match check {
            Check::Stay { again } => thread::sleep(again),
            Check::Resample { mean, again } => {
                capture.set_mean(pid, mean)?;
                thread::sleep(again);
            }
            Check::Detach(_) => break,
        }
        if now() > until {
            break;
        }
        let reading = meter.read(capture, 0);
        check = governor.check(pid, now(), &reading);
    }
    let reading = meter.read(capture, 0);
    capture.close_window(pid);
    governor.closed(pid, now(), &reading);
    let to = now();
    capture.drain();
    let hits = [reading.allocations + reading.frees, reading.stepped];
    Ok(Stretch { from, to, hits })
}

/// The share of its work that a program lost, against what it did between the
/// windows, and the longest time it was slowed by a third or more.
fn losses(file: &Path, stretches: &[Stretch], began: Duration) -> Result<(f64, f64)> {
    let bytes = fs::read(file)?;
    let (start, made) = bytes.split_first_chunk::<8>().context("nothing written")?;
    let start = Duration::from_nanos(u64::from_le_bytes(*start));
    let made: Vec<f64> = made
        .as_chunks::<4>()
        .0
        .iter()
        .map(|slot| f64::from(u32::from_le_bytes(*slot)))
        .collect();
    let place = |at: Duration| (at.saturating_sub(start).as_secs_f64() / SLOT) as usize;
    let (first, last) = (place(began), place(began + WATCHED));
    let probed = |index: usize| {
        stretches
            .iter()
            .any(|stretch| (place(stretch.from)..=place(stretch.to)).contains(&index))
    };
    let mut free: Vec<f64> = (first..last)
        .filter(|index| !probed(*index))
        .filter_map(|index| made.get(index).copied())
        .collect();
    ensure!(free.len() > 100, "hardly anything between the windows");
    free.sort_by(f64::total_cmp);
    // Other programs on the machine slow it too: the median is its own speed.
    let speed = free[free.len() / 2];
    let (mut missing, mut slow, mut longest) = (0.0, 0usize, 0usize);
    for index in (first..last).filter(|index| probed(*index)) {
        let done = made.get(index).copied().unwrap_or(0.0);
        missing += speed - done;
        slow = if done < speed * 2.0 / 3.0 {
            slow + 1
        } else {
            0
        };
        longest = longest.max(slow);
    }
    Ok((
        missing / (speed * (last - first) as f64),
        longest as f64 * SLOT,
    ))
}
