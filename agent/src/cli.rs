//! Arguments in, exit code out.

mod quarantine;
mod settings;

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    capture::{links::Method, trial},
    daemon,
    finding::Confidence,
    inspect, tasks,
};

/// Nothing found.
pub const EXIT_NOTHING: u8 = 0;
/// Something went wrong.
pub const EXIT_ERROR: u8 = 1;
/// The arguments make no sense; clap's own code.
pub const EXIT_USAGE: u8 = 2;
/// A finding at or above `--fail-on`.
pub const EXIT_FOUND: u8 = 3;
/// A named target could not be observed, or not finely enough.
pub const EXIT_INCONCLUSIVE: u8 = 4;

/// Finds the code path and the Tokio task that hold memory they should have
/// released, in running processes, unmodified and without a restart.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follow the allocations of named processes for a while and report what
    /// keeps growing
    ///
    /// Ends after --for, at Ctrl-C or with the last target. Exit codes: 0 nothing found, 1 error, 2
    /// usage, 3 a finding at or above --fail-on, 4 a target could not be observed.
    Inspect(InspectArgs),
    /// Watch every process, follow those that grow, and tell the journal what leaks
    ///
    /// What systemd starts; runs until SIGTERM or SIGINT and reads its settings again on SIGHUP.
    /// Exit codes: 0 ended as asked, 1 error, 2 settings that cannot be used.
    Daemon(DaemonArgs),
    /// Check the daemon's settings: a file, with the drop-ins beside it
    ///
    /// Exit codes: 0 the daemon takes them, 2 it does not, and every reason is printed.
    CheckConfig {
        /// The file [default: /etc/lingerscope/lingerscope.yaml, which may be absent]
        file: Option<PathBuf>,
    },
    /// Print the daemon's default settings with explanations
    DefaultConfig,
    /// List the Tokio tasks of a running process, by type
    ///
    /// Needs nothing in the process: neither tokio_unstable nor symbols. Exit codes: 0 listed, 1
    /// error, 2 usage, 4 there is no table, with the reason.
    Tasks(TasksArgs),
    /// List or clear the files that are not probed because a process that ran them died
    ///
    /// A process that dies of a fault while it is probed, or within 60 s after, puts its file here,
    /// for its user and for a week. Exit codes: 0 done, 1 error, 2 usage.
    Quarantine(quarantine::QuarantineArgs),
    /// What the attach trial tries its probes on
    #[command(name = trial::SUBCOMMAND, hide = true)]
    Trial,
}

/// Arguments of `daemon`.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// Settings, with drop-ins beside them [default: /etc/lingerscope/lingerscope.yaml, which may be
    /// absent]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Refuse settings with keys that this version does not know, instead of warning
    #[arg(long)]
    pub strict: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("target").required(true).multiple(true))]
pub struct InspectArgs {
    /// Process to inspect; may be given several times
    #[arg(short, long = "pid", value_name = "PID", group = "target")]
    pub pid: Vec<u32>,
    /// Every process of a systemd unit
    #[arg(long, value_name = "UNIT", group = "target")]
    pub unit: Vec<String>,
    /// Every process with this name, as in /proc/PID/comm
    #[arg(long, value_name = "COMM", group = "target")]
    pub name: Vec<String>,
    /// How long, such as 30s or 5m
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub duration: Duration,
    /// How allocations are followed: in short windows (survey), all the time (trace), or all the
    /// time where that slows the process by less than 1 % and in windows elsewhere (auto)
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub mode: ModeArg,
    /// Record one allocation per so many bytes on average, such as 64KiB; 1 records every
    /// allocation. Default: as fine as 5000 records a second allow
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub sample: Option<u64>,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
    /// Write the JSON document to a file as well
    #[arg(long, value_name = "FILE")]
    pub json_file: Option<PathBuf>,
    /// Send each finding to the journal as well
    #[arg(long)]
    pub journal: bool,
    /// Least confidence that makes the exit code 3
    #[arg(long, value_name = "CONFIDENCE", default_value = "strong")]
    pub fail_on: FailOn,
    /// Exit with 4 when a leak of so many bytes per second could have gone unseen
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub limit: Option<u64>,
    /// Attach in this way only
    #[arg(long, value_name = "WAY", hide = true)]
    pub attach: Option<AttachBy>,
    /// Start this command and inspect it from its first allocation, with its children
    #[arg(last = true, value_name = "CMD", group = "target")]
    pub command: Vec<OsString>,
}

