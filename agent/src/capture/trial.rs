//! Which way of attaching works on this kernel, found by trying it on a child
//! of our own. Versions do not tell: distributions port both features and
//! faults.
//!
//! The child allocates from a second thread (some kernels run multi-point
//! probes for the main thread only), from a forked child (which must survive
//! its inherited breakpoints), and at last under strict seccomp, where a kernel
//! that serves probes by a system call would kill it.

use std::{
    io::{Read as _, Write as _},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Capture, governor::costs::measure, links::Method, target::Probing};
use crate::host::process::Process;

/// The hidden subcommand that runs [`subject`].
pub const SUBCOMMAND: &str = "__trial";
/// Calls made by each of the three parts.
const CALLS: u64 = 500;
/// A trial that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tries one way of attaching.
///
/// # Errors
/// Why it does not work here.
pub fn run(capture: &mut Capture, method: Method) -> Result<()> {
    let mut child = start()?;
    let outcome = try_on(capture, method, &mut child);
    // Its end was awaited; if it hangs, it is ours to end.
    drop(child.kill());
    drop(child.wait());
    capture.forget(child.id());
    outcome
}

/// Starts [`subject`], which waits for its turn.
pub(super) fn start() -> Result<Child> {
    Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the trial process")
}

fn try_on(capture: &mut Capture, method: Method, child: &mut Child) -> Result<()> {
    let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
        bail!("the trial process has no pipes");
    };
    let mut ready = [0u8; 1];
    output
        .read_exact(&mut ready)
        .context("the trial process does not start")?;
    let process = Process::of(child.id())?;
    capture.attach_by(
        process,
        agent_ebpf::abi::heap::Target::COUNT_ONLY,
        method,
        &[],
        Probing::Always,
    )?;
    // From here on returns are probed as well.
    capture.set_mean(child.id(), 1)?;
    let before = capture.counts(child.id());
    input.write_all(b"g")?;
    // Sent when thread and fork are done, before seccomp.
    output
        .read_exact(&mut ready)
        .context("the trial process died")?;
    let counts = capture.counts(child.id());
    let seen = counts.allocations - before.allocations;
    ensure!(
        seen >= CALLS,
        "only {seen} of {CALLS} calls of a second thread were seen"
    );
    let returns = counts.sampled - before.sampled;
    ensure!(
        returns >= CALLS,
        "only {returns} of {CALLS} returns were seen"
    );
    ensure!(
        ready == *b"f",
        "a forked child died of inherited breakpoints"
    );
    input.write_all(b"g")?;
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "a process under seccomp died of probes");
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "the trial process hangs");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What the child does.
pub fn subject() -> ExitCode {
    let turn = |mark: &[u8]| {
        let mut go = [0u8; 1];
        let said = std::io::stdout()
            .write_all(mark)
            .and_then(|()| std::io::stdout().flush());
        said.and_then(|()| std::io::stdin().read_exact(&mut go))
            .is_ok()
            .then_some(go)
    };
    allocate();
    match turn(b"r") {
        Some([b'g']) => {}
        Some([measure::SERVE]) => return measure::serve(),
        _ => return ExitCode::FAILURE,
    }
    if std::thread::spawn(allocate).join().is_err() {
        return ExitCode::FAILURE;
    }
    // SAFETY: the child allocates and leaves by a system call; the parent
    // waits for it. No other thread runs, so no lock is held.
    let fork_survived = unsafe {
        match libc::fork() {
            0 => {
                allocate();
                libc::_exit(0)
            }
            child => {
                let mut status = 0;
                libc::waitpid(child, &raw mut status, 0) == child && status == 0
            }
        }
    };
    if turn(if fork_survived { b"f" } else { b"d" }).is_none() {
        return ExitCode::FAILURE;
    }
    // SAFETY: from here only memory from the thread's cache and exit(2) are
    // used, which strict mode allows.
    unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT);
        allocate();
        libc::syscall(libc::SYS_exit, 0);
    }
    ExitCode::FAILURE
}

/// Takes and gives back a small block: after the first time without a system
/// call.
fn allocate() {
    for _ in 0..CALLS {
        // SAFETY: a block from malloc goes back to free.
        unsafe { libc::free(std::hint::black_box(libc::malloc(64))) };
    }
}
