//! The process that reads files, and files that are there to harm it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::{
    daemon::Daemon,
    inspection::{Inspection, Report, Running},
    lab,
    program::Program,
    trial,
};

/// Symbols that the bomb claims to have: 960 MB of them.
const SYMBOLS: u64 = 40_000_000;
/// Memory that an inspection may take, in KiB: a tenth of that.
const MAX_MEMORY: u64 = 100 << 10;
/// The service's capabilities.
const CAPABILITIES: &str = "-all,+bpf,+perfmon,+sys_ptrace,+dac_read_search,+checkpoint_restore";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("reader::is_locked_in", locked_in),
        trial("reader::under_five_capabilities", few_capabilities),
        trial("reader::a_bomb_costs_its_own_names", bomb),
        trial("reader::a_library_that_becomes_shorter", shorter),
        trial("reader::its_end_is_not_the_inspections", killed),
        trial("reader::daemon_and_many_bombs", || {
            many(&bomb_library()?, false)
        }),
        trial("reader::daemon_and_many_shortened", || {
            many(&library("daemon_shorter.so")?, true)
        }),
    ]
}

fn program() -> Result<PathBuf> {
    lab::compile("cc", "through_library.c", &["-ldl"], "through_library")
}

fn library(name: &str) -> Result<PathBuf> {
    let arguments = ["-g", "-shared", "-fPIC"];
    lab::compile("cc", "many_functions.c", &arguments, name)
}

/// The library with a `.symtab` that is a hole of 960 MB.
fn bomb_library() -> Result<PathBuf> {
    /// `SHT_SYMTAB`, as a header has it.
    const SYMTAB: [u8; 4] = [2, 0, 0, 0];
    let (good, bomb) = (library("many.so")?, lab::path("bomb.so")?);
    let mut data = fs::read(&good)?;
    let word = |data: &[u8], at: usize| -> Result<u64> {
        let bytes = data.get(at..).and_then(<[u8]>::first_chunk);
        Ok(u64::from_le_bytes(*bytes.context("a short file")?))
    };
    let headers = word(&data, 40)? as usize;
    let header = data[headers..]
        .as_chunks::<64>()
        .0
        .iter()
        .position(|header| header[4..8] == SYMTAB)
        .context("no .symtab")?;
    let (start, size) = (16 << 20, SYMBOLS * 24);
    for (field, value) in [(24, start), (32, size)] {
        let at = headers + header * 64 + field;
        data[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    let file = File::create(&bomb)?;
    file.write_all_at(&data, 0)?;
    file.set_len(start + size)?;
    Ok(bomb)
}

/// The reader among the children of a process, as its `/proc/PID/status`.
fn status_of_reader(parent: u32) -> Option<String> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let is_reader = |pid: &&str| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            line.split(|byte| *byte == 0)
                .any(|word| word == b"__reader")
        })
    };
    let reader = list.split_whitespace().find(is_reader)?;
    fs::read_to_string(format!("/proc/{reader}/status")).ok()
}

fn field<'status>(status: &'status str, name: &str) -> Result<&'status str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    Ok(line
        .with_context(|| format!("no {name} in {status}"))?
        .trim())
}

/// Waits for the reader of a running inspection.
fn reader_of(pid: u32) -> Result<String> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        // From its first answer on it is locked in.
        if let Some(status) = status_of_reader(pid)
            && field(&status, "Seccomp:")? == "2"
        {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("no reader that is locked in")
}

fn expect_nothing_left(status: &str, user: &str) -> Result<()> {
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        let left = field(status, set)?;
        ensure!(left == "0000000000000000", "{set} {left}");
    }
    ensure!(field(status, "NoNewPrivs:")? == "1", "{status}");
    let users: BTreeSet<&str> = field(status, "Uid:")?.split_whitespace().collect();
    ensure!(users == BTreeSet::from([user]), "{status}");
    Ok(())
}

