//! The front that systemd starts: watches every process, follows those that
//! grow, and tells what it finds.
//!
//! One loop over a closed set of events. All that it owns is touched by
//! this loop only.

mod event;
mod following;
mod health;
mod limits;
mod pursuit;
mod told;

use std::{collections::VecDeque, os::fd::OwnedFd, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::time::Instant;

use self::{
    event::{Event, Events},
    following::Following,
    health::Health,
    pursuit::Pursuits,
    told::Told,
};
use crate::{
    alert::Moment,
    analysis,
    capture::{
        governor::{Budget, Wish},
        refusal::Refusal,
    },
    cli::{DaemonArgs, EXIT_NOTHING, EXIT_USAGE},
    config::{self, Mode, Settings, Subject, UnknownKeys},
    finding::Text,
    host::{
        kernel,
        population::Identity,
        pressure::Pressure,
        privilege,
        process::{self, Process},
    },
    investigation::Happening,
    log,
    output::notify::Notify,
    reader, signals,
    symbols::Symbols,
    watch::{self, Suspect, Watch},
};

/// Room for recorded blocks of all followed processes: 14 MB of kernel memory.
const LIVE_BLOCKS: u32 = 1 << 17;
/// Pause between two judgements, whosever.
const JUDGE_EVERY: Duration = Duration::from_secs(2);
/// Pause between two judgements of the same process.
const JUDGE_AGAIN: Duration = Duration::from_secs(30);

/// A program has mapped its libraries by then.
const SETTLING: Duration = Duration::from_secs(1);
/// Pause of the loop while nothing is followed.
const IDLE: Duration = Duration::from_secs(1);

/// Runs `daemon`; the exit code.
///
/// # Errors
/// What keeps the service from working at all. A process that cannot be probed
/// is none: that is told, and the rest goes on.
pub fn run(args: &DaemonArgs) -> Result<u8> {
    let keys = if args.strict {
        UnknownKeys::Refuse
    } else {
        UnknownKeys::Warn
    };
    let loaded = match config::load(args.config.as_deref(), keys, now().unix_s) {
        Ok(loaded) => loaded,
        Err(invalid) => {
            tracing::error!("{invalid}");
            return Ok(EXIT_USAGE);
        }
    };
    log::set_level(&loaded.settings.log.level.to_string());
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(sentence) = privilege::missing().or_else(privilege::confined) {
        bail!(sentence);
    }
    // No core dump of ours may carry what was read from a target.
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    signals::shrug_off()?;
    limits::keep_heap_small();
    limits::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        Daemon::new(args.config.clone(), loaded.settings)?
            .run()
            .await
    })
}

fn now() -> Moment {
    Moment {
        monotonic: Duration::from_nanos(kernel::monotonic_ns()),
        unix_s: jiff::Timestamp::now().as_second(),
    }
}

struct Daemon {
    file: Option<PathBuf>,
    settings: Settings,
    /// None in `mode: watch`.
    following: Option<Following>,
    watch: Watch,
    pursuits: Pursuits,
    told: Told,
    notify: Notify,
    health: Health,
    symbols: Symbols,
    /// Processes that were seen for the first time, or with another program, at
    /// the last sweep; no more than the watch keeps.
    newcomers: VecDeque<(Identity, Duration)>,
}

impl Daemon {
    fn new(file: Option<PathBuf>, settings: Settings) -> Result<Self> {
        let notify = Notify::from_environment().context("cannot speak to the service manager")?;
        Ok(Self {
            following: Following::begin(&settings)?,
            watch: Watch::new(&watched(&settings))
                .context("cannot watch the processes of this host")?,
            told: Told::new(&settings, now()),
            health: Health::new(&settings)?,
            pursuits: Pursuits::default(),
            symbols: Symbols::new(),
            newcomers: VecDeque::new(),
            file,
            settings,
            notify,
        })
    }

    async fn run(mut self) -> Result<u8> {
        let mut events = Events::new(self.ring()?, self.settings.watch.interval, JUDGE_EVERY)?;
        self.health.listen(&self.settings).await?;
        self.ready();
        tracing::info!(
            mode = %self.settings.mode,
            attach = self.following.as_ref().map(Following::method),
            "watching"
        );
        loop {
            match events.next().await? {
                Event::Stop => break,
                Event::Reload => {
                    self.reload();
                    events.listen(self.ring()?)?;
                }
                Event::Records => self.handle_records(),
                Event::Step => {}
                Event::Tick => self.tick(),
                Event::Sweep => self.sweep(),
                Event::Judge => self.judge_next(),
            }
            // Whatever happened may have brought the next step nearer.
            let pause = match &mut self.following {
                Some(following) => following.investigation.advance(),
                None => IDLE,
            };
            events.step = Instant::now() + pause;
        }
        tell_manager(self.notify.stopping());
        if let Some(following) = &mut self.following {
            tracing::info!("ending, probes come off");
            following.investigation.detach_all();
        }
        self.told.end();
        Ok(EXIT_NOTHING)
    }

