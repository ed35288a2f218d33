//! How the daemon itself is: its memory, and the numbers it publishes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::told::Told;
use crate::{
    config::Settings,
    finding::Process,
    host::{cpu_clock::CpuClock, memory::PAGE, own_tables, population::Meter},
    output::metrics::{self, Format, LeakRate, MAX_LEAKS, Snapshot},
    reader,
    watch::Sweep,
};

/// How often the kernel is asked for the size of its tables.
const ASK_TABLES: Duration = Duration::from_secs(30);

/// What following costs a process, in percent of its time and of its own
/// processor time.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    time: Option<f64>,
    cpu: Option<f64>,
}

/// The daemon's own state.
pub(super) struct Health {
    own: Meter,
    /// Bytes that we may take, in the kernel and outside.
    ceiling: u64,
    /// Bytes that the kernel programs' tables take, and when that was asked.
    tables: (u64, Instant),
    page: watch::Sender<Arc<str>>,
    server: Option<JoinHandle<()>>,
    written: Option<Instant>,
    complained: bool,
    suspects: u64,
    skipped: u64,
    /// Losses and cost of each followed process, as last judged.
    followed: BTreeMap<u32, (BTreeMap<String, u64>, Cost)>,
    /// Losses of those that are followed no more.
    lost_before: BTreeMap<String, u64>,
}

impl Health {
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        Ok(Self {
            own: Meter::open(std::process::id()).context("cannot read our own memory use")?,
            ceiling: settings.budget.memory.0,
            tables: (own_tables::bytes(), Instant::now()),
            page: watch::Sender::new(Arc::from("")),
            server: None,
            written: None,
            complained: false,
            suspects: 0,
            skipped: 0,
            followed: BTreeMap::new(),
            lost_before: BTreeMap::new(),
        })
    }

    /// Serves the metrics, if the settings ask for it.
    pub(super) async fn listen(&mut self, settings: &Settings) -> Result<()> {
        let Some(address) = settings.metrics.listen else {
            return Ok(());
        };
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("metrics.listen: cannot listen at {address}"))?;
        let page = self.page.subscribe();
        self.server = Some(tokio::spawn(metrics::serve(listener, page)));
        Ok(())
    }

    /// Whether we take more memory than the settings allow, our reader's
    /// included.
    pub(super) fn is_too_big(&mut self) -> bool {
        if self.tables.1.elapsed() >= ASK_TABLES {
            self.tables = (own_tables::bytes(), Instant::now());
        }
        let own = self
            .own
            .read()
            .map_or(0, |pages| pages.anonymous.saturating_mul(PAGE));
        own.saturating_add(self.tables.0)
            .saturating_add(reader::memory())
            > self.ceiling
    }

    /// A sweep was made.
    pub(super) fn swept(&mut self, sweep: &Sweep) {
        self.suspects = sweep.suspects.len() as u64;
        self.skipped = (sweep.skipped.over_bound + sweep.skipped.unreadable) as u64;
    }

    /// A process was judged.
    pub(super) fn judged(&mut self, process: &Process) {
        let capture = &process.capture;
        let cost = Cost {
            time: capture.target_slowdown_percent,
            cpu: capture.target_cpu.probe_percent_overall,
        };
        self.followed
            .insert(process.pid, (capture.lost.clone(), cost));
    }

    /// A process is followed no more.
    pub(super) fn released(&mut self, pid: u32) {
        let (lost, _) = self.followed.remove(&pid).unwrap_or_default();
        for (cause, count) in lost {
            *self.lost_before.entry(cause).or_default() += count;
        }
    }

    /// Brings the published numbers up to date.
    pub(super) fn publish(&mut self, settings: &Settings, told: &Told, quarantined: u64) {
        let file = settings.metrics.textfile.as_deref();
        let due = self
            .written
            .is_none_or(|written| written.elapsed() >= settings.metrics.interval);
        if self.server.is_none() && (file.is_none() || !due) {
            return;
        }
        let snapshot = self.snapshot(told, quarantined);
        if self.server.is_some() {
            let text = metrics::format(&snapshot, Format::OpenMetrics);
            self.page.send_replace(Arc::from(text));
        }
        let Some(file) = file.filter(|_| due) else {
            return;
        };
        self.written = Some(Instant::now());
        match metrics::write(file, &snapshot) {
            Ok(()) => self.complained = false,
            Err(error) if !self.complained => {
                self.complained = true;
                tracing::error!("metrics.textfile: {error:#}");
            }
            Err(_) => {}
        }
    }

    fn snapshot(&self, told: &Told, quarantined: u64) -> Snapshot {
        let mut lost = self.lost_before.clone();
        for (causes, _) in self.followed.values() {
            for (cause, count) in causes {
                *lost.entry(cause.clone()).or_default() += count;
            }
        }
        for (cause, count) in [
            ("processes_not_watched", self.skipped),
            ("alerts_not_sent", told.lost),
        ] {
            if count > 0 {
                lost.insert(cause.to_owned(), count);
            }
        }
        let mut findings: BTreeMap<_, u64> = BTreeMap::new();
        let mut leaks = Vec::new();
        for (process, finding) in told.findings() {
            *findings
                .entry((finding.verdict, finding.confidence))
                .or_default() += 1;
            if leaks.len() < MAX_LEAKS {
                leaks.push(LeakRate {
                    fingerprint: finding.fingerprint,
                    unit: process.unit.clone(),
                    verdict: finding.verdict,
                    bytes_per_second: finding.leak_bytes_per_s.value,
                });
            }
        }
        let largest = |of: fn(&Cost) -> Option<f64>| {
            let percents = self.followed.values().filter_map(|(_, cost)| of(cost));
            percents.reduce(f64::max).map(|percent| percent / 100.0)
        };
        Snapshot {
            findings,
            leaks,
            lost,
            target_slowdown_ratio: largest(|cost| cost.time),
            target_probe_cpu_ratio: largest(|cost| cost.cpu),
            agent_cpu_seconds: CpuClock::OURS.read().map_or(0.0, |time| time.as_secs_f64()),
            suspects: self.suspects,
            quarantined,
        }
    }
}