/// Arguments of `tasks`.
#[derive(Debug, Args)]
pub struct TasksArgs {
    /// The process
    #[arg(short, long, value_name = "PID")]
    pub pid: u32,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// Values of `--fail-on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// Any finding.
    Suspected,
    /// Strong or proven.
    Strong,
    /// Proven only.
    Proven,
}

impl FailOn {
    /// Whether a finding of this confidence counts.
    pub fn includes(self, confidence: Confidence) -> bool {
        let least = match self {
            Self::Suspected => Confidence::Suspected,
            Self::Strong => Confidence::Strong,
            Self::Proven => Confidence::Proven,
        };
        confidence >= least
    }
}

/// Values of `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Whatever tells most within the budget.
    Auto,
    /// In windows.
    Survey,
    /// All the time, whatever it costs.
    Trace,
}

/// Values of `--attach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachBy {
    /// Multi-point links; `session` is what earlier versions had besides.
    #[value(alias = "session")]
    Multi,
    /// Perf events.
    Perf,
}

impl From<AttachBy> for Method {
    fn from(by: AttachBy) -> Self {
        match by {
            AttachBy::Multi => Self::Multi,
            AttachBy::Perf => Self::Perf,
        }
    }
}

/// Runs the command line.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Inspect(args) => inspect::run(&args),
        Command::Daemon(args) => daemon::run(&args),
        Command::CheckConfig { file } => settings::check(file.as_deref()),
        Command::DefaultConfig => settings::default(),
        Command::Tasks(args) => tasks::run(&args),
        Command::Quarantine(args) => quarantine::run(&args),
        Command::Trial => return trial::subject(),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

/// A time such as `90s`, `5m` or `1h 30m`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let advice = "write a time such as 30s, 5m or 1h 30m";
    let duration = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => text
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|duration| Duration::try_from(duration).ok())
            .ok_or_else(|| advice.to_owned())?,
    };
    if duration < Duration::from_secs(1) {
        return Err(format!("at least one second: {advice}"));
    }
    if duration > Duration::from_hours(7 * 24) {
        return Err("at most 7 days".to_owned());
    }
    Ok(duration)
}

/// A size such as `512`, `64KiB` or `1MB`.
fn parse_size(text: &str) -> Result<u64, String> {
    let size: bytesize::ByteSize = text
        .parse()
        .ok()
        .ok_or("write a size such as 512, 64KiB or 1MiB")?;
    match size.as_u64() {
        0 => Err("at least 1 byte".to_owned()),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn units() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_mins(90)));
        for bad in ["", "soon", "0s", "-5s", "10ms", "9999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_size("64KiB"), Ok(65536));
        assert_eq!(parse_size("1"), Ok(1));
        assert!(parse_size("0").is_err() && parse_size("many").is_err());
    }

    #[test]
    fn a_target_is_needed() {
        assert!(Cli::try_parse_from(["lingerscope", "inspect"]).is_err());
        assert!(Cli::try_parse_from(["lingerscope", "inspect", "-p", "1", "-p", "2"]).is_ok());
        assert!(Cli::try_parse_from(["lingerscope", "inspect", "--", "true"]).is_ok());
    }

    #[test]
    fn what_is_cleared_has_to_be_named() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        for good in ["", " list", " clear ab12", " clear --all --json", " --json"] {
            assert!(parse(&format!("lingerscope quarantine{good}")), "{good}");
        }
        for bad in [" clear", " clear ab12 --all", " ab12"] {
            assert!(!parse(&format!("lingerscope quarantine{bad}")), "{bad}");
        }
    }

    #[test]
    fn settings_have_their_commands() {
        assert!(Cli::try_parse_from(["lingerscope", "default-config"]).is_ok());
        assert!(Cli::try_parse_from(["lingerscope", "check-config"]).is_ok());
        assert!(Cli::try_parse_from(["lingerscope", "check-config", "a", "b"]).is_err());
    }
}
