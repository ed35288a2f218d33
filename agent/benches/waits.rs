//! What following futex waits costs, as a table: `cargo xtask bench`.
//!
//! Two threads hand over to each other by a futex on one processor, so that
//! every hand-over is a wait, and two others by pipes, which are switches
//! without one. Measured by turns, the minimum over all passes: alone,
//! followed, while another process is followed, and, for comparison, with what
//! following waits in other ways would need: an event of context switches on
//! the process's threads, and empty kernel programs at the entry and exit of
//! every system call.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

#[expect(dead_code, reason = "shared with the benchmark of tracing")]
#[path = "cost/processors.rs"]
mod processors;

use std::{
    env,
    io::{self, BufRead as _, BufReader, Lines, Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lingerscope::{
    capture::{Capture, links::Method, object::Sizes, trial},
    host::{
        privilege,
        process::{self, Process},
        quarantine::Quarantine,
    },
};

use self::processors::Processors;

const SUBJECT: &str = "hand-over";
/// Every variant is measured once in each.
const PASSES: usize = 5;
/// Lines of one measurement.
const LINES: usize = 6;
/// What one line is measured over.
const SLICE: Duration = Duration::from_millis(40);

fn main() -> ExitCode {
    if lingerscope::reader::is_asked_for() {
        return lingerscope::reader::serve::run();
    }
    match env::args().nth(1).as_deref() {
        // Capture tries its ways of attaching on a copy of this program.
        Some(trial::SUBCOMMAND) => return trial::subject(),
        Some(SUBJECT) => return hand_over(),
        _ => {}
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command line tool for developers")]
fn complain(error: &anyhow::Error) {
    eprintln!("bench: {error:#}");
}

/// Nanoseconds per wait, per switch that is none, and per system call that
/// does nothing.
#[derive(Clone, Copy, Debug)]
struct Cost {
    wait: f64,
    switch: f64,
    call: f64,
}

impl Cost {
    const NONE: Self = Self {
        wait: f64::MAX,
        switch: f64::MAX,
        call: f64::MAX,
    };

    fn lower(&mut self, other: Self) {
        self.wait = self.wait.min(other.wait);
        self.switch = self.switch.min(other.switch);
        self.call = self.call.min(other.call);
    }
}

fn run() -> Result<()> {
    if let Some(sentence) = privilege::missing() {
        bail!(sentence);
    }
    let processors = Processors::choose()?;
    let mut subject = Subject::start(&processors)?;
    let other = Subject::start(&processors)?;
    other.stop(true)?;
    let nowhere = Quarantine::open(std::path::Path::new("/nonexistent/list"));
    let mut capture = Capture::new(Sizes { live_blocks: 1024 }, &Method::ALL, nowhere)?;
    let (pid, stranger) = (subject.child.id(), other.child.id());
    for id in [pid, stranger] {
        let refused = capture.prepare(Process::of(id)?);
        refused.map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
    }
    let names = [
        "alone",
        "followed",
        "another process is followed",
        "an event on its threads",
        "empty programs on all system calls",
    ];
    let mut costs = [Cost::NONE; 5];
    let mut stacks = 0.0;
    for _ in 0..PASSES {
        let [alone, followed, stranger_followed, events, tracepoints] = &mut costs;
        alone.lower(subject.best()?);
        capture.follow_waits(pid)?;
        followed.lower(subject.best()?);
        let counts = capture.waits()?.remove(&pid).unwrap_or_default().counts;
        stacks = counts.unwound as f64 / counts.waits.max(1) as f64;
        ensure!(counts.waits > 10_000, "the waits were not seen");
        capture.pause_waits(pid);
        capture.follow_waits(stranger)?;
        stranger_followed.lower(subject.best()?);
        capture.pause_waits(stranger);
        let on_threads = switch_events(pid)?;
        events.lower(subject.best()?);
        drop(on_threads);
        let _links = [
            empty_tracepoint(c"sys_enter")?,
            empty_tracepoint(c"sys_exit")?,
        ];
        tracepoints.lower(subject.best()?);
    }
    println!("Futex waits, ns each; a wait and a switch are a hand-over between two threads");
    println!(
        "{:36} {:>8} {:>7} {:>12} {:>7} {:>10} {:>7}",
        "", "wait", "ratio", "other switch", "ratio", "other call", "ratio"
    );
    for (name, cost) in names.iter().zip(&costs) {
        println!(
            "{name:36} {:>8.0} {:>7.2} {:>12.0} {:>7.2} {:>10.0} {:>7.2}",
            cost.wait,
            cost.wait / costs[0].wait,
            cost.switch,
            cost.switch / costs[0].switch,
            cost.call,
            cost.call / costs[0].call
        );
    }
    println!("one wait in {:.0} was unwound", 1.0 / stacks.max(1e-9));
    Ok(())
}

/// This program again, handing over; killed at the end.
struct Subject {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Subject {
    fn start(processors: &Processors) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg(SUBJECT)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        processors::pin(child.id(), processors.theirs)?;
        let output = child.stdout.take().context("no output")?;
        let mut subject = Self {
            child,
            lines: BufReader::new(output).lines(),
        };
        // Its second thread begins when it is bound.
        subject.line()?;
        Ok(subject)
    }

    fn stop(&self, stop: bool) -> Result<()> {
        let signal = if stop { libc::SIGSTOP } else { libc::SIGCONT };
        // SAFETY: kill takes two numbers.
        ensure!(
            // SAFETY: takes two numbers; the child is ours and not yet waited for.
            unsafe { libc::kill(self.child.id() as i32, signal) } == 0,
            "the measured program has ended"
        );
        Ok(())
    }

    fn line(&mut self) -> Result<Cost> {
        let line = self.lines.next().context("it says nothing any more")??;
        let fields: Vec<&str> = line.split(' ').collect();
        let [wait, switch, call] = fields[..] else {
            bail!("an odd line: {line}");
        };
        Ok(Cost {
            wait: wait.parse()?,
            switch: switch.parse()?,
            call: call.parse()?,
        })
    }

    /// The least of some lines; the first one may be of before.
    fn best(&mut self) -> Result<Cost> {
        self.line()?;
        self.line()?;
        let mut best = Cost::NONE;
        for _ in 0..LINES {
            best.lower(self.line()?);
        }
        Ok(best)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whose turn it is.
static TURN: AtomicU32 = AtomicU32::new(0);

/// Hands over for ever, and says what that takes.
fn hand_over() -> ExitCode {
    // Until it is bound to a processor.
    thread::sleep(Duration::from_millis(50));
    thread::spawn(|| {
        loop {
            take_turn(1);
        }
    });
    let Ok(mut ball) = Ball::new() else {
        return ExitCode::FAILURE;
    };
    loop {
        let wait = measure(|| take_turn(0)) / 2.0;
        let switch = measure(|| ball.there_and_back()) / 2.0;
        println!("{wait} {switch} {}", measure(nothing));
    }
}

/// A byte that a thread sends back by another pipe.
struct Ball {
    there: io::PipeWriter,
    back: io::PipeReader,
}

impl Ball {
    fn new() -> io::Result<Self> {
        let (mut received, there) = io::pipe()?;
        let (back, mut returned) = io::pipe()?;
        thread::spawn(move || -> io::Result<()> {
            let mut byte = [0];
            loop {
                received.read_exact(&mut byte)?;
                returned.write_all(&byte)?;
            }
        });
        Ok(Self { there, back })
    }

    fn there_and_back(&mut self) {
        let mut byte = [0];
        drop(self.there.write_all(&byte));
        drop(self.back.read_exact(&mut byte));
    }
}

fn measure(mut once: impl FnMut()) -> f64 {
    let began = Instant::now();
    let mut times = 0_u32;
    while began.elapsed() < SLICE {
        for _ in 0..100 {
            once();
        }
        times += 100;
    }
    began.elapsed().as_nanos() as f64 / f64::from(times)
}

fn nothing() {
    // SAFETY: takes nothing.
    std::hint::black_box(unsafe { libc::getppid() });
}

fn take_turn(mine: u32) {
    while TURN.load(Ordering::Acquire) != mine {
        futex(libc::FUTEX_WAIT, 1 - mine);
    }
    TURN.store(1 - mine, Ordering::Release);
    futex(libc::FUTEX_WAKE, 1);
}

fn futex(operation: i32, value: u32) {
    // SAFETY: a valid address, no time limit.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            TURN.as_ptr(),
            operation | libc::FUTEX_PRIVATE_FLAG,
            value,
            ptr::null::<libc::timespec>(),
        )
    };
}

/// An event at every switch of a process's threads, without a program; dropped,
/// it is off. The layout is the first version of `perf_event_attr`
/// (include/uapi/linux/perf_event.h).
fn switch_events(pid: u32) -> Result<Vec<OwnedFd>> {
    const SOFTWARE: u64 = 1;
    const CONTEXT_SWITCHES: u64 = 3;
    const SIZE: u64 = 64;
    const CLOSE_ON_EXEC: u64 = 8;
    let mut attributes = [0_u64; 8];
    attributes[0] = SOFTWARE | SIZE << 32;
    attributes[1] = CONTEXT_SWITCHES;
    // At every one.
    attributes[2] = 1;
    let open = |thread: u32| {
        // SAFETY: the attributes are as long as they say.
        let descriptor = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                attributes.as_ptr(),
                thread,
                -1,
                -1,
                CLOSE_ON_EXEC,
            )
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error()).context("the kernel refuses an event");
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
    };
    process::threads(pid).into_iter().map(open).collect()
}

/// An empty program on a raw tracepoint; dropped, it is off. Commands and
/// layouts as in include/uapi/linux/bpf.h.
fn empty_tracepoint(name: &std::ffi::CStr) -> Result<OwnedFd> {
    const PROG_LOAD: u32 = 5;
    const RAW_TRACEPOINT_OPEN: u32 = 17;
    const TYPE_RAW_TRACEPOINT: u64 = 17;
    // r0 = 0; exit
    let instructions: [u64; 2] = [0xb7, 0x95];
    let load: [u64; 3] = [
        TYPE_RAW_TRACEPOINT | (instructions.len() as u64) << 32,
        instructions.as_ptr() as u64,
        c"GPL".as_ptr() as u64,
    ];
    let program = bpf(PROG_LOAD, &load)?;
    let open = [name.as_ptr() as u64, program.as_raw_fd() as u64];
    bpf(RAW_TRACEPOINT_OPEN, &open)
}

fn bpf(command: u32, attributes: &[u64]) -> Result<OwnedFd> {
    // SAFETY: the attributes are as long as they say, and what they point to
    // outlives the call.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(attributes),
        )
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error()).context("the kernel refuses an empty program");
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}
