//! One run of `lingerscope inspect`, and what it said.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    lab,
    program::{signal, wait},
};

/// Time beyond `--for` that a run may take: start, attach, symbols, detach.
const SLACK: Duration = Duration::from_secs(30);

/// A run to be started.
pub(crate) struct Inspection {
    command: Command,
    seconds: u32,
    files: Files,
}

struct Files {
    text: PathBuf,
    log: PathBuf,
    document: PathBuf,
}

impl Inspection {
    /// `lingerscope inspect` that follows every call for some seconds, text on
    /// standard output, the document in a file.
    pub(crate) fn new(seconds: u32) -> Result<Self> {
        Self::by(Command::new(lab::lingerscope()?), seconds)
    }

    /// `lingerscope inspect` by another mode.
    pub(crate) fn by_mode(mode: &str, seconds: u32) -> Result<Self> {
        Self::start_with(Command::new(lab::lingerscope()?), mode, seconds)
    }

    /// The same through a command that will run what is appended to it.
    pub(crate) fn by(command: Command, seconds: u32) -> Result<Self> {
        Self::start_with(command, "trace", seconds)
    }

    fn start_with(mut command: Command, mode: &str, seconds: u32) -> Result<Self> {
        let files = Files {
            text: lab::fresh("text")?,
            log: lab::fresh("log")?,
            document: lab::fresh("document.json")?,
        };
        command
            .arg("inspect")
            .args(["--mode", mode])
            .arg("--json-file")
            .arg(&files.document);
        command.arg("--for").arg(format!("{seconds}s"));
        Ok(Self {
            command,
            seconds,
            files,
        })
    }

    pub(crate) fn of(pid: u32, seconds: u32) -> Result<Self> {
        Ok(Self::new(seconds)?.arguments(["-p", &pid.to_string()]))
    }

    pub(crate) fn arguments<A: AsRef<OsStr>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: &Path) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn start(mut self) -> Result<Running> {
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(File::create(&self.files.text)?)
            .stderr(File::create(&self.files.log)?)
            .spawn()
            .with_context(|| format!("cannot start {:?}", self.command))?;
        Ok(Running {
            child,
            inspection: self,
        })
    }

    pub(crate) fn run(self) -> Result<Report> {
        let limit = Duration::from_secs(u64::from(self.seconds)) + SLACK;
        self.start()?.finish(limit)
    }
}

/// A run under way.
pub(crate) struct Running {
    child: Child,
    inspection: Inspection,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Running {
    /// What Ctrl-C does.
    pub(crate) fn interrupt(&self) -> Result<()> {
        signal(self.child.id(), libc::SIGINT)
    }

    /// What the OOM killer does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for the end and collects the output. A run that takes longer than
    /// `limit` hangs.
    pub(crate) fn finish(mut self, limit: Duration) -> Result<Report> {
        let status = wait(&mut self.child, limit)?;
        let files = &self.inspection.files;
        let document = match fs::read(&files.document) {
            Ok(bytes) if !bytes.is_empty() => Some(bytes),
            _ => None,
        };
        let report = Report {
            command: format!("{:?}", self.inspection.command),
            status,
            text: fs::read(&files.text)?,
            log: fs::read(&files.log)?,
            document: document
                .as_deref()
                .map(serde_json::from_slice)
                .transpose()
                .with_context(|| format!("{} is not JSON", files.document.display()))?,
            raw_document: document.unwrap_or_default(),
        };
        ensure!(
            report.status.is_some(),
            "hangs: not finished after {limit:?}\n{report}"
        );
        Ok(report)
    }
}

/// What a run left behind.
pub(crate) struct Report {
    command: String,
    status: Option<ExitStatus>,
    /// Standard output.
    pub(crate) text: Vec<u8>,
    /// Standard error.
    pub(crate) log: Vec<u8>,
    pub(crate) raw_document: Vec<u8>,
    pub(crate) document: Option<Value>,
}

impl Report {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// What a person reads: standard output and standard error.
    pub(crate) fn message(&self) -> String {
        [&self.text, &self.log]
            .map(|bytes| String::from_utf8_lossy(bytes))
            .concat()
    }

    pub(crate) fn expect_code(&self, allowed: &[i32]) -> Result<()> {
        ensure!(
            self.code().is_some_and(|code| allowed.contains(&code)),
            "exit status {:?}, expected one of {allowed:?}\n{self}",
            self.status
        );
        Ok(())
    }

    pub(crate) fn processes(&self) -> &[Value] {
        self.document
            .as_ref()
            .and_then(|document| document["processes"].as_array())
            .map_or(&[], Vec::as_slice)
    }

    /// The observed process `pid`.
    pub(crate) fn process(&self, pid: u32) -> Result<&Value> {
        self.processes()
            .iter()
            .find(|process| process["pid"].as_u64() == Some(u64::from(pid)))
            .with_context(|| format!("no process {pid} in the document\n{self}"))
    }

    pub(crate) fn findings(&self, pid: u32) -> Result<Vec<Finding<'_>>> {
        let findings = self.process(pid)?["findings"].as_array();
        Ok(findings
            .with_context(|| format!("no findings\n{self}"))?
            .iter()
            .map(Finding)
            .collect())
    }