    /// Readable when the kernel programs have something to tell.
    fn ring(&self) -> Result<Option<OwnedFd>> {
        let following = self.following.as_ref();
        following
            .map(|following| following.investigation.ring_descriptor())
            .transpose()
    }

    /// What a second brings.
    fn tick(&mut self) {
        self.greet();
        let mut quarantined = 0;
        if let Some(Following {
            investigation,
            flush_log,
        }) = &mut self.following
        {
            flush_log();
            if let Err(error) = investigation.tick() {
                tracing::warn!(error = %format_args!("{error:#}"), "an observation is missing");
            }
            if let Ok(pressure) = Pressure::of_host() {
                investigation.press(pressure.some_avg10);
            }
            for sentence in investigation.take_notes() {
                tracing::info!("{sentence}");
            }
            quarantined = investigation.capture().quarantined() as u64;
        }
        self.leave_refused();
        self.told.tick(now());
        if self.health.is_too_big() {
            self.shrink();
        }
        self.health.publish(&self.settings, &self.told, quarantined);
        tell_manager(self.notify.status(&self.status()));
        tell_manager(self.notify.alive());
    }

    /// Follows no more whose code or tracer forbids it; that was told when its
    /// probes came off.
    fn leave_refused(&mut self) {
        let following = self.following.as_ref();
        let refused = following.map(|following| following.investigation.refused());
        for (pid, _) in refused.unwrap_or_default() {
            if let Some(pursuit) = self.pursuits.get_mut(pid) {
                let identity = pursuit.identity;
                self.pursuits.refuse(identity, now().monotonic);
            }
            self.release(pid);
        }
    }

    /// Looks at every process.
    fn sweep(&mut self) {
        let sweep = match self.watch.sweep(std::time::Instant::now()) {
            Ok(sweep) => sweep,
            Err(error) => {
                tracing::warn!(error = %format_args!("{error:#}"), "the processes of this host cannot be listed");
                return;
            }
        };
        let at = now().monotonic;
        for identity in &sweep.gone {
            self.told.ended(now(), *identity);
        }
        for suspect in sweep.suspects.iter().filter(|suspect| suspect.new) {
            tracing::info!("{}", told::suspicion(suspect));
        }
        if !self.settings.pinned.is_empty() {
            let newcomers = sweep.born.iter().chain(&sweep.executed);
            self.newcomers
                .extend(newcomers.map(|newcomer| (*newcomer, at)));
        }
        for suspect in &sweep.suspects {
            self.pursuits.grows(suspect.identity, at);
            if let Some(following) = &mut self.following {
                let pid = suspect.identity.pid;
                following.investigation.rank(pid, suspect.time_to_limit);
            }
        }
        let waiting: Vec<&Suspect> = sweep
            .suspects
            .iter()
            .filter(|suspect| self.pursuits.may_follow(suspect.identity, at))
            .collect();
        let full = self.pursuits.len() >= self.settings.capture.max_targets as usize;
        for pid in self.pursuits.to_release(at, full && !waiting.is_empty()) {
            self.release(pid);
        }
        for suspect in waiting {
            self.consider(suspect.identity, false);
        }
        self.health.swept(&sweep);
    }

    /// Looks at those that have had time to map their libraries.
    fn greet(&mut self) {
        let at = now().monotonic;
        while let Some((identity, since)) = self.newcomers.front().copied()
            && at.saturating_sub(since) >= SETTLING
        {
            self.newcomers.pop_front();
            self.consider_pinned(identity);
        }
    }

    fn consider_pinned(&mut self, identity: Identity) {
        if !self.pursuits.may_follow(identity, now().monotonic) {
            return;
        }
        let Ok(process) = Process::of(identity.pid) else {
            return;
        };
        if with_subject(&process, |subject| self.settings.pinned.matches(subject)) {
            self.consider(identity, true);
        }
    }