fn locked_in() -> Result<()> {
    let program = Program::start(&program()?, &[path(&library("many.so")?)?, "30"])?;
    let running = inspection(program.pid(), 3)?.start()?;
    let status = reader_of(running.pid())?;
    expect_nothing_left(&status, "65534")?;
    ensure!(field(&status, "CapBnd:")? == "0000000000000000", "{status}");
    ensure!(field(&status, "Groups:")?.is_empty(), "{status}");
    let report = running.finish(Duration::from_secs(30))?;
    report.expect_code(&[0, 3, 4])?;
    ensure!(lost(&report, program.pid())? == 0, "{report}");
    Ok(())
}

/// As the service runs, but for its user.
fn few_capabilities() -> Result<()> {
    let program = Program::start(&program()?, &[path(&library("many.so")?)?, "30"])?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups"]);
    for sets in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
        command.arg(format!("{sets}={CAPABILITIES}"));
    }
    // The lab may be closed to others.
    let directory = std::env::temp_dir().join(format!("lingerscope-few-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let outcome = (|| {
        let binary = directory.join("lingerscope");
        fs::copy(lab::lingerscope()?, &binary)?;
        lab::run(Command::new("chmod").arg("-R").arg("a+rwX").arg(&directory))?;
        let (document, log) = (directory.join("document.json"), directory.join("log"));
        command.args(["--no-new-privs", "--"]).arg(&binary);
        command.args([
            "inspect",
            "--mode",
            "trace",
            "--for",
            "4s",
            "--fail-on",
            "suspected",
            "--json-file",
        ]);
        command
            .arg(&document)
            .args(["-p", &program.pid().to_string()]);
        let mut child = command
            .stdout(std::process::Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start setpriv")?;
        let status = reader_of(child.id());
        let ended = child.wait()?;
        let status = status?;
        expect_nothing_left(&status, "65533")?;
        ensure!(field(&status, "CapBnd:")? != "0000000000000000", "{status}");
        let document = fs::read_to_string(&document).unwrap_or_default();
        let log = fs::read_to_string(&log)?;
        ensure!(ended.code() == Some(3), "{ended}\n{log}\n{document}");
        ensure!(document.contains("leak_in_library"), "{document}");
        Ok(())
    })();
    drop(fs::remove_dir_all(&directory));
    outcome
}

