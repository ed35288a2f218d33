//! The pipeline for named targets: select, capture, observe, judge, print.

mod command;
mod progress;
mod report;
mod selection;

use std::{path::PathBuf, process::Child, time::Duration};

use anyhow::{Context as _, Result, bail};
use aya_log::EbpfLogger;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::{command::Waiting, progress::Progress, report::Run, selection::Selection};
use crate::{
    capture::{
        TargetId,
        governor::{Budget, Wish},
        links::Method,
    },
    cli::{InspectArgs, ModeArg},
    finding::Command,
    host::{pressure::Pressure, privilege, process::Process, urgency::Urgency},
    investigation::{self, Account, Happening, Investigation, Sampling, Sighting},
    signals,
};

/// Live blocks of all targets together; 29 MB of kernel memory.
const LIVE_BLOCKS: u32 = 1 << 18;
/// Where every allocation is asked for: 115 MB.
const LIVE_BLOCKS_EXACT: u32 = 1 << 20;
/// Processor time that may be taken while somebody waits, in percent of a core.
const AGENT_PERCENT: f64 = 10.0;
/// How often the kernel's tables are read.
const TICK: Duration = Duration::from_secs(1);
/// The tables are read for at most this share of the time.
const READING_SHARE: u32 = 20;
/// The pause between two looks at a command that has just started.
const BETWEEN_LOOKS: Duration = Duration::from_micros(20);
/// Starts of programs that are looked at so; each takes 50 ms, and the rest
/// of the run waits for it.
const MAX_STARTS: usize = 64;
/// Children of a command that are followed at most.
const MAX_CHILDREN: usize = 32;

/// Runs `inspect`; the exit code.
///
/// # Errors
/// What keeps the run as a whole from working; a target that cannot be
/// observed is no error but part of the report.
pub fn run(args: &InspectArgs) -> Result<u8> {
    if let Some(sentence) = privilege::missing().or_else(privilege::confined) {
        bail!(sentence);
    }
    // Forked before any probe descriptor exists, so that it inherits none.
    let waiting = if args.command.is_empty() {
        None
    } else {
        Some(Waiting::new(&args.command, args.json)?)
    };
    // After the fork: the command keeps its own.
    signals::take_for_inspection()?;
    // No core dump of ours may carry what was read from a target.
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(Inspection::new(args, waiting)?.run())
}

struct Inspection<'a> {
    args: &'a InspectArgs,
    investigation: Investigation,
    selection: Selection,
    waiting: Option<Waiting>,
    child: Option<(Child, TargetId)>,
    starts: usize,
    progress: Progress,
}

impl<'a> Inspection<'a> {
    fn new(args: &'a InspectArgs, waiting: Option<Waiting>) -> Result<Self> {
        let selection = selection::select(&args.pid, &args.unit, &args.name)?;
        // Loading the kernel programs takes a second or two, in which the
        // processes show what they use unprobed.
        let pids = selection.processes.iter().map(|process| process.pid);
        let sightings = pids
            .filter_map(|pid| Some((pid, Sighting::of(pid).ok()?)))
            .collect();
        let live_blocks = if args.sample == Some(1) {
            LIVE_BLOCKS_EXACT
        } else {
            LIVE_BLOCKS
        };
        let forced = args.attach.map(|by| [Method::from(by)]);
        let methods = forced.as_ref().map_or(&Method::ALL[..], |method| method);
        let mut investigation = Investigation::new(live_blocks, methods)?;
        investigation.sighted(sightings);
        Ok(Self {
            args,
            investigation,
            selection,
            waiting,
            child: None,
            starts: 0,
            progress: Progress::new(),
        })
    }

