//! The pipeline for named targets: select, capture, observe, judge, print.

mod account;
mod command;
mod fineness;
mod progress;
mod report;
mod selection;

use std::{collections::HashMap, path::PathBuf, process::Child, time::Duration};

use agent_ebpf::abi::heap::{Target, TargetCounts};
use anyhow::{Context as _, Result, bail};
use aya_log::EbpfLogger;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::{
    account::Account, command::Waiting, progress::Progress, report::Run, selection::Selection,
};
use crate::{
    capture::{self, Capture, Incident, TargetId, links::Method, object::Sizes},
    cli::InspectArgs,
    finding::{Command, Text},
    host::{
        kernel, privilege,
        process::{self, Process},
        quarantine::{self, Quarantine},
    },
};

/// Live blocks of all targets together; 29 MB of kernel memory.
const LIVE_BLOCKS: u32 = 1 << 18;
/// Where every allocation is asked for: 115 MB.
const LIVE_BLOCKS_EXACT: u32 = 1 << 20;
/// How often the kernel's tables are read.
const TICK: Duration = Duration::from_secs(1);
/// The tables are read for at most this share of the time.
const READING_SHARE: u32 = 20;
/// Calls are only counted for so long, to choose a sampling mean; the
/// observation begins then.
const FIRST_LOOK: Duration = Duration::from_millis(250);
/// After so many children, a process is probed in a way that spares them.
const MANY_CHILDREN: u64 = 16;
/// How long a command is watched closely after its start.
const SETTLING: Duration = Duration::from_millis(50);
/// Children of a command that are followed at most.
const MAX_CHILDREN: usize = 32;

/// Runs `inspect`; the exit code.
///
/// # Errors
/// What keeps the run as a whole from working; a target that cannot be
/// observed is no error but part of the report.
pub fn run(args: &InspectArgs) -> Result<u8> {
    if let Some(sentence) = privilege::missing() {
        bail!(sentence);
    }
    // Forked before any probe descriptor exists, so that it inherits none.
    let waiting = if args.command.is_empty() {
        None
    } else {
        Some(Waiting::new(&args.command, args.json)?)
    };
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
    capture: Capture,
    accounts: HashMap<TargetId, Account>,
    selection: Selection,
    waiting: Option<Waiting>,
    child: Option<(Child, TargetId)>,
    progress: Progress,
    live_blocks: u32,
}

impl<'a> Inspection<'a> {
    fn new(args: &'a InspectArgs, waiting: Option<Waiting>) -> Result<Self> {
        let selection = selection::select(&args.pid, &args.unit, &args.name)?;
        let live_blocks = if args.sample == Some(1) {
            LIVE_BLOCKS_EXACT
        } else {
            LIVE_BLOCKS
        };
        let forced = args.attach.map(|by| [Method::from(by)]);
        let methods = forced.as_ref().map_or(&Method::ALL[..], |method| method);
        let capture = Capture::new(
            Sizes { live_blocks },
            methods,
            Quarantine::open(&Quarantine::place())?,
        )?;
        Ok(Self {
            args,
            capture,
            accounts: HashMap::new(),
            selection,
            waiting,
            child: None,
            progress: Progress::new(),
            live_blocks,
        })
    }

    async fn run(mut self) -> Result<u8> {
        self.progress.phase("attaching …");
        let began = std::time::SystemTime::now();
        for process in std::mem::take(&mut self.selection.processes) {
            let mean = self.args.sample.unwrap_or(Target::COUNT_ONLY);
            self.attach(process, mean, &[]);
        }
        self.start_command()?;
        let run = Run::begin(began);
        if !self.accounts.is_empty() {
            self.observe_until_the_end().await?;
        }
        self.progress.phase("resolving symbols …");
        let accounts: Vec<Account> = std::mem::take(&mut self.accounts).into_values().collect();
        let document = run.document(&self.capture, accounts, self.selection.skipped);
        self.progress.phase("");
        report::print(&document, self.args)?;
        Ok(report::exit_code(&document, self.args))
    }

