//! Programs that change, copy or replace the code of their own allocator are
//! left alone, before a breakpoint or as soon as it shows; others are not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::{
    breakpoints,
    inspection::{Inspection, Report},
    lab,
    program::Program,
    trial,
};

/// Ways to follow a process that set breakpoints differently often.
const MODES: [&str; 3] = ["auto", "survey", "trace"];
/// How long a program is watched, and how long it lives.
const WATCHED: u32 = 7;
const LIFE: u32 = 12;
/// Reported within two looks of a second.
const NOTICED: Duration = Duration::from_secs(4);

pub(crate) fn trials() -> Vec<Trial> {
    let by_mode = MODES.into_iter().flat_map(|mode| {
        [
            trial(format!("text::valgrind_is_refused_{mode}"), move || {
                valgrind(mode)
            }),
            trial(format!("text::a_hook_is_refused_{mode}"), move || {
                hooked(mode)
            }),
            trial(format!("text::vanished_breakpoints_{mode}"), move || {
                vanished(mode)
            }),
            trial(format!("text::writable_for_moments_{mode}"), move || {
                writable(mode)
            }),
        ]
    });
    let others = [
        trial("text::valgrind_behind_dashes", valgrind_as_command),
        trial("text::a_hook_that_comes_later", hooked_later),
        trial("text::a_tracer", traced),
        trial("text::own_breakpoints_are_refused", own_breakpoints),
        trial("text::many_mappings_of_code", many_mappings),
        trial("text::many_mappings_that_come_later", many_mappings_later),
        trial("text::a_long_list_of_mappings", long_list),
        trial("text::two_at_a_time", two_at_a_time),
        trial("text::probes_that_become_calls", calls),
    ];
    by_mode.chain(others).collect()
}

fn program() -> Result<PathBuf> {
    lab::compile("cc", "rewrites.c", &["-fno-builtin", "-ldl"], "rewrites")
}

fn start(what: &str, delay: u32, more: &[&str]) -> Result<Program> {
    let (life, delay) = (LIFE.to_string(), delay.to_string());
    let arguments = [&life, what, &delay]
        .into_iter()
        .chain(more.iter().copied());
    Program::start(&program()?, &arguments.collect::<Vec<_>>())
}

fn inspect(mode: &str, pid: u32) -> Result<Inspection> {
    Ok(Inspection::by_mode(mode, WATCHED)?.arguments(["-p", &pid.to_string()]))
}

/// Nothing is said about leaks, but why nothing can be said; the program has
/// the code that it had, and ends well.
fn refused(report: &Report, program: &mut Program, reason: &str, changed: usize) -> Result<()> {
    report.expect_code(&[4])?;
    let message = report.message();
    ensure!(
        message.contains(reason),
        "{reason:?} is not told:\n{message}\n{report}"
    );
    ensure!(
        !message.contains("No leak above"),
        "an all-clear:\n{message}\n{report}"
    );
    untouched(program, changed)
}

/// The program was followed as usual.
fn accepted(report: &Report, program: &mut Program) -> Result<()> {
    followed(report, program.pid())?;
    untouched(program, 0)
}

/// On a busy machine, some seconds may have too few observations for a verdict.
fn followed(report: &Report, pid: u32) -> Result<()> {
    report.expect_code(&[0, 4])?;
    let message = report.message();
    let stopped = ["Not observed", "no longer observed"];
    ensure!(
        !stopped.iter().any(|words| message.contains(words)),
        "it is refused:\n{message}\n{report}"
    );
    seen(report, pid)
}

fn seen(report: &Report, pid: u32) -> Result<()> {
    let capture = &report.process(pid)?["capture"];
    let calls = capture["allocations"].as_u64().unwrap_or(0);
    // A thousand a second, in windows of a fraction of the time.
    ensure!(calls > 100, "{calls} allocations were seen\n{report}");
    Ok(())
}

/// Bytes of its code differ from its files by itself only, and it ends well.
fn untouched(program: &mut Program, changed: usize) -> Result<()> {
    breakpoints::wait_until_gone(program.pid(), Duration::from_secs(5)).or_else(|error| {
        if changed == 1 {
            Ok(Duration::ZERO)
        } else {
            Err(error)
        }
    })?;
    let differing = breakpoints::differing(program.pid())?;
    ensure!(
        differing.len() == changed,
        "{} bytes of its code are others than in its files: {differing:x?}",
        differing.len()
    );
    program.ends_well(Duration::from_secs(u64::from(LIFE) + 20))
}