/// An inspection that tells by its code whether it has found anything.
fn inspection(pid: u32, seconds: u32) -> Result<Inspection> {
    Ok(Inspection::of(pid, seconds)?.arguments(["--fail-on", "suspected"]))
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// The leak is found, by this function or whoever called it.
fn expect_leak(report: &Report, pid: u32, function: &str) -> Result<()> {
    report.expect_code(&[3])?;
    let top = report.top(pid)?;
    let functions = top.functions();
    ensure!(
        functions.iter().any(|name| name.contains(function)),
        "{function} is not among {functions:?}\n{report}"
    );
    Ok(())
}

fn lost(report: &Report, pid: u32) -> Result<u64> {
    let lost = &report.process(pid)?["capture"]["lost"];
    let unread = lost.as_object().into_iter().flatten();
    Ok(unread
        .filter(|(cause, _)| cause.starts_with("files_"))
        .filter_map(|(_, count)| count.as_u64())
        .sum())
}

/// Follows a run to its end, and notes the most memory that it takes in KiB.
fn followed(mut running: Running) -> Result<(Report, u64)> {
    let mut most = 0;
    while running.is_running()? {
        let status = fs::read_to_string(format!("/proc/{}/status", running.pid()));
        if let Ok(status) = status
            && let Ok(peak) = field(&status, "VmHWM:")
        {
            let peak = peak.split_whitespace().next().unwrap_or_default();
            most = most.max(peak.parse().unwrap_or(0));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok((running.finish(Duration::from_secs(5))?, most))
}

fn bomb() -> Result<()> {
    let program = Program::start(&program()?, &[path(&bomb_library()?)?, "30"])?;
    let pid = program.pid();
    let (report, most) = followed(inspection(pid, 12)?.start()?)?;
    // Nothing tells the library's names, but the program's own are there.
    expect_leak(&report, pid, "leak_through")?;
    ensure!(most < MAX_MEMORY, "it took {most} KiB\n{report}");
    ensure!(lost(&report, pid)? > 0, "the loss is not counted\n{report}");
    let log = String::from_utf8_lossy(&report.log);
    ensure!(
        log.contains("bomb.so") && log.contains("could not be read"),
        "the loss is not told\n{report}"
    );
    Ok(())
}

fn shorter() -> Result<()> {
    let library = library("shorter.so")?;
    let mut program = Program::start(&program()?, &[path(&library)?, "80", "shorten"])?;
    let pid = program.pid();
    for _ in 0..4 {
        // Where its unwind rows are lost, so is the site.
        let (report, most) = followed(inspection(pid, 4)?.start()?)?;
        report.expect_code(&[0, 3, 4])?;
        let recorded = report.process(pid)?["capture"]["sampled"].as_u64();
        ensure!(recorded > Some(0), "nothing was recorded\n{report}");
        ensure!(most < MAX_MEMORY, "it took {most} KiB\n{report}");
        let log = String::from_utf8_lossy(&report.log);
        let told = log.contains("could not be read");
        ensure!(
            told == (lost(&report, pid)? > 0),
            "counted or told, not both\n{report}"
        );
        ensure!(program.is_running()?, "the program has ended");
    }
    Ok(())
}

/// Whoever ends it, another one is started.
fn killed() -> Result<()> {
    let program = Program::start(&program()?, &[path(&library("many.so")?)?, "30"])?;
    let running = inspection(program.pid(), 12)?.start()?;
    let status = reader_of(running.pid())?;
    thread::sleep(Duration::from_secs(2));
    let reader = field(&status, "Pid:")?.parse().context("no number")?;
    crate::program::signal(reader, libc::SIGKILL)?;
    let report = running.finish(Duration::from_secs(30))?;
    expect_leak(&report, program.pid(), "leak_in_library")?;
    ensure!(lost(&report, program.pid())? == 0, "{report}");
    Ok(())
}

/// Many of them, one after the other, against one daemon; so many batches of
/// four, which is how many it follows side by side, as `LINGERSCOPE_BATCHES`
/// says.
fn many(library: &Path, shorten: bool) -> Result<()> {
    const AT_ONCE: usize = 4;
    let batches = std::env::var("LINGERSCOPE_BATCHES").ok();
    let batches = batches.and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut daemon = Daemon::start(
        "mode: full\nwatch:\n  interval: 1s\nlog:\n  level: info\npinned:\n  name: ['through_library']\n",
    )?;
    thread::sleep(Duration::from_secs(3));
    let memory = |pid: u32| -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = field(&status, "VmRSS:")?.split_whitespace().next();
        kib.and_then(|kib| kib.parse().ok()).context("no VmRSS")
    };
    let mut first = None;
    for _ in 0..batches {
        // The first time long enough to be judged, with all that this loads.
        let seconds = if first.is_none() { 15 } else { 5 };
        let programs: Vec<Program> = (0..AT_ONCE)
            .map(|number| {
                // Each has a file of its own, which nobody has read before.
                let own = lab::path(&format!("own-{number}.so"))?;
                lab::run(
                    Command::new("cp")
                        .arg("--sparse=always")
                        .arg(library)
                        .arg(&own),
                )?;
                let mut arguments = vec![path(&own)?.to_owned(), seconds.to_string()];
                arguments.extend(shorten.then(|| "shorten".to_owned()));
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                Program::start(&program()?, &arguments)
            })
            .collect::<Result<_>>()?;
        thread::sleep(Duration::from_secs(seconds));
        drop(programs);
        thread::sleep(Duration::from_secs(1));
        first.get_or_insert(memory(daemon.pid()?)?);
    }
    let (first, last) = (first.context("no run")?, memory(daemon.pid()?)?);
    let log = daemon.log();
    daemon.stop()?;
    let followed = log.matches("following").count();
    ensure!(
        followed >= batches * AT_ONCE * 3 / 4,
        "only {followed} were followed\n{log}"
    );
    ensure!(
        shorten || log.contains("could not be read"),
        "no bomb was read\n{log}"
    );
    ensure!(
        last * 100 <= first * 105,
        "{first} KiB after the first, {last} KiB after the last"
    );
    Ok(())
}
