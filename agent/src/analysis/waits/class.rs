//! What a wait is, by the functions on its stack.

pub use crate::finding::{Class, On};
use crate::{
    finding::{Frame, is_user_frame},
    tokio_rt::boundary::{self, Polled},
};

/// Parts of function names that tell on what a thread waits.
const LOCKS: &[&str] = &[
    "Mutex::lock_contended",
    "RwLock::read_contended",
    "RwLock::write_contended",
    "RawMutex::lock_slow",
    "RawRwLock::lock_",
    "futex::Once::",
    "__lll_lock_wait",
    "pthread_mutex_lock",
    "pthread_mutex_timedlock",
    "pthread_rwlock_",
    "std::mutex::lock",
];
const CONDVARS: &[&str] = &[
    "Condvar::wait",
    "pthread_cond_",
    "std::condition_variable::wait",
    "sem_wait",
    "sem_timedwait",
    "Barrier::wait",
];
const CHANNELS: &[&str] = &[
    "std::sync::mpmc::",
    "std::sync::mpsc::",
    "crossbeam_channel::",
    "flume::",
    "kanal::",
    "async_channel::",
    "blocking_recv",
    "blocking_send",
];
const PARKS: &[&str] = &[
    "Parker::park",
    "ThreadParker",
    "std::thread::park",
    "std::thread::current::park",
    "CachedParkThread::park",
];
const JOINS: &[&str] = &[
    "pthread_join",
    "pthread_timedjoin",
    "__pthread_clockjoin_ex",
    "JoinInner",
];

/// Frames of Tokio's that tell whose work is done inside a poll or a pool.
const POOL: &str = "tokio::runtime::blocking::pool::";
const SCHEDULER: &str = "tokio::runtime::scheduler::";
const OLD_SCHEDULER: &str = "tokio::runtime::thread_pool::";
const RUN_BLOCKING: &[&str] = &[
    "tokio::task::blocking::block_in_place",
    "multi_thread::worker::block_in_place",
];
const BLOCK_ON: &[&str] = &[
    "tokio::runtime::park::CachedParkThread::block_on",
    "tokio::runtime::runtime::Runtime::block_on",
    "tokio::runtime::handle::Handle::block_on",
    "tokio::runtime::context::blocking::BlockingRegionGuard::block_on",
    "::CoreGuard::block_on",
    "tokio::runtime::context::runtime::enter_runtime",
];

/// What a stack waits on and for whom, innermost frame first. `contended`: the
/// futex says that it is a lock which is taken.
pub fn classify(frames: &[Frame], contended: bool) -> (Class, On) {
    let on = on(frames);
    let class = class(frames, on);
    // A number of other meaning may look the same: it only helps where nothing
    // of that kind is to be expected.
    let on = match (class, on) {
        (Class::Task, On::Unknown) if contended => On::Lock,
        _ => on,
    };
    (class, on)
}

fn names<'a>(frames: impl Iterator<Item = &'a Frame>) -> Vec<&'a str> {
    frames
        .filter_map(|frame| Some(frame.function.as_ref()?.as_str()))
        .collect()
}

/// Only the frames inside the program's own say on what it waits: its caller
/// may hold or wait for other things.
fn on(frames: &[Frame]) -> On {
    let inside = frames.iter().position(is_user_frame);
    let inner = frames.get(..inside.unwrap_or(frames.len()));
    // Demanglers write `<path::Type>::method` and `path::Type<T>::method` alike.
    let names: Vec<String> = names(inner.unwrap_or_default().iter())
        .into_iter()
        .map(|name| name.replace("<T>", "").replace(['<', '>'], ""))
        .collect();
    let any = |parts: &[&str]| {
        names
            .iter()
            .any(|name| parts.iter().any(|part| name.contains(part)))
    };
    // Channels are built from the others, condition variables take a lock.
    if any(CHANNELS) {
        On::Channel
    } else if any(CONDVARS) {
        On::Condvar
    } else if any(LOCKS) {
        On::Lock
    } else if any(JOINS) {
        On::Thread
    } else if any(PARKS) {
        On::Park
    } else {
        On::Unknown
    }
}

fn class(frames: &[Frame], on: On) -> Class {
    if frames.is_empty() {
        return Class::Unknown;
    }
    let standing = names(frames.iter().filter(|frame| !frame.inlined));
    let any = |parts: &[&str]| {
        standing
            .iter()
            .any(|name| parts.iter().any(|part| name.contains(part)))
    };
    match boundary::polled(&standing) {
        Some(Polled::Runtime) => Class::ParkedWorker,
        Some(Polled::Future(_) | Polled::Unnamed) => {
            if any(RUN_BLOCKING) || is_of_pool(&standing) {
                Class::SpawnBlocking
            } else {
                Class::Task
            }
        }
        None if any(&[POOL]) => Class::IdlePoolThread,
        // A lock that the future of `block_on` takes holds up its thread only.
        None if any(BLOCK_ON) && on != On::Lock => Class::BlockOn,
        None if standing.is_empty() => Class::Unknown,
        None => Class::Thread,
    }
}

/// Whether the innermost poll is made by the blocking pool and not by a
/// scheduler: the closure of `spawn_blocking` is a task, too.
fn is_of_pool(standing: &[&str]) -> bool {
    let first = standing.iter().find_map(|name| {
        if name.contains(POOL) {
            Some(true)
        } else if name.contains(SCHEDULER) || name.contains(OLD_SCHEDULER) {
            Some(false)
        } else {
            None
        }
    });
    first == Some(true)
}