fn valgrind(mode: &str) -> Result<()> {
    let mut command = Command::new("valgrind");
    command.args(["-q", "--tool=none"]).arg(program()?);
    command.args([&LIFE.to_string(), "nothing", "0"]);
    let mut program = Program::from_command(command)?;
    let report = inspect(mode, program.pid())?.run()?;
    refused(&report, &mut program, "runs under valgrind", 0)
}

/// The command becomes valgrind only when it runs.
fn valgrind_as_command() -> Result<()> {
    let program = program()?;
    let program = program.to_string_lossy();
    let report = Inspection::new(20)?
        .arguments([
            "--",
            "valgrind",
            "-q",
            "--tool=none",
            &program,
            "3",
            "nothing",
            "0",
        ])
        .run()?;
    report.expect_code(&[4])?;
    ensure!(
        report.message().contains("runs under valgrind"),
        "it is not told\n{report}"
    );
    // The run may end before the command does, which then goes on.
    let status = &report.processes()[0]["command"];
    ensure!(
        status["signal"].is_null() && status["exit_status"].as_i64().unwrap_or(0) == 0,
        "{status}\n{report}"
    );
    Ok(())
}

/// The hook is there before we are: no breakpoint comes.
fn hooked(mode: &str) -> Result<()> {
    let mut program = start("hook", 0, &[])?;
    let changed = breakpoints::differing(program.pid())?.len();
    ensure!((5..=14).contains(&changed), "the hook is {changed} bytes");
    let report = inspect(mode, program.pid())?.run()?;
    refused(
        &report,
        &mut program,
        "has changed the code of its allocator",
        changed,
    )
}

/// The jump overwrites a breakpoint; nothing is copied.
fn hooked_later() -> Result<()> {
    let mut program = start("hook", 4, &[])?;
    let pid = program.pid();
    let running = inspect("trace", pid)?.start()?;
    breakpoints::wait_for(pid, Duration::from_secs(3))?;
    let report = running.finish(Duration::from_secs(30))?;
    seen(&report, pid)?;
    let changed = breakpoints::differing(pid)?.len();
    ensure!((5..=14).contains(&changed), "the hook is {changed} bytes");
    refused(
        &report,
        &mut program,
        "has changed the code of its allocator",
        changed,
    )
}

fn vanished(mode: &str) -> Result<()> {
    let mut program = start("drop", 3, &[])?;
    let report = inspect(mode, program.pid())?.run()?;
    refused(
        &report,
        &mut program,
        "breakpoints from the code of its allocator",
        0,
    )
}

fn writable(mode: &str) -> Result<()> {
    let mut program = start("writable", 0, &[])?;
    let report = inspect(mode, program.pid())?.run()?;
    accepted(&report, &mut program)
}

/// What a debugger does, by this test itself.
struct Tracer(libc::pid_t);

impl Tracer {
    fn of(pid: u32) -> Result<Self> {
        let pid = pid as libc::pid_t;
        // SAFETY: seizing takes two numbers.
        let outcome = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
        ensure!(outcome == 0, "{}", std::io::Error::last_os_error());
        Ok(Self(pid))
    }

    /// Leaves it as it was, from the thread that has seized it.
    fn end(self) -> Result<()> {
        let mut status = 0;
        // SAFETY: numbers, and a place for one.
        let outcome = unsafe {
            libc::ptrace(libc::PTRACE_INTERRUPT, self.0, 0, 0);
            libc::waitpid(self.0, &raw mut status, libc::__WALL);
            libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0)
        };
        ensure!(outcome == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }
}

/// Refused while it is traced, observed no more when a tracer comes, and
/// accepted when it is gone.
fn traced() -> Result<()> {
    let life = (LIFE * 3).to_string();
    let mut program = Program::start(&program()?, &[&life, "nothing", "0"])?;
    let pid = program.pid();
    let reason = format!("is traced by process {}", std::process::id());
    let told = |report: &Report| {
        report.expect_code(&[4])?;
        let message = report.message();
        let named = message.contains(&reason) || message.contains("is traced by process");
        ensure!(named, "{reason:?} is not told:\n{message}\n{report}");
        ensure!(
            breakpoints::in_process(pid)?.is_empty(),
            "breakpoints\n{report}"
        );
        Ok(())
    };
    let tracer = Tracer::of(pid)?;
    told(&inspect("trace", pid)?.run()?)?;
    tracer.end()?;
    let running = inspect("trace", pid)?.start()?;
    breakpoints::wait_for(pid, Duration::from_secs(10))?;
    let tracer = Tracer::of(pid)?;
    breakpoints::wait_until_gone(pid, NOTICED)?;
    told(&running.finish(Duration::from_secs(30))?)?;
    tracer.end()?;
    accepted(&inspect("trace", pid)?.run()?, &mut program)
}