    /// Starts to follow a process, or notes why that is impossible.
    fn attach(&mut self, process: Process, mean: u64, upcoming: &[PathBuf]) {
        let pid = process.pid;
        let attached = if upcoming.is_empty() {
            self.capture.attach(process.clone(), mean)
        } else {
            self.capture.attach_command(process.clone(), mean, upcoming)
        };
        match attached {
            Ok(()) => self.open_account(process, mean),
            Err(refusal) => self.selection.skip(Some(pid), &refusal.to_string()),
        }
    }

    fn open_account(&mut self, process: Process, mean: u64) {
        let pid = process.pid;
        let target = self.capture.target(pid);
        let attached = target.map_or_else(kernel::monotonic_ns, |target| target.attached_ns);
        self.accounts
            .insert(pid, Account::new(process, attached, mean));
    }

    /// Attaches to the waiting command and lets it go.
    fn start_command(&mut self) -> Result<()> {
        let Some(waiting) = self.waiting.take() else {
            return Ok(());
        };
        let pid = waiting.pid;
        let process = Process::of(pid).context("the command is gone before its start")?;
        let upcoming = command::upcoming_files(&self.args.command);
        self.attach(process, self.args.sample.unwrap_or(1), &upcoming);
        let child = waiting.release()?;
        if let Some(account) = self.accounts.get_mut(&pid) {
            account.command = Some(Command::default());
        }
        self.child = Some((child, pid));
        // Its libraries are mapped one after the other within milliseconds,
        // and until we know them its stacks are cut short.
        let settled = std::time::Instant::now() + SETTLING;
        while std::time::Instant::now() < settled {
            self.handle_records();
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    async fn observe_until_the_end(&mut self) -> Result<()> {
        let started = Instant::now();
        let deadline = started + self.args.duration;
        // SAFETY: the descriptor is its own, and nothing else closes it.
        let ring = unsafe { AsyncFd::register(self.capture.ring_descriptor()?) }?;
        let mut log = EbpfLogger::init(self.capture.ebpf())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first_look = Box::pin(sleep_until(started + FIRST_LOOK));
        let mut looked = false;
        loop {
            tokio::select! {
                () = sleep_until(deadline) => break,
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                ready = ring.readable() => {
                    ready?.clear_ready();
                    self.handle_records();
                    if self.accounts.values().all(|account| account.ended) {
                        break;
                    }
                }
                () = &mut first_look, if !looked => {
                    looked = true;
                    for account in self.accounts.values_mut() {
                        account.counts = self.capture.counts(account.id);
                    }
                    self.choose_means(0.0);
                    // The observation begins here.
                    self.read()?;
                }
                _ = ticks.tick() => {
                    let began = Instant::now();
                    log.flush();
                    self.capture.tick();
                    let live = self.read()?;
                    if looked {
                        self.choose_means(live as f64 / f64::from(self.live_blocks));
                    }
                    self.reap();
                    // Large tables are read less often.
                    ticks.reset_after(TICK.max(began.elapsed() * READING_SHARE));
                    let calls: f64 = self.accounts.values().map(Account::calls_per_s).sum();
                    self.progress.show(started.elapsed(), self.args.duration, self.accounts.len(), calls);
                }
            }
        }
        self.finish()
    }

    /// Handles what the kernel programs have reported.
    fn handle_records(&mut self) {
        for (id, incident) in self.capture.drain() {
            match incident {
                Incident::Ended(status) => {
                    self.look_at_death(id, status);
                    self.end(id);
                }
                Incident::Executed => {
                    if let Some(account) = self.accounts.get_mut(&id) {
                        account.restart();
                    }
                }
                Incident::Forked(child) => self.follow(id, child),
            }
        }
    }

    /// A child of the command is followed; other children are counted.
    fn follow(&mut self, parent: TargetId, child: u32) {
        let of_command = self.child.is_some()
            && self
                .accounts
                .get(&parent)
                .is_some_and(|account| account.command.is_some() || account.descendant);
        let room = self.accounts.len() < MAX_CHILDREN;
        if of_command
            && room
            && let Ok(process) = Process::of(child)
        {
            let mean = self.args.sample.unwrap_or(1);
            if self.capture.attach(process.clone(), mean).is_ok() {
                self.open_account(process, mean);
                if let Some(account) = self.accounts.get_mut(&child) {
                    account.descendant = true;
                }
                return;
            }
        }
        let Some(account) = self.accounts.get_mut(&parent) else {
            return;
        };
        account.unfollowed += 1;
        let chosen = self.args.attach.is_some() || self.capture.method() == Method::Perf;
        if account.unfollowed != MANY_CHILDREN || chosen {
            return;
        }
        match self.capture.spare_children(parent) {
            Ok(()) => {
                let target = self.capture.target(parent);
                let attached =
                    target.map_or_else(kernel::monotonic_ns, |target| target.attached_ns);
                account.begin_again(attached, TargetCounts::default());
            }
            Err(refusal) => {
                self.selection.skip(Some(parent), &refusal.to_string());
                self.accounts.remove(&parent);
            }
        }
    }

    /// A target that dies by a signal under our probes is not probed again.
    fn look_at_death(&mut self, id: TargetId, status: u32) {
        let Some(signal) = quarantine::suspicious_signal(status) else {
            return;
        };
        let Some(target) = self
            .capture
            .target(id)
            .filter(|target| target.is_attached())
        else {
            return;
        };
        let exe = process::exe_path(&target.process);
        let name = Text::name(exe.as_os_str().as_encoded_bytes());
        tracing::error!(
            "process {id} ({name}) died by signal {signal} while it was probed; this build is not probed again"
        );
        if let Err(error) = self.capture.quarantine(id, signal) {
            tracing::warn!(error = %format_args!("{error:#}"), "the quarantine holds for this run only");
        }
    }

    /// Reads the tables once more for a target that has just ended.
    fn end(&mut self, id: TargetId) {
        if self.accounts.get(&id).is_none_or(|account| account.ended) {
            return;
        }
        if let Some(account) = self.accounts.get_mut(&id) {
            account.ended = true;
        }
        if let Err(error) = self.read() {
            tracing::warn!(error = %format_args!("{error:#}"), "the last observation of a process is missing");
        }
        self.capture.detach(id);
        if let Some(account) = self.accounts.get_mut(&id) {
            account.closed = true;
        }
    }

    /// Enters the tables into the accounts; live blocks in all.
    fn read(&mut self) -> Result<usize> {
        let now = kernel::monotonic_ns();
        let mut live = 0;
        for (id, reading) in self.capture.read()? {
            live += reading.live.len();
            if let Some(account) = self.accounts.get_mut(&id).filter(|account| !account.closed) {
                let target = self.capture.target(id);
                account.every_call = target.is_some_and(capture::target::Target::counts_every_call);
                account.observe(now, reading, self.capture.counts(id));
            }
        }
        Ok(live)
    }

    /// Sets the sampling means, unless the user has chosen one.
    fn choose_means(&mut self, table_use: f64) {
        for account in self.accounts.values_mut().filter(|account| !account.ended) {
            let load = account.load(table_use);
            let current = self
                .capture
                .target(account.id)
                .map_or(1, |target| target.mean);
            if self.args.sample.is_some() {
                continue;
            }
            let first = current == Target::COUNT_ONLY;
            let mean = fineness::next_mean(if first { 1 } else { current }, load);
            if mean == current {
                continue;
            }
            if let Err(error) = self.capture.set_mean(account.id, mean) {
                tracing::warn!(error = %format_args!("{error:#}"), "cannot change the sampling mean");
                continue;
            }
            account.coarsest = if first {
                mean
            } else {
                account.coarsest.max(mean)
            };
            if first {
                account.begin_again(kernel::monotonic_ns(), account.counts);
            }
        }
    }

    /// Takes the command's exit status.
    fn reap(&mut self) {
        if let Some((child, id)) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            use std::os::unix::process::ExitStatusExt as _;
            let id = *id;
            if let Some(account) = self.accounts.get_mut(&id) {
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
        self.read()?;
        for account in self.accounts.values_mut() {
            self.capture.detach(account.id);
            if let Some(target) = self.capture.target(account.id) {
                account.left_out = target.left_out as u64;
                if let Some(refusal) = &target.refused {
                    self.selection.skip(Some(account.id), &refusal.to_string());
                }
            }
        }
        self.handle_records();
        // A command that has ended is a zombie until now; one that runs on
        // is left alone.
        for _ in 0..20 {
            self.reap();
            let ended = self
                .child
                .as_ref()
                .is_some_and(|(_, id)| self.accounts.get(id).is_some_and(|account| account.ended));
            if !ended {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}
