//! Settings of the daemon: from `/etc/lingerscope/lingerscope.yaml` and
//! drop-ins to checked values.
//!
//! The structs here are the source of everything: names, defaults, the
//! default file and its comments. What is not understood is refused; a key
//! that this version does not know is only a warning where the caller says so.

mod check;
mod difference;
mod layer;
mod pattern;
mod problem;
mod scalar;
mod section;
mod selector;
mod shipped;
mod suppression;
mod unit;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::finding::Confidence;
use layer::Layer;
use problem::{Place, Problems};
use section::{Scalar as _, Setting as _, section};

pub use difference::{Change, difference, reloaded};
pub use pattern::Pattern;
pub use problem::{Problem, Severity};
pub use scalar::{Day, LogLevel, Mode};
pub use selector::{Selector, Subject};
pub use shipped::default_file;
pub use suppression::Suppression;
pub use unit::{Bytes, Rate};

/// Where the settings are, unless an argument says otherwise.
pub const DEFAULT_FILE: &str = "/etc/lingerscope/lingerscope.yaml";

section! {
    /// All settings.
    pub struct Settings {
        /// What the daemon may do with processes whose memory grows:
        /// watch: look at their memory from outside and log which of them grow;
        /// nothing is loaded into the kernel;
        /// survey: sample their allocations in short windows;
        /// full: as survey, and follow every allocation where the budget allows.
        mode: Mode = Mode::Survey,
        /// Memory growth of every process, from /proc.
        watch: Watch = Watch::default(),
        /// Following allocations of processes that grow.
        capture: Capture = Capture::default(),
        /// What all this may cost.
        budget: Budget = Budget::default(),
        /// When growth is called a leak.
        verdicts: Verdicts = Verdicts::default(),
        /// What is told to the journal.
        alerts: Alerts = Alerts::default(),
        /// Only these processes are looked at; all, if nothing is named. A process
        /// is meant if any of the lists names it.
        include: Selector = Selector::default(),
        /// These processes are not looked at. Named as in include.
        exclude: Selector = Selector::default(),
        /// These processes are followed always, not only when they grow: from the
        /// next look at all processes on (watch.interval). Named as in include.
        pinned: Selector = Selector::default(),
        /// Findings that are known and not to be told. Each entry names any of
        /// verdict, exe, unit and function (of the stack), which all have to match,
        /// and a reason; ticket and expires (the last day) are optional. Entries that
        /// have expired, or never match, are reported. For example:
        ///
        ///   suppressions:
        ///     - exe: reportd
        ///       function: 'reportd::cache::*'
        ///       reason: bounded by the number of customers
        ///       ticket: OPS-1234
        ///       expires: 2027-03-31
        suppressions: Vec<Suppression> = Vec::new(),
        /// Numbers for Prometheus; off unless one of listen and textfile is set.
        metrics: Metrics = Metrics::default(),
        /// The daemon's own log, on standard error.
        log: Log = Log::default(),
    }
}

section! {
    /// Growth of every process.
    pub struct Watch {
        /// Time between two looks at all processes.
        interval [restart]: Duration = Duration::from_secs(10),
        /// Slowest growth that makes a process a suspect.
        min_rate: Rate = Rate(256.0),
        /// How long growth must have gone on before it does, where no memory limit is
        /// near.
        patience: Duration = Duration::from_mins(15),
        /// Least growth in total before it does.
        min_growth: Bytes = Bytes(4 << 20),
    }
}

section! {
    /// Following allocations.
    pub struct Capture {
        /// Processes that are followed at the same time.
        max_targets: u32 = 4,
        /// Processes that never get a breakpoint, by their name or their executable's
        /// file name. Process 1 and lingerscope itself never get one anyway.
        never: Vec<Pattern> = never(),
        /// How long a file is not probed again for a user whose process died of a
        /// fault while it was probed, or within 60 s after. `lingerscope quarantine`
        /// lists and clears these entries.
        quarantine: Duration = crate::host::quarantine::PERIOD,
    }
}

section! {
    /// What observing may cost.
    pub struct Budget {
        /// Average slowdown of a followed process, in percent.
        target_percent: f64 = 1.0,
        /// Slowdown of a followed process within a window, in percent.
        window_percent: f64 = 30.0,
        /// Longest window that slows it so, in milliseconds.
        window_ms: u32 = 300,
        /// Processor time of lingerscope itself, in percent of one core.
        agent_percent: f64 = 2.0,
        /// Memory of lingerscope, in the kernel and outside.
        memory [restart]: Bytes = Bytes(256 << 20),
    }
}

section! {
    /// When growth is called a leak.
    pub struct Verdicts {
        /// How long growth has to go on without slowing before it is called strong,
        /// where no memory limit is near.
        growth_confirm: Duration = Duration::from_hours(1),
        /// Slowest leak that is told.
        min_rate: Rate = Rate(256.0),
        /// Least confidence that is told: suspected, strong or proven.
        min_confidence: Confidence = Confidence::Suspected,
    }
}

