use super::*;
use std::time::{Duration, Instant};

/// A child that allocates, sets a seccomp filter when told to, and goes
/// on; forked before any probe descriptor exists.
struct Child {
    pid: i32,
    go: std::io::PipeWriter,
}

impl Child {
    fn start() -> Self {
        let (go_read, go) = std::io::pipe().unwrap();
        // SAFETY: the child uses memory of its own and system calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above; it is killed by the test.
            unsafe {
                let mut byte = 0u8;
                libc::read(go_read.as_raw_fd(), (&raw mut byte).cast(), 1);
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT);
                loop {
                    libc::free(std::hint::black_box(libc::malloc(64)));
                }
            }
        }
        Self { pid, go }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, which is not waited for elsewhere.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// A child and a capture that does not follow it yet; none where that cannot be.
fn prepared() -> Option<(Child, Capture)> {
    if !object::is_embedded() || !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs the kernel object and root");
        return None;
    }
    let child = Child::start();
    let list = Quarantine::open(std::path::Path::new("/nonexistent/list"));
    let capture = Capture::untried(Sizes { live_blocks: 1024 }, list).unwrap();
    Some((child, capture))
}

/// As on a kernel that kills processes under seccomp at a probed return.
#[test]
fn a_filter_set_under_our_probes_takes_them_off() {
    let Some((mut child, mut capture)) = prepared() else {
        return;
    };
    let id = child.pid as u32;
    capture.seccomp_survives = false;
    capture
        .attach(
            Process::of(id).unwrap(),
            agent_ebpf::abi::heap::Target::COUNT_ONLY,
        )
        .unwrap();
    capture.tick();
    assert!(capture.target(id).unwrap().is_attached());
    std::io::Write::write_all(&mut child.go, b"g").unwrap();
    let began = Instant::now();
    while capture.target(id).unwrap().is_attached() {
        assert!(began.elapsed() < Duration::from_secs(5), "still probed");
        std::thread::sleep(Duration::from_millis(10));
        capture.tick();
    }
    let target = capture.target(id).unwrap();
    assert_eq!(target.refused, Some(Refusal::Seccomp(id)));
    let calls = capture.counts(id).allocations;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(capture.counts(id).allocations, calls, "probes are still on");
    assert!(crate::host::process::any_thread_is_filtered(id));
}

/// A daemon follows one process after the other for weeks.
#[test]
fn a_target_that_is_forgotten_leaves_no_stacks() {
    let Some((mut child, mut capture)) = prepared() else {
        return;
    };
    let id = child.pid as u32;
    capture.attach(Process::of(id).unwrap(), 1).unwrap();
    std::io::Write::write_all(&mut child.go, b"g").unwrap();
    let began = Instant::now();
    while capture.stacks.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(5), "no stack is seen");
        std::thread::sleep(Duration::from_millis(10));
        capture.drain();
    }
    let of_child = |stack: &Stack| stack.tgid == id;
    assert!(capture.stacks.values().all(of_child));
    capture.forget(id);
    assert!(capture.stacks.is_empty());
}