    async fn run(mut self) -> Result<u8> {
        self.progress.phase("attaching …");
        let began = std::time::SystemTime::now();
        let wish = self.wish();
        if wish.is_some() {
            self.investigation.govern(Budget {
                // Somebody waits for the answer.
                agent_percent: AGENT_PERCENT,
                ..Budget::default()
            });
        }
        for process in std::mem::take(&mut self.selection.processes) {
            if signals::is_asked() {
                break;
            }
            match wish {
                Some(wish) => self.survey(&process, wish),
                None => self.follow(process, self.sampling(Sampling::ByRate), &[]),
            }
        }
        if !signals::is_asked() {
            self.start_command()?;
        }
        let run = Run::begin(began);
        if !self.investigation.is_empty() {
            self.observe_until_the_end().await?;
        }
        self.progress.phase("resolving symbols …");
        let skipped = std::mem::take(&mut self.selection.skipped);
        let document = run.document(&self.investigation, skipped);
        self.progress.phase("");
        report::print(&document, self.args)?;
        // Who died shortly after its probes came off.
        self.handle_records();
        Ok(report::exit_code(&document, self.args))
    }

    /// Starts to follow a process, or notes why that is impossible.
    fn follow(&mut self, process: Process, sampling: Sampling, upcoming: &[PathBuf]) {
        let pid = process.pid;
        if let Err(refusal) = self.investigation.follow(process, sampling, upcoming) {
            self.selection.skip(Some(pid), &refusal.to_string());
        }
    }

    /// What the governor is asked for; none where the user pays for tracing:
    /// by asking for it, or for a sampling mean, or for a command's every
    /// allocation from the first on.
    fn wish(&self) -> Option<Wish> {
        match self.args.mode {
            ModeArg::Trace => None,
            ModeArg::Auto if self.args.sample.is_some() || self.waiting.is_some() => None,
            ModeArg::Auto => Some(Wish::Auto),
            ModeArg::Survey => Some(Wish::Survey),
        }
    }

    /// Starts to follow a process within the budget, or notes why that is
    /// impossible.
    fn survey(&mut self, process: &Process, wish: Wish) {
        let pid = process.pid;
        if let Err(refusal) = self.investigation.survey(process, wish) {
            self.selection.skip(Some(pid), &refusal.to_string());
        }
    }

    /// Attaches to the waiting command and lets it go.
    fn start_command(&mut self) -> Result<()> {
        let Some(waiting) = self.waiting.take() else {
            return Ok(());
        };
        let pid = waiting.pid;
        let process = Process::of(pid).context("the command is gone before its start")?;
        let upcoming = command::upcoming_files(&self.args.command);
        self.follow(process, self.sampling(Sampling::FromFirst), &upcoming);
        if let Some(account) = self.investigation.account_mut(pid) {
            account.command = Some(Command::default());
        }
        let starting = waiting.release()?;
        self.watch_start(pid);
        self.child = Some((starting.child()?, pid));
        Ok(())
    }

