use super::*;
use crate::{
    analysis::Identity,
    finding::{Confidence, Estimate, Finding, Frame, Verdict},
};

/// Stacks of real programs, shortened (Rust 1.95, Tokio 1.54, glibc).
const TASK_ON_LOCK: &[&str] = &[
    "syscall",
    "std::sys::sync::mutex::futex::Mutex::lock_contended",
    "app::write_out",
    "app::consume::{{closure}}",
    "tokio::runtime::task::core::Core<T,S>::poll",
    "tokio::runtime::task::harness::Harness<T,S>::poll",
    "tokio::runtime::scheduler::multi_thread::worker::Context::run_task",
    "tokio::runtime::scheduler::multi_thread::worker::run",
    "tokio::runtime::blocking::task::BlockingTask<T>::poll",
    "tokio::runtime::task::raw::poll",
    "tokio::runtime::blocking::pool::Inner::run",
];
const PARKED: &[&str] = &[
    "syscall",
    "std::sys::sync::condvar::futex::Condvar::wait_optional_timeout",
    "tokio::runtime::scheduler::multi_thread::park::Parker::park",
    "tokio::runtime::scheduler::multi_thread::worker::Context::park_internal",
    "tokio::runtime::scheduler::multi_thread::worker::Context::run",
    "tokio::runtime::scheduler::multi_thread::worker::run",
    "<tokio::runtime::blocking::task::BlockingTask<T> as core::future::future::Future>::poll",
    "tokio::runtime::task::core::Core<T,S>::poll",
    "tokio::runtime::task::harness::Harness<T,S>::poll",
    "tokio::runtime::blocking::pool::Inner::run",
];
const CLOSURE_ON_LOCK: &[&str] = &[
    "syscall",
    "std::sys::sync::mutex::futex::Mutex::lock_contended",
    "app::closure",
    "<tokio::runtime::blocking::task::BlockingTask<T> as core::future::future::Future>::poll",
    "tokio::runtime::task::core::Core<T,S>::poll",
    "tokio::runtime::task::harness::Harness<T,S>::poll",
    "tokio::runtime::blocking::pool::Inner::run",
];
const IDLE: &[&str] = &[
    "syscall",
    "std::sys::sync::condvar::futex::Condvar::wait_optional_timeout",
    "tokio::runtime::blocking::pool::Inner::run",
    "std::sys::backtrace::__rust_begin_short_backtrace",
];
const MAIN: &[&str] = &[
    "syscall",
    "std::sys::sync::condvar::futex::Condvar::wait_optional_timeout",
    "tokio::runtime::park::Inner::park",
    "tokio::runtime::park::CachedParkThread::block_on",
    "tokio::runtime::context::runtime::enter_runtime",
    "tokio::runtime::runtime::Runtime::block_on",
    "app::main",
];
const POOL_ON_LOCK: &[&str] = &[
    "syscall",
    "std::sys::sync::mutex::futex::Mutex::lock_contended",
    "app::Worker::new::{{closure}}",
    "std::sys::backtrace::__rust_begin_short_backtrace",
];
const POOL_ON_CHANNEL: &[&str] = &[
    "syscall",
    "std::thread::park",
    "std::sync::mpmc::list::Channel<T>::recv",
    "app::Worker::new::{{closure}}",
    "std::sys::backtrace::__rust_begin_short_backtrace",
];
const C_ON_LOCK: &[&str] = &[
    "__lll_lock_wait",
    "pthread_mutex_lock",
    "drain",
    "start_thread",
];

fn frames(names: &[&str]) -> Vec<Frame> {
    let frame = |name: &&str| Frame {
        function: Some(Text::symbol(name)),
        ..Frame::default()
    };
    names.iter().map(frame).collect()
}

#[test]
fn classes_of_real_stacks() {
    for (names, class, on) in [
        (TASK_ON_LOCK, Class::Task, On::Lock),
        (PARKED, Class::ParkedWorker, On::Condvar),
        (CLOSURE_ON_LOCK, Class::SpawnBlocking, On::Lock),
        (IDLE, Class::IdlePoolThread, On::Condvar),
        (MAIN, Class::BlockOn, On::Condvar),
        (POOL_ON_LOCK, Class::Thread, On::Lock),
        (POOL_ON_CHANNEL, Class::Thread, On::Channel),
        (C_ON_LOCK, Class::Thread, On::Lock),
    ] {
        assert_eq!(classify(&frames(names), false), (class, on), "{names:?}");
    }
    // Without names nothing is known, whatever the futex says.
    assert_eq!(classify(&[], true), (Class::Unknown, On::Unknown));
}

