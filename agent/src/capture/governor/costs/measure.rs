//! Measures what a hit costs here, on a child of our own, in less than 0.3 s.
//!
//! The child allocates and frees in a loop and times itself: untraced, with
//! calls only counted, with every call recorded, from a deeper stack, in a
//! child that it forks, and at an instruction that must be single-stepped.
//! Each is measured a few times and the median counts, because another load
//! on the machine makes single ones longer.

use std::{
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, ExitCode},
    time::{Duration, Instant},
};

use agent_ebpf::abi::heap::{Cookie, FunctionKind, Target};
use anyhow::{Context as _, Result, bail, ensure};

use super::Costs;
use crate::{
    capture::{
        Capture,
        bpf::Point,
        links::{FilePoints, Links, Method},
        probe_point::IN_PLACE,
        target::Probing,
        trial,
    },
    host::{mapping, process::Process},
};

/// What the parent sends to a trial's child instead of the trial's first go.
pub const SERVE: u8 = b'm';
/// The child answers or has failed.
const PATIENCE: Duration = Duration::from_millis(250);
/// What is not begun by then keeps its assumed value.
const ENOUGH: Duration = Duration::from_millis(150);
/// Calls timed at once, and how often; odd, for a median.
const PAIRS: u8 = 200;
const REPEATS: usize = 5;
/// Of the calls that take longer.
const STEPS: u8 = 100;
const FEW: usize = 3;
/// Further frames of the deeper stack.
const DEPTH: u8 = 40;
/// Frames of the child's shortest stack, about.
const SHALLOW: f64 = 8.0;

/// What the child is told to do.
#[derive(Clone, Copy)]
enum Task {
    /// Allocate and free.
    Pairs,
    /// The same in a forked child.
    Forked,
    /// Call [`stepped`].
    Steps,
}

impl Task {
    const fn letter(self) -> u8 {
        match self {
            Self::Pairs => b'p',
            Self::Forked => b'f',
            Self::Steps => b's',
        }
    }
}

/// Measures the costs of probing by the way that `capture` has chosen. To be
/// called before there are targets: records that wait in the ring are dropped.
/// What cannot be measured keeps its assumed value.
pub fn measure(capture: &mut Capture) -> Costs {
    let method = capture.method();
    let assumed = Costs::assumed(method);
    // Taking perf events off alone takes seconds, and where that is so no
    // window opens anyway.
    if method == Method::Perf {
        return assumed;
    }
    let began = Instant::now();
    let costs = match on_child(capture, assumed, began) {
        Ok(costs) => costs.clamped(),
        Err(error) => {
            tracing::debug!(error = %format_args!("{error:#}"), "the cost of probing is assumed, not measured");
            assumed
        }
    };
    capture.drain();
    capture.stacks.clear();
    tracing::debug!(took = ?began.elapsed(), ?costs, "cost of probing");
    costs
}

fn on_child(capture: &mut Capture, assumed: Costs, began: Instant) -> Result<Costs> {
    let mut child = trial::start()?;
    let costs =
        Subject::of(&mut child).and_then(|mut subject| subject.measure(capture, assumed, began));
    drop(child.kill());
    drop(child.wait());
    capture.forget(child.id());
    costs
}

/// The child as its parent sees it.
struct Subject {
    pid: u32,
    input: ChildStdin,
    output: ChildStdout,
}