    /// Looks closely at a program of the command that starts: its libraries
    /// are mapped one after the other within a millisecond, and until we know
    /// them its stacks are cut short.
    fn watch_start(&mut self, id: TargetId) {
        if !self.is_of_command(id) || self.starts >= MAX_STARTS {
            return;
        }
        self.starts += 1;
        let _urgency = Urgency::begin();
        while self.investigation.watch_start(id) {
            self.handle_records();
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// The command itself, or a child of it.
    fn is_of_command(&self, id: TargetId) -> bool {
        self.investigation
            .account(id)
            .is_some_and(|account| account.command.is_some() || account.descendant)
    }

    /// What the user asked for, or else `otherwise`.
    fn sampling(&self, otherwise: Sampling) -> Sampling {
        self.args.sample.map_or(otherwise, Sampling::Fixed)
    }

    async fn observe_until_the_end(&mut self) -> Result<()> {
        let started = Instant::now();
        let deadline = started + self.args.duration;
        // SAFETY: the descriptor is its own, and nothing else closes it.
        let ring = unsafe { AsyncFd::register(self.investigation.ring_descriptor()?) }?;
        let mut log = EbpfLogger::init(self.investigation.ebpf())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = if signals::is_told_of_hangups()? {
            Some(signal(SignalKind::hangup())?)
        } else {
            None
        };
        let mut dangers = interval(TICK);
        dangers.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first_look = Box::pin(sleep_until(started + investigation::FIRST_LOOK));
        let mut looked = false;
        let mut step = started;
        // Before the signals were waited for.
        while !signals::is_asked() {
            tokio::select! {
                biased;
                () = sleep_until(deadline) => break,
                () = sleep_until(step) => {}
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = told(&mut hangup) => break,
                ready = ring.readable() => {
                    ready?.clear_ready();
                    self.handle_records();
                    if self.investigation.is_over() {
                        break;
                    }
                }
                () = &mut first_look, if !looked => {
                    looked = true;
                    self.investigation.first_look()?;
                }
                _ = dangers.tick() => {
                    self.investigation.look_for_dangers();
                    if self.investigation.is_over() {
                        break;
                    }
                }
                _ = ticks.tick() => {
                    log.flush();
                    self.investigation.look_for_dangers();
                    dangers.reset_after(TICK + TICK / 4);
                    let began = Instant::now();
                    self.investigation.enter_observation()?;
                    if let Ok(pressure) = Pressure::of_host() {
                        self.investigation.press(pressure.some_avg10);
                    }
                    for sentence in self.investigation.take_notes() {
                        tracing::debug!("{sentence}");
                    }
                    self.reap();
                    // Large tables are read less often.
                    ticks.reset_after(TICK.max(began.elapsed() * READING_SHARE));
                    let calls: f64 = self.investigation.accounts().map(Account::calls_per_s).sum();
                    self.progress.show(started.elapsed(), self.args.duration, self.investigation.len(), calls);
                }
            }
            step = Instant::now() + self.investigation.advance();
        }
        self.finish()
    }

    /// Handles what the kernel programs have reported.
    fn handle_records(&mut self) {
        let happenings = self.investigation.handle_records();
        for death in self.investigation.take_deaths() {
            if self.args.journal
                && let Err(error) = report::send_death(death)
            {
                tracing::warn!("the death is not in the journal: {error:#}");
            }
        }
        for happening in happenings {
            match happening {
                Happening::Forked { parent, child } => self.handle_fork(parent, child),
                Happening::Executed(id) => self.watch_start(id),
                Happening::Ended(_) => {}
            }
        }
    }

    /// A child of the command is followed; other children are counted.
    fn handle_fork(&mut self, parent: TargetId, child: u32) {
        let room = self.investigation.len() < MAX_CHILDREN;
        if self.is_of_command(parent)
            && room
            && let Ok(process) = Process::of(child)
            && self
                .investigation
                .follow(process, self.sampling(Sampling::FromFirst), &[])
                .is_ok()
        {
            if let Some(account) = self.investigation.account_mut(child) {
                account.descendant = true;
            }
            return;
        }
        let spare = self.args.attach.is_none();
        if let Err(refusal) = self.investigation.leave_child(parent, spare) {
            self.selection.skip(Some(parent), &refusal.to_string());
        }
    }

    /// Takes the command's exit status.
    fn reap(&mut self) {
        if let Some((child, id)) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            use std::os::unix::process::ExitStatusExt as _;
            let id = *id;
            if let Some(account) = self.investigation.account_mut(id) {
                account.command = Some(Command {
                    exit_status: status.code(),
                    signal: status.signal(),
                });
            }
            self.child = None;
        }
    }

    /// The last observation, and the probes off.
    fn finish(&mut self) -> Result<()> {
        self.progress.phase("detaching …");
        self.handle_records();
        for (id, refusal) in self.investigation.finish()? {
            self.selection.skip(Some(id), &refusal.to_string());
        }
        self.handle_records();
        // A command that has ended is a zombie until now; one that runs on
        // is left alone.
        for _ in 0..20 {
            self.reap();
            let ended = self.child.as_ref().is_some_and(|(_, id)| {
                self.investigation
                    .account(*id)
                    .is_some_and(|account| account.ended)
            });
            if !ended {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// Waits for a signal; for ever where none is to come.
async fn told(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
