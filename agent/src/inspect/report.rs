//! The document of a run, its outputs and the exit code.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write as _},
    path::Path,
    time::SystemTime,
};

use anyhow::{Context as _, Result};

use crate::{
    alert::Notice,
    analysis::Settings,
    cli::{EXIT_FOUND, EXIT_INCONCLUSIVE, EXIT_NOTHING, InspectArgs},
    finding::{Death, Document, Process, SCHEMA, Skipped, Text},
    host::{cpu_clock::CpuClock, kernel},
    investigation::{Account, Investigation},
    output::{journald, json, text},
    symbols::Symbols,
};

/// Where journald listens.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// A run that goes on.
pub(super) struct Run {
    started: SystemTime,
}

impl Run {
    /// Notes the start: the moment when the probes of the first target were
    /// complete, or of the run when there is none.
    pub(super) fn begin(started: SystemTime) -> Self {
        Self { started }
    }

    /// Judges every account.
    pub(super) fn document(self, investigation: &Investigation, skipped: Vec<Skipped>) -> Document {
        let mut accounts: Vec<&Account> = investigation.accounts().collect();
        let now = (SystemTime::now(), kernel::monotonic_ns());
        // The clock of the observations, as a date.
        let date = |ns: u64| now.0 - std::time::Duration::from_nanos(now.1.saturating_sub(ns));
        let started = accounts
            .iter()
            .map(|account| account.attached_ns)
            .min()
            .map_or(self.started, date);
        let duration = accounts
            .iter()
            .map(|account| account.observed)
            .max()
            .unwrap_or_default();
        accounts.sort_by_key(|account| account.attached_ns);
        let mut symbols = Symbols::new();
        let mut processes: Vec<Process> = accounts
            .iter()
            .filter_map(|account| {
                investigation.describe(account.id, &Settings::default(), &mut symbols)
            })
            .collect();
        let cpu = CpuClock::OURS.read().unwrap_or_default().as_secs_f64();
        let seconds = duration.as_secs_f64();
        for process in &mut processes {
            process.capture.agent_cpu_percent = (seconds > 0.0).then(|| cpu / seconds * 100.0);
        }
        Document {
            schema: SCHEMA,
            lingerscope: env!("CARGO_PKG_VERSION"),
            host: nix::unistd::gethostname()
                .ok()
                .map(|name| Text::name(name.as_encoded_bytes())),
            kernel: Some(Text::name(kernel::release())),
            started: jiff::Timestamp::try_from(started)
                .map(|time| time.to_string())
                .unwrap_or_default(),
            duration_s: duration.as_secs_f64(),
            processes,
            skipped,
        }
    }
}

/// Prints the document as the arguments ask.
///
/// # Errors
/// The first of what went wrong; the other outputs are written all the same,
/// standard output last: its terminal may be gone.
pub(super) fn print(document: &Document, args: &InspectArgs) -> Result<()> {
    let saved = args
        .json_file
        .as_ref()
        .map_or(Ok(()), |path| save(document, path));
    let sent = if args.journal { send(document) } else { Ok(()) };
    let printed = show(document, args);
    saved.and(sent).and(printed)
}

fn save(document: &Document, path: &Path) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        json::write(document, &mut out)?;
        out.flush()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn show(document: &Document, args: &InspectArgs) -> Result<()> {
    let stdout = io::stdout();
    let style = text::Style {
        colour: stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let mut out = BufWriter::new(stdout.lock());
    let printed = if args.json {
        json::write(document, &mut out)
    } else {
        text::write(document, style, &mut out)
    };
    printed
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// Sends a death at once.
pub(super) fn send_death(death: Death) -> Result<()> {
    let journal = journald::Journal::connect(Path::new(JOURNAL))?;
    Ok(journal.tell(&Notice::Death(Box::new(death)))?)
}

fn send(document: &Document) -> Result<()> {
    let journal = journald::Journal::connect(Path::new(JOURNAL))?;
    let page_within = Settings::default().page_within;
    for process in &document.processes {
        for finding in &process.findings {
            journal.send(process, finding, page_within)?;
        }
    }
    Ok(())
}

/// What the document means to a script.
pub(super) fn exit_code(document: &Document, args: &InspectArgs) -> u8 {
    let found = document
        .processes
        .iter()
        .flat_map(|process| &process.findings)
        .any(|finding| args.fail_on.includes(finding.confidence));
    if found {
        return EXIT_FOUND;
    }
    let limits: Vec<f64> = document
        .processes
        .iter()
        .filter_map(|process| process.detection_limit_bytes_per_s)
        .collect();
    // Nothing can be said of a process that was seen too briefly; children of
    // a command may be such, but not all processes.
    let too_coarse = args
        .limit
        .is_some_and(|wanted| limits.iter().any(|limit| *limit > wanted as f64));
    if let (Some(wanted), true) = (args.limit, too_coarse) {
        tracing::warn!(
            "a leak of {wanted} B/s could have gone unseen, the detection limit is above --limit: watch longer by --for, or sample more finely by --sample"
        );
    }
    if !document.skipped.is_empty() || limits.is_empty() || too_coarse {
        return EXIT_INCONCLUSIVE;
    }
    EXIT_NOTHING
}