fn growth() -> Finding {
    let identity = Identity::default();
    let fingerprint = finding::fingerprint(&identity.exe_basename, &["app::enqueue"]);
    Finding {
        fingerprint,
        id: String::new(),
        verdict: Verdict::UnboundedGrowth,
        confidence: Confidence::Suspected,
        leak: Verdict::UnboundedGrowth.leak(),
        leak_bytes_per_s: Estimate::exact(5000.0),
        live_bytes: Estimate::default(),
        live_blocks: Estimate::default(),
        oldest_s: None,
        site: Site::default(),
        tasks: Vec::new(),
        members: Vec::new(),
        evidence: Vec::new(),
        advice: String::new(),
        time_to_limit_s: None,
        suppressed_by: None,
    }
}

/// Findings after threads with these stacks have waited for so many seconds of
/// a minute.
fn after(open: &[(&[&str], u64)], mut findings: Vec<Finding>) -> Vec<Finding> {
    let mut stacks = BTreeMap::new();
    let mut waits = Waits::default();
    for (index, (names, seconds)) in open.iter().enumerate() {
        let id = StackId(index as u64 + 1);
        let stack = Stack {
            frames: frames(names),
            truncated: None,
        };
        stacks.insert(id, stack);
        waits.open.push(OpenWait {
            thread: 100 + index as u32,
            stack: Some(id),
            task: Some(7),
            contended: false,
            age: Duration::from_secs(*seconds),
            earlier: false,
        });
    }
    let places = places(&waits, &stacks);
    let minute = Duration::from_mins(1);
    blame(&mut findings, &places, minute, &Identity::default());
    findings
}

#[test]
fn a_stuck_consumer_beside_growth_is_blamed() {
    let findings = after(
        &[(TASK_ON_LOCK, 50), (PARKED, 55), (MAIN, 60)],
        vec![growth()],
    );
    assert_eq!(findings.len(), 2, "{findings:?}");
    let blocked = &findings[1];
    assert_eq!(blocked.verdict, Verdict::BlockedThread);
    assert_eq!(blocked.confidence, Confidence::Suspected);
    assert_eq!(
        finding::user_functions(&blocked.site.frames)
            .first()
            .unwrap(),
        "app::write_out"
    );
    let kinds = |finding: &Finding| {
        finding
            .evidence
            .iter()
            .map(|line| line.kind)
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(blocked), ["open-wait", "growth", "inside-poll"]);
    assert_eq!(kinds(&findings[0]), ["blocked-thread"]);
}

#[test]
fn healthy_waits_are_left_alone() {
    // Nothing grows; the wait is short; nobody waits for a lock.
    assert!(after(&[(TASK_ON_LOCK, 50)], Vec::new()).is_empty());
    assert_eq!(after(&[(TASK_ON_LOCK, 20)], vec![growth()]).len(), 1);
    let idle = [(PARKED, 60), (IDLE, 60), (MAIN, 60), (POOL_ON_CHANNEL, 60)];
    assert_eq!(after(&idle, vec![growth()]).len(), 1);
}

#[test]
fn workers_in_line_for_work_are_left_alone() {
    let line = [(POOL_ON_LOCK, 60), (POOL_ON_CHANNEL, 60)];
    assert_eq!(after(&line, vec![growth()]).len(), 1);
    // Whoever holds the lock is not waiting for work.
    assert_eq!(after(&line[..1], vec![growth()]).len(), 2);
}

#[test]
fn waits_of_one_place_are_added_up() {
    let id = StackId(1);
    let stack = Stack {
        frames: frames(TASK_ON_LOCK),
        truncated: None,
    };
    let ended = |task, count| EndedWaits {
        stack: Some(id),
        task: Some(task),
        contended: true,
        count,
        total: Duration::from_secs(count),
        longest: Duration::from_secs(task),
    };
    let waits = Waits {
        ended: vec![ended(3, 2), ended(4, 1), ended(3, 1)],
        ..Waits::default()
    };
    let places = places(&waits, &BTreeMap::from([(id, stack)]));
    let [place] = places.as_slice() else {
        panic!("{places:?}");
    };
    let waiting = &place.waiting;
    assert_eq!((waiting.count, waiting.open), (4, 0));
    assert!((waiting.total_s - 4.0).abs() < 1e-9 && (waiting.longest_s - 4.0).abs() < 1e-9);
    assert_eq!(waiting.tasks, [3, 4]);
}