section! {
    /// What is told, and how often.
    pub struct Alerts {
        /// A strong finding whose process reaches its memory limit within this time
        /// gets priority 3 (error) instead of 4 (warning).
        page_within: Duration = Duration::from_hours(6),
        /// A finding that lasts is told again after this time.
        repeat: Duration = Duration::from_hours(24),
        /// It is told earlier when its rate has grown by this factor.
        worsened_factor: f64 = 2.0,
        /// A finding is resolved when it was not found for this time.
        resolve_after: Duration = Duration::from_mins(30),
        /// Most alerts within burst_window; the others are summed up in one message.
        burst: u32 = 10,
        /// See burst.
        burst_window: Duration = Duration::from_mins(10),
    }
}

section! {
    /// Numbers for Prometheus.
    pub struct Metrics {
        /// Address to serve GET /metrics at, such as 127.0.0.1:9464. Whoever reaches
        /// it can read names of units.
        listen [restart]: Option<SocketAddr> = None,
        /// File for node_exporter's textfile collector; its name ends with .prom.
        textfile: Option<PathBuf> = None,
        /// Time between two writings of the file.
        interval: Duration = Duration::from_secs(15),
    }
}

section! {
    /// The daemon's own log.
    pub struct Log {
        /// error, warn, info, debug or trace.
        level: LogLevel = LogLevel::Info,
    }
}

/// Programs that a machine cannot do without for a moment.
fn never() -> Vec<Pattern> {
    [
        "sshd*",
        "systemd*",
        "dbus-daemon",
        "dbus-broker*",
        "containerd*",
        "dockerd",
        "runc",
        "crun",
        "conmon*",
        "podman",
        "crio",
        "kubelet",
    ]
    .into_iter()
    .filter_map(|name| Pattern::parse(name).ok())
    .collect()
}

impl Capture {
    /// Whether a process must not be probed. `name` is its name in
    /// /proc/PID/comm, which it can choose; the executable counts as well.
    pub fn forbids(&self, pid: u32, name: &str, exe: Option<&str>) -> bool {
        pid == 1
            || pid == std::process::id()
            || self.never.iter().any(|pattern| {
                pattern.matches(name) || exe.is_some_and(|exe| pattern.matches_path(exe))
            })
    }
}

impl Settings {
    /// Whether a process is looked at at all.
    pub fn covers(&self, subject: &Subject<'_>) -> bool {
        (self.include.is_empty() || self.include.matches(subject)) && !self.exclude.matches(subject)
    }
}

/// What to do about keys that this version does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownKeys {
    /// Refuse the configuration: for `check-config`, reload, `--strict`.
    Refuse,
    /// Go on without them: at start, so that going back to an earlier version
    /// does not stop the service.
    Warn,
}

/// Settings, where they came from, and what is doubtful about them.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Files that were read, in this order.
    pub files: Vec<PathBuf>,
    /// What the log should say.
    pub warnings: Vec<Problem>,
}

/// A configuration that cannot be used: every problem on a line.
#[derive(Clone, Debug)]
pub struct Invalid(pub Vec<Problem>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let end = if at == 0 { "" } else { "\n" };
            write!(f, "{end}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// Reads a file and its drop-ins. Without a name it is [`DEFAULT_FILE`],
/// which may be absent: then the defaults and the drop-ins hold.
///
/// `unix_s`: the time, for what expires.
///
/// # Errors
/// With everything that is wrong, each with file, line, key and mend.
pub fn load(file: Option<&Path>, keys: UnknownKeys, unix_s: i64) -> Result<Loaded, Invalid> {
    let top = file.unwrap_or(Path::new(DEFAULT_FILE));
    let one = |problem| Invalid(vec![problem]);
    let mut layers = Vec::new();
    match Layer::open(top).map_err(one)? {
        Some(layer) => layers.push(layer),
        None if file.is_none() => {}
        None => {
            let message = "there is no such file; `lingerscope default-config` prints one";
            return Err(one(problem::of_file(top, None, message.to_owned())));
        }
    }
    for path in layer::drop_ins(top).map_err(one)? {
        // A file that has just gone away is no drop-in any more.
        layers.extend(Layer::open(&path).map_err(one)?);
    }
    settings(&layers, keys, unix_s)
}

/// Reads layers, the later ones over the earlier ones, and checks the result.
fn settings(layers: &[Layer], keys: UnknownKeys, unix_s: i64) -> Result<Loaded, Invalid> {
    let mut settings = Settings::default();
    let mut problems = Problems::default();
    for layer in layers {
        settings.read(layer.value(), &mut Place::top(layer, &mut problems));
    }
    let fatal = |problem: &Problem| match problem.severity {
        Severity::Error => true,
        Severity::UnknownKey => keys == UnknownKeys::Refuse,
        Severity::Doubt => false,
    };
    // What could not be read keeps its default, so checks between keys
    // would tell of values that nobody wrote.
    if !problems.has(Severity::Error) {
        for (severity, path, message) in check::check(&settings, unix_s) {
            problems.push(problem::of_key(layers, severity, &path, message));
        }
    }
    let problems = problems.into_list();
    if problems.iter().any(fatal) {
        return Err(Invalid(problems));
    }
    Ok(Loaded {
        settings,
        files: layers.iter().map(|layer| layer.file().to_owned()).collect(),
        warnings: problems,
    })
}