/// A program that handles its own breakpoints would not get their signals.
fn own_breakpoints() -> Result<()> {
    let mut program = start("trap", 0, &[])?;
    ensure!(
        breakpoints::in_process(program.pid())?.len() == 1,
        "it has set none"
    );
    let report = inspect("trace", program.pid())?.run()?;
    refused(&report, &mut program, "handles their signal itself", 1)
}

/// Resident memory of its own in kilobytes.
fn own_memory(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.context("no RssAnon")?.trim().trim_end_matches(" kB");
    Ok(number.parse()?)
}

/// 20 000 mappings would cost 80 MB; 40 cost what they may.
fn many_mappings() -> Result<()> {
    for mode in ["trace", "auto"] {
        let mut program = start("code", 0, &["20000"])?;
        let before = own_memory(program.pid())?;
        let report = inspect(mode, program.pid())?.run()?;
        let after = own_memory(program.pid())?;
        ensure!(
            after < before + 256,
            "its memory has grown from {before} to {after} KiB\n{report}"
        );
        refused(
            &report,
            &mut program,
            "20001 times: breakpoints would cost it",
            0,
        )?;
    }
    let mut program = start("code", 0, &["40"])?;
    accepted(&inspect("trace", program.pid())?.run()?, &mut program)
}

/// The kernel puts breakpoints into new mappings by itself.
fn many_mappings_later() -> Result<()> {
    let mut program = start("code", 3, &["2000"])?;
    let report = inspect("trace", program.pid())?.run()?;
    refused(
        &report,
        &mut program,
        "2001 times: breakpoints would cost it",
        0,
    )
}

/// A list of 20 MB, of which the C library stands at the end.
fn long_list() -> Result<()> {
    const TIMES: &str = "20000";
    let mut directory = lab::fresh("long")?;
    for _ in 0..4 {
        directory = directory.join("n".repeat(240));
    }
    fs::create_dir_all(&directory)?;
    let file = directory.join("page");
    fs::write(&file, [0; 4096])?;
    let mut program = start("file", 0, &[TIMES, &file.to_string_lossy()])?;
    let list = fs::read(format!("/proc/{}/maps", program.pid()))?;
    ensure!(list.len() > 20 << 20, "the list has {} bytes", list.len());
    accepted(&inspect("trace", program.pid())?.run()?, &mut program)
}

/// Two of us share the kernel's breakpoints.
fn two_at_a_time() -> Result<()> {
    let life = (LIFE * 2).to_string();
    let mut program = Program::start(&program()?, &[&life, "nothing", "0"])?;
    let pid = program.pid();
    let first = Inspection::by_mode("trace", WATCHED * 2)?
        .arguments(["-p", &pid.to_string()])
        .start()?;
    breakpoints::wait_for(pid, Duration::from_secs(10))?;
    let second = inspect("trace", pid)?.run()?;
    let first = first.finish(Duration::from_secs(40))?;
    followed(&first, pid)?;
    accepted(&second, &mut program)
}

/// From 6.18 on, the kernel makes calls of breakpoints on such instructions.
fn calls() -> Result<()> {
    let flags = [
        "-shared",
        "-fPIC",
        "-fno-builtin",
        "-fcf-protection=none",
        "-fpatchable-function-entry=5",
    ];
    let plain = lab::compile("cc", "nop_allocator.c", &flags, "nop_allocator-plain.so")?;
    let library = lab::path("nop_allocator.so")?;
    with_long_nops(&plain, &library)?;
    let mut command = Command::new(program()?);
    command
        .args([&LIFE.to_string(), "nothing", "0"])
        .env("LD_PRELOAD", &library);
    let mut program = Program::from_command(command)?;
    let pid = program.pid();
    let running = inspect("trace", pid)?.start()?;
    breakpoints::wait_for(pid, Duration::from_secs(10))?;
    thread::sleep(Duration::from_secs(1));
    let changed = breakpoints::differing(pid)?;
    let report = running.finish(Duration::from_secs(30))?;
    ensure!(!changed.is_empty(), "nothing is probed\n{report}");
    accepted(&report, &mut program)
}

/// Makes one instruction of each five `nop`.
fn with_long_nops(from: &Path, to: &Path) -> Result<()> {
    const LONG: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];
    let mut bytes = fs::read(from)?;
    let mut made = 0;
    // Functions are aligned, and the room before one may look like its own.
    for at in (0..bytes.len() - LONG.len()).step_by(16) {
        if bytes[at..at + LONG.len()] == [0x90; LONG.len()] {
            bytes[at..at + LONG.len()].copy_from_slice(&LONG);
            made += 1;
        }
    }
    ensure!(made >= 4, "{made} functions begin with room");
    Ok(fs::write(to, bytes)?)
}