    /// Follows a process, if it may be followed and there is room.
    fn consider(&mut self, identity: Identity, pinned: bool) {
        if self.pursuits.len() >= self.settings.capture.max_targets as usize {
            return;
        }
        let Ok(process) = Process::of(identity.pid) else {
            return;
        };
        if process.start_time != identity.start_time {
            return;
        }
        let at = now().monotonic;
        if !self.is_meant(&process) {
            self.pursuits.refuse(identity, at);
            return;
        }
        let wish = if self.settings.mode == Mode::Full {
            Wish::Auto
        } else {
            Wish::Survey
        };
        // In `mode: watch`, to know that it grows is all.
        let Some(following) = &mut self.following else {
            return;
        };
        let name = Text::name(&process.comm);
        match following.investigation.survey(&process, wish) {
            Ok(()) => {
                tracing::info!(pid = identity.pid, process = %name, "following");
                self.pursuits.begin(identity, pinned, at);
            }
            Err(Refusal::Gone(_)) => {}
            Err(refusal) => {
                tracing::info!(pid = identity.pid, process = %name, "{refusal}");
                self.pursuits.refuse(identity, at);
            }
        }
    }

    /// Whether the settings let a process be followed.
    fn is_meant(&self, process: &Process) -> bool {
        with_subject(process, |subject| {
            self.settings.covers(subject)
                && !self
                    .settings
                    .capture
                    .forbids(process.pid, subject.name, subject.exe)
        })
    }

    /// Follows a process no more.
    fn release(&mut self, pid: u32) {
        tracing::info!(pid, "no longer following");
        self.pursuits.end(pid);
        self.forget(pid);
    }

    /// Frees what was kept of a process.
    fn forget(&mut self, pid: u32) {
        self.health.released(pid);
        if let Some(following) = &mut self.following {
            following.investigation.release(pid);
        }
    }

    /// Handles what the kernel programs have reported.
    fn handle_records(&mut self) {
        let Some(following) = &mut self.following else {
            return;
        };
        let happenings = following.investigation.handle_records();
        for death in following.investigation.take_deaths() {
            self.told.died(death);
        }
        for happening in happenings {
            match happening {
                Happening::Executed(pid) => self.watch.exec(pid),
                Happening::Forked { parent, .. } => {
                    let Some(following) = &mut self.following else {
                        return;
                    };
                    if let Err(refusal) = following.investigation.leave_child(parent, true) {
                        tracing::info!(pid = parent, "{refusal}");
                        self.pursuits.end(parent);
                    }
                }
                Happening::Ended(pid) => {
                    self.judge(pid);
                    if let Some(pursuit) = self.pursuits.end(pid) {
                        self.told.ended(now(), pursuit.identity);
                    }
                    self.forget(pid);
                }
            }
        }
    }

    fn judge_next(&mut self) {
        if let Some(pid) = self.pursuits.to_judge(now().monotonic, JUDGE_AGAIN) {
            self.judge(pid);
        }
    }

    /// Judges a followed process and tells what is new.
    fn judge(&mut self, pid: u32) {
        let Some(pursuit) = self.pursuits.get_mut(pid) else {
            return;
        };
        pursuit.judged = now().monotonic;
        let settings = judged(&self.settings);
        let following = self.following.as_ref();
        let described = following.and_then(|following| {
            let investigation = &following.investigation;
            investigation.describe(pid, &settings, &mut self.symbols)
        });
        let Some(mut process) = described else {
            return;
        };
        pursuit.found = !process.findings.is_empty();
        self.health.judged(&process);
        self.told.judged(now(), &mut process);
    }

