//! `lingerscope tasks`: the Tokio tasks of a running process.

mod document;
mod text;

use std::{
    io::{self, BufWriter, IsTerminal as _, Write as _},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, bail};

use self::document::Document;
use crate::{
    cli::{EXIT_INCONCLUSIVE, EXIT_NOTHING, TasksArgs},
    host::process::Process,
    output::{json, text::Style},
    tokio_rt::table::{self, Table, WhyNot},
};

/// Runs `tasks`; the exit code.
///
/// # Errors
/// Without the privilege to read the process, or when the output cannot be
/// written.
pub fn run(args: &TasksArgs) -> Result<u8> {
    // No core dump of ours may carry what was read from a target.
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    let (taken, start) = (SystemTime::now(), Instant::now());
    let process = Process::of(args.pid);
    let outcome = match &process {
        Ok(process) => look(process)?,
        Err(_) => Err(format!("process {} does not exist", args.pid)),
    };
    let document = Document::of(
        args.pid,
        process.as_ref().ok(),
        &outcome,
        taken,
        start.elapsed(),
    );
    print(&document, args)?;
    Ok(if outcome.is_ok() {
        EXIT_NOTHING
    } else {
        EXIT_INCONCLUSIVE
    })
}

/// The table, or why there is none.
///
/// # Errors
/// A missing privilege: another run can mend that.
fn look(process: &Process) -> Result<Result<Table, String>> {
    let pid = process.pid;
    if pid == std::process::id() {
        return Ok(Err(format!("process {pid} is lingerscope itself")));
    }
    if process.kernel_thread {
        return Ok(Err(format!("process {pid} is a kernel thread")));
    }
    if process.zombie {
        return Ok(Err(format!("process {pid} has ended")));
    }
    Ok(match table::read(process) {
        Ok(table) => Ok(table),
        Err(WhyNot::Unreadable(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            bail!(
                "process {pid} cannot be read without CAP_SYS_PTRACE; run it as root, for example by sudo"
            )
        }
        Err(why) => Err(format!("process {pid}: {why}")),
    })
}

fn print(document: &Document, args: &TasksArgs) -> Result<()> {
    let stdout = io::stdout();
    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut out = BufWriter::new(stdout.lock());
    let written = if args.json {
        json::write(document, &mut out)
    } else {
        text::write(document, Style { colour }, &mut out)
    };
    match written.and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => bail!("cannot write the table: {error}"),
        Ok(()) => Ok(()),
    }
}

/// Seconds with three digits, for the document.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
