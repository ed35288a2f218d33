use super::*;
use std::time::{Duration, Instant};

/// A child that allocates when told to; forked before any probe descriptor
/// exists.
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

#[test]
fn events_are_on_while_there_is_a_reason() {
    let Some((child, mut capture)) = prepared() else {
        return;
    };
    let id = child.pid as u32;
    let attach = |capture: &mut Capture| {
        let process = Process::of(id).unwrap();
        let mean = agent_ebpf::abi::heap::Target::COUNT_ONLY;
        capture.attach(process, mean).unwrap();
    };
    // Fork, exec and exit; signals and who is killed for want of memory.
    let (followed, watched) = (3, 2);
    assert_eq!(capture.events.len(), 0);
    attach(&mut capture);
    assert_eq!(capture.events.len(), followed + watched);
    capture.follow_waits(id).unwrap();
    assert_eq!(capture.events.len(), followed + watched + 1);
    capture.pause_waits(id);
    // It was probed until now, and may still die of it; its forks are its own.
    capture.forget(id);
    assert_eq!(capture.events.len(), followed - 1 + watched);
    for (seconds, on) in [(59, followed - 1 + watched), (71, 0)] {
        let then = crate::host::kernel::monotonic_ns() - seconds * 1_000_000_000;
        let lately = capture.deaths.lately.get_mut(&id).unwrap();
        lately.off_ns = Some(then);
        capture.tend_deaths();
        assert_eq!(capture.events.len(), on, "{seconds} s later");
    }
    // The end of one that is gone has been told.
    attach(&mut capture);
    drop(child);
    let began = Instant::now();
    while !capture.target(id).unwrap().ended {
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "its end is not told"
        );
        std::thread::sleep(Duration::from_millis(10));
        capture.drain();
    }
    capture.forget(id);
    capture.tend_deaths();
    assert_eq!(capture.events.len(), 0);
}

/// Nobody sees threads end while no process is followed.
#[test]
fn records_of_threads_do_not_outlive_the_event_of_their_end() {
    let Some((child, mut capture)) = prepared() else {
        return;
    };
    let stale = |capture: &Capture| {
        let mut found = Vec::new();
        for (name, key) in [("THREADS", 7u64), ("THREAD_PLACES", 7), ("OPEN", 0)] {
            let map = object::data(capture.object.aya_map(name).unwrap()).unwrap();
            let mut value = vec![0u8; map.info().unwrap().value_size() as usize];
            // SAFETY: the key is as long as the longest, the value as its own.
            let there = unsafe { bpf::lookup(capture.object.map(name).unwrap(), &key, &mut value) };
            if there.is_ok() && value.iter().any(|byte| *byte != 0) {
                found.push(name);
            }
        }
        found
    };
    for (name, key) in [("THREADS", 7u64), ("THREAD_PLACES", 7), ("OPEN", 0)] {
        let map = object::data(capture.object.aya_map(name).unwrap()).unwrap();
        let value = vec![1u8; map.info().unwrap().value_size() as usize];
        let map = capture.object.map(name).unwrap();
        // SAFETY: as above.
        unsafe { bpf::update(map, &key, value.as_slice()) }.unwrap();
    }
    assert_eq!(stale(&capture), ["THREADS", "THREAD_PLACES", "OPEN"]);
    let id = child.pid as u32;
    capture
        .events
        .need(&mut capture.object, Reason::Target(id))
        .unwrap();
    assert!(stale(&capture).is_empty(), "{:?}", stale(&capture));
}