    /// Reads the settings again; the old ones hold when the new ones are bad.
    fn reload(&mut self) {
        tell_manager(self.notify.reloading());
        match config::load(self.file.as_deref(), UnknownKeys::Refuse, now().unix_s) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    tracing::warn!("{warning}");
                }
                self.apply(loaded.settings);
            }
            Err(invalid) => {
                tracing::error!("the settings stay as they were:\n{invalid}");
            }
        }
        self.ready();
    }

    fn apply(&mut self, mut new: Settings) {
        let changes = config::difference(&self.settings, &new);
        if changes.is_empty() {
            tracing::info!("the settings are as they were");
        }
        for change in &changes {
            let when = if change.needs_restart {
                " after a restart"
            } else {
                ""
            };
            tracing::info!(
                "{}: {} instead of {}{when}",
                change.key,
                change.after,
                change.before
            );
        }
        let before = self.settings.mode;
        if self.following.is_none() {
            match Following::begin(&new) {
                Ok(following) => self.following = following,
                Err(error) => {
                    tracing::error!("the mode stays {before}: {error:#}");
                    new.mode = before;
                }
            }
        }
        self.settings = config::reloaded(&self.settings, new);
        self.watch.set(&watched(&self.settings));
        log::set_level(&self.settings.log.level.to_string());
        if let Some(following) = &mut self.following {
            following.investigation.set_budget(budget(&self.settings));
            let keep = self.settings.capture.quarantine;
            following.investigation.set_quarantine(keep);
        }
        self.told.reload(&self.settings, now());
        self.pursuits.ask_again();
        // Another mode is another way to follow; what is no longer meant is
        // left alone at once.
        let over: Vec<u32> = self
            .pursuits
            .iter()
            .map(|pursuit| pursuit.identity.pid)
            .filter(|pid| {
                let meant = Process::of(*pid).is_ok_and(|process| self.is_meant(&process));
                !meant || before != self.settings.mode
            })
            .collect();
        for pid in over {
            self.release(pid);
        }
        if self.settings.mode == Mode::Watch {
            self.following = None;
        }
    }

    /// Gives memory back: names of code first, then a process.
    fn shrink(&mut self) {
        if !self.symbols.is_empty() {
            self.symbols = Symbols::new();
            reader::end();
            return;
        }
        if let Some(identity) = self.pursuits.least() {
            tracing::warn!(
                pid = identity.pid,
                "the memory budget is used up: one process less is followed"
            );
            self.release(identity.pid);
            // The next sweep would bring it back, and its memory with it.
            self.pursuits.refuse(identity, now().monotonic);
        }
    }

    fn ready(&self) {
        tell_manager(self.notify.ready(&self.status()));
    }

    fn status(&self) -> String {
        let count = |count: usize, one: &str, many: &str| {
            format!("{count} {}", if count == 1 { one } else { many })
        };
        format!(
            "Watching {}, following {}, {}.",
            count(self.watch.watched(), "process", "processes"),
            self.pursuits.len(),
            count(self.told.open(), "open finding", "open findings"),
        )
    }
}

/// What the watch is to look for.
fn watched(settings: &Settings) -> watch::Settings {
    let defaults = watch::Settings::default();
    let watch = &settings.watch;
    let least = |thresholds: watch::Thresholds| watch::Thresholds {
        // The short windows never look for what only long ones can show.
        min_rate: watch
            .min_rate
            .0
            .max(thresholds.min_rate.min(watch.min_rate.0 * 8.0)),
        min_net: watch.min_growth.0,
        ..thresholds
    };
    watch::Settings {
        interval: watch.interval,
        patience: watch.patience,
        settle: defaults.settle.min(watch.patience),
        fast: least(defaults.fast),
        slow: least(defaults.slow),
        ..defaults
    }
}

/// When growth is called a leak.
fn judged(settings: &Settings) -> analysis::Settings {
    analysis::Settings {
        growth_confirm: settings.verdicts.growth_confirm,
        page_within: settings.alerts.page_within,
        least_rate: settings.verdicts.min_rate.0,
        ..analysis::Settings::default()
    }
}

/// The budget as the governor wants it.
fn budget(settings: &Settings) -> Budget {
    Budget {
        target_percent: settings.budget.target_percent,
        window_percent: settings.budget.window_percent,
        window: Duration::from_millis(u64::from(settings.budget.window_ms)),
        agent_percent: settings.budget.agent_percent,
        suspects: settings.capture.max_targets as usize,
        ..Budget::default()
    }
}

/// How the settings name a process.
fn with_subject<T>(process: &Process, ask: impl FnOnce(&Subject<'_>) -> T) -> T {
    let exe = process::exe_path(process);
    let exe = Text::name(exe.as_os_str().as_encoded_bytes());
    let name = Text::name(&process.comm);
    let cgroup = Text::name(&process.cgroup);
    let unit = process.unit();
    ask(&Subject {
        name: name.as_str(),
        exe: (!exe.as_str().is_empty()).then_some(exe.as_str()),
        unit: unit.as_deref(),
        cgroup: (!cgroup.as_str().is_empty()).then_some(cgroup.as_str()),
        uid: Some(process.uid),
    })
}

/// The service manager not listening is no reason to stop.
fn tell_manager(told: std::io::Result<()>) {
    if let Err(error) = told {
        tracing::debug!(%error, "the service manager does not listen");
    }
}