impl Subject {
    fn of(child: &mut Child) -> Result<Self> {
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the measured process has no pipes");
        };
        let mut subject = Self {
            pid: child.id(),
            input,
            output,
        };
        let mut ready = [0u8; 1];
        subject.receive(&mut ready)?;
        ensure!(ready == *b"r", "the measured process does not start");
        subject.input.write_all(&[SERVE])?;
        Ok(subject)
    }

    fn measure(&mut self, capture: &mut Capture, assumed: Costs, began: Instant) -> Result<Costs> {
        let mut costs = assumed;
        let untraced = self.median(Task::Pairs, PAIRS, 0, REPEATS)?;
        let untraced_step = self.median(Task::Steps, STEPS, 0, FEW)?;

        let method = capture.method();
        let attaching = Instant::now();
        capture.attach_by(
            Process::of(self.pid)?,
            Target::COUNT_ONLY,
            method,
            &[],
            Probing::Always,
        )?;
        costs.attach = attaching.elapsed();
        // The first calls copy pages and fill caches.
        self.run(Task::Pairs, PAIRS, 0)?;
        let before = capture.counts(self.pid).allocations;
        let counted = self.median(Task::Pairs, PAIRS, 0, REPEATS)? - untraced;
        let seen = capture.counts(self.pid).allocations - before;
        ensure!(
            seen >= REPEATS as u64 * u64::from(PAIRS),
            "only {seen} calls of the measured process were seen"
        );
        // Entry, result and free.
        costs.trap = counted / 3.0;
        if assumed.inherited > 0.0 {
            costs.inherited = (self.median(Task::Forked, PAIRS, 0, FEW)? - untraced).max(0.0);
        }

        capture.set_mean(self.pid, 1)?;
        self.run(Task::Pairs, PAIRS, 0)?;
        self.run(Task::Pairs, PAIRS, DEPTH)?;
        let recorded = self.median(Task::Pairs, PAIRS, 0, REPEATS)? - untraced;
        let deep = self.median(Task::Pairs, PAIRS, DEPTH, FEW)? - untraced;
        costs.frame = (deep - recorded) / f64::from(DEPTH);
        costs.record = recorded - counted - SHALLOW * costs.frame.max(0.0);

        let slot = capture.target(self.pid).map_or(0, |target| target.slot);
        let detaching = Instant::now();
        capture.close_window(self.pid);
        costs.detach = detaching.elapsed();
        capture.detach(self.pid);

        if began.elapsed() < ENOUGH {
            costs.stepped = self.step(capture, slot)? - untraced_step;
        }
        Ok(costs)
    }

    /// Nanoseconds of a call that traps at an instruction which the kernel
    /// single-steps.
    fn step(&mut self, capture: &mut Capture, slot: u32) -> Result<f64> {
        let points = FilePoints {
            calls: Vec::new(),
            frees: vec![Point {
                offset: stepped_offset()?,
                cookie: Cookie::new(slot, FunctionKind::Free, IN_PLACE, false, true).0,
            }],
        };
        let method = capture.method;
        let mut links = Links::default();
        links.attach(
            &mut capture.object,
            method,
            self.pid,
            &[(Path::new("/proc/self/exe").to_owned(), points)],
        )?;
        let time = self.median(Task::Steps, STEPS, 0, FEW);
        links.detach(&mut capture.object);
        time
    }

    /// Median time of one call, nanoseconds.
    fn median(&mut self, task: Task, calls: u8, depth: u8, repeats: usize) -> Result<f64> {
        let mut times = (0..repeats)
            .map(|_| self.run(task, calls, depth))
            .collect::<Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        times
            .get(repeats / 2)
            .copied()
            .context("nothing was measured")
    }

    fn run(&mut self, task: Task, calls: u8, depth: u8) -> Result<f64> {
        self.input.write_all(&[task.letter(), calls, depth])?;
        let mut answer = [0u8; 8];
        self.receive(&mut answer)?;
        let nanoseconds = u64::from_le_bytes(answer);
        ensure!(
            nanoseconds != u64::MAX,
            "a child of the measured process died"
        );
        Ok(nanoseconds as f64 / f64::from(calls))
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<()> {
        let mut wait = libc::pollfd {
            fd: self.output.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid descriptor record.
        let ready = unsafe { libc::poll(&raw mut wait, 1, PATIENCE.as_millis() as i32) };
        ensure!(ready == 1, "the measured process does not answer");
        self.output
            .read_exact(bytes)
            .context("the measured process died")
    }
}

/// The offset of [`stepped`] in our own executable, which the child runs too.
fn stepped_offset() -> Result<u64> {
    let address = stepped as *const () as u64;
    mapping::of(std::process::id())?
        .iter()
        .find(|mapping| (mapping.start..mapping.end).contains(&address))
        .map(|mapping| address - mapping.start + mapping.offset)
        .context("our own code is not mapped")
}

/// What the child does once it was sent [`SERVE`].
pub fn serve() -> ExitCode {
    let mut order = [0u8; 3];
    while std::io::stdin().read_exact(&mut order).is_ok() {
        let [task, calls, depth] = order;
        let time = match task {
            b'p' => deep(depth, calls),
            b'f' => forked(calls),
            b's' => steps(calls),
            _ => return ExitCode::FAILURE,
        };
        let said = std::io::stdout()
            .write_all(&time.to_le_bytes())
            .and_then(|()| std::io::stdout().flush());
        if said.is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn nanoseconds(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

/// So many frames further down.
#[inline(never)]
fn deep(depth: u8, calls: u8) -> u64 {
    let time = match depth.checked_sub(1) {
        Some(less) => deep(std::hint::black_box(less), calls),
        None => pairs(calls),
    };
    // Something is left to do, so this is no jump.
    std::hint::black_box(time)
}

#[inline(never)]
fn pairs(calls: u8) -> u64 {
    let began = Instant::now();
    for _ in 0..calls {
        // SAFETY: a block from malloc goes back to free.
        unsafe { libc::free(std::hint::black_box(libc::malloc(64))) };
    }
    nanoseconds(began)
}

fn steps(calls: u8) -> u64 {
    let began = Instant::now();
    for _ in 0..calls {
        std::hint::black_box(stepped(std::hint::black_box(8)));
    }
    nanoseconds(began)
}

/// Its first instruction cannot be emulated by the kernel
/// (arch/x86/kernel/uprobes.c emulates push, nop, jumps and calls).
#[unsafe(naked)]
extern "C" fn stepped(argument: u64) -> u64 {
    core::arch::naked_asm!("test rdi, rdi", "mov rax, rdi", "ret")
}

/// Time of the same calls in a forked child.
fn forked(calls: u8) -> u64 {
    let mut ends = [0i32; 2];
    // SAFETY: room for both descriptors. The child writes eight bytes and
    // leaves by a system call; no other thread runs, so no lock is held.
    unsafe {
        if libc::pipe(ends.as_mut_ptr()) != 0 {
            return u64::MAX;
        }
        let [read, write] = ends;
        let child = libc::fork();
        if child == 0 {
            let time = pairs(calls).to_le_bytes();
            libc::write(write, time.as_ptr().cast(), time.len());
            libc::_exit(0);
        }
        libc::close(write);
        let mut time = [0xffu8; 8];
        let got = libc::read(read, time.as_mut_ptr().cast(), time.len());
        libc::close(read);
        if child > 0 {
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        if got == 8 {
            u64::from_le_bytes(time)
        } else {
            u64::MAX
        }
    }
}