    /// The worst finding.
    pub(crate) fn top(&self, pid: u32) -> Result<Finding<'_>> {
        self.findings(pid)?
            .into_iter()
            .next()
            .with_context(|| format!("no finding at all\n{self}"))
    }

    /// When the run began and ended, CLOCK_MONOTONIC in seconds.
    pub(crate) fn span(&self) -> Result<(f64, f64)> {
        let document = self
            .document
            .as_ref()
            .with_context(|| format!("no document\n{self}"))?;
        let started: jiff::Timestamp = document["started"]
            .as_str()
            .context("started is missing")?
            .parse()?;
        let length = document["duration_s"]
            .as_f64()
            .context("duration_s is missing")?;
        let ago = jiff::Timestamp::now().duration_since(started).as_secs_f64();
        let begin = monotonic() - ago;
        Ok((begin, begin + length))
    }
}

/// For messages: how to repeat it, how it ended, what it said.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {}", self.command)?;
        writeln!(f, "  {:?}", self.status)?;
        for process in self.processes() {
            writeln!(f, "  capture {}", process["capture"])?;
            writeln!(f, "  tokio {}", process["tokio"])?;
            writeln!(f, "  rss {}", process["rss"])?;
            for list in ["findings", "not_leaks"] {
                for finding in process[list].as_array().into_iter().flatten().take(4) {
                    let finding = Finding(finding);
                    writeln!(f, "  {list}: {finding}")?;
                }
            }
        }
        let skipped = self.document.as_ref().map(|document| &document["skipped"]);
        if let Some(skipped) = skipped
            .and_then(Value::as_array)
            .filter(|list| !list.is_empty())
        {
            writeln!(f, "  skipped {skipped:?}")?;
        }
        for line in String::from_utf8_lossy(&self.log)
            .lines()
            .rev()
            .take(12)
            .collect::<Vec<_>>()
            .iter()
            .rev()
        {
            writeln!(f, "  | {line}")?;
        }
        Ok(())
    }
}

/// One finding of the document.
#[derive(Clone, Copy)]
pub(crate) struct Finding<'a>(pub(crate) &'a Value);

impl<'a> Finding<'a> {
    pub(crate) fn text(self, field: &str) -> &'a str {
        self.0[field].as_str().unwrap_or_default()
    }

    /// Value, low and high of an estimate.
    pub(crate) fn estimate(self, field: &str) -> Result<(f64, f64, f64)> {
        let number = |part: &str| {
            self.0[field][part]
                .as_f64()
                .with_context(|| format!("{field}.{part} is no number"))
        };
        Ok((number("value")?, number("low")?, number("high")?))
    }

    pub(crate) fn functions(self) -> Vec<&'a str> {
        let frames = self.0["site"]["frames"].as_array().into_iter().flatten();
        frames
            .map(|frame| frame["function"].as_str().unwrap_or("?"))
            .collect()
    }

    /// The innermost function that is the program's own.
    pub(crate) fn first_user_function(self) -> &'a str {
        self.functions()
            .into_iter()
            .find(|name| !is_library(name))
            .unwrap_or("?")
    }

    pub(crate) fn task_ids(self) -> Vec<u64> {
        let tasks = self.0["tasks"].as_array().into_iter().flatten();
        tasks.filter_map(|task| task["id"].as_u64()).collect()
    }

    pub(crate) fn is_sure(self) -> bool {
        ["strong", "proven"].contains(&self.text("confidence"))
    }
}

impl fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {} in {:?}, tasks {:?}",
            self.text("confidence"),
            self.text("verdict"),
            self.0["leak_bytes_per_s"],
            self.functions().into_iter().take(6).collect::<Vec<_>>(),
            self.task_ids().into_iter().take(8).collect::<Vec<_>>(),
        )
    }
}

/// Whether a function belongs to an allocator, a standard library or Tokio:
/// this test's own list, so that the program's cannot be wrong unnoticed.
fn is_library(name: &str) -> bool {
    const CRATES: [&str; 8] = [
        "std::",
        "core::",
        "alloc::",
        "hashbrown::",
        "tokio::",
        "__rustc",
        "mimalloc::",
        "tikv_jemalloc",
    ];
    const ALLOCATORS: [&str; 22] = [
        "malloc",
        "calloc",
        "realloc",
        "reallocarray",
        "memalign",
        "aligned_alloc",
        "posix_memalign",
        "_rjem_",
        "__rust_",
        "__rdl_",
        "mi_",
        "_mi_",
        "tc_",
        "je_",
        "operator new",
        "_Znwm",
        "_Znam",
        "__libc_",
        "__GI_",
        "std::",
        "do_malloc",
        "_int_malloc",
    ];
    let bare = name.trim_start_matches(['<', '&', '_']);
    CRATES
        .iter()
        .any(|prefix| name.starts_with(prefix) || bare.starts_with(prefix))
        || ALLOCATORS
            .iter()
            .any(|prefix| name.starts_with(prefix) || bare.starts_with(prefix))
        || ["__rust_alloc", "__rdl_alloc"]
            .iter()
            .any(|part| name.contains(part))
}

fn monotonic() -> f64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec for the call to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
