//! Which task a stack belongs to, by the function names alone: the place where
//! Tokio polls a task's future, and the user's code just inside it.
//!
//! Names come demangled in several spellings: legacy
//! (`Harness<T,S>::poll`, `app::f::{{closure}}`), v0
//! (`<Harness<app::f::{closure#0}, S>>::poll`) and debug information's own
//! (`poll<app::f::{async_fn_env#0}, S>`).

mod path;

use self::path::Path;

/// What Tokio was polling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Polled {
    /// A task with this future, written like the function that makes it.
    Future(String),
    /// A task whose future's name is not in the stack.
    Unnamed,
    /// Tokio's own work: its workers are tasks of its blocking pool.
    Runtime,
}

/// Functions in which a task's future is polled.
const BOUNDARIES: [&str; 5] = [
    "tokio::runtime::task::raw::poll",
    "tokio::runtime::task::harness::Harness::poll",
    "tokio::runtime::task::harness::Harness::poll_inner",
    "tokio::runtime::task::harness::poll_future",
    "tokio::runtime::task::core::Core::poll",
];
/// Where all of them were inlined.
const LAST_BOUNDARY: &str = "tokio::runtime::scheduler::multi_thread::worker::Context::run_task";

/// Tokio's schedulers, which run inside a task of the blocking pool.
const SCHEDULERS: [&str; 2] = [
    "tokio::runtime::scheduler::",
    "tokio::runtime::thread_pool::",
];

/// Crates whose frames stand between the boundary and the user's code.
const PLUMBING: [&str; 9] = [
    "tokio::",
    "std::",
    "core::",
    "alloc::",
    "futures_util::",
    "futures_core::",
    "futures::",
    "tracing::",
    "tracing_futures::",
];

/// Types that only wrap another future, their first argument.
const WRAPPERS: [&str; 5] = [
    "tokio::runtime::blocking::task::BlockingTask",
    "tokio::task::task_local::TaskLocalFuture",
    "tokio::util::trace::InstrumentedAsyncOp",
    "tracing::instrument::Instrumented",
    "tracing::instrument::WithDispatch",
];

/// What was being polled in a stack of demangled names, innermost first; the
/// innermost poll counts. `None` when the stack is not under a poll of a task,
/// such as one under `block_on`.
pub fn polled(frames: &[&str]) -> Option<Polled> {
    let (boundary, path) = frames.iter().enumerate().find_map(|(index, frame)| {
        let path = Path::parse(frame)?;
        is_boundary(path.plain()).then_some((index, path))
    })?;
    if let Some(future) = path.first_argument().and_then(named_type) {
        return Some(future);
    }
    let mut wrapper = None;
    for frame in frames.get(..boundary).unwrap_or_default().iter().rev() {
        let Some(path) = Path::parse(frame) else {
            continue;
        };
        if SCHEDULERS
            .iter()
            .any(|scheduler| path.plain().starts_with(scheduler))
        {
            return Some(Polled::Runtime);
        }
        // What is polled is a closure's body or a type's `poll`; a plain
        // function is called by a future that was inlined.
        let Some(future) = path.polled_type() else {
            continue;
        };
        if !PLUMBING
            .iter()
            .any(|crate_name| path.plain().starts_with(crate_name))
        {
            return Some(Polled::Future(future));
        }
        if !WRAPPERS.iter().any(|known| path.plain().starts_with(known)) && path.is_poll() {
            wrapper.get_or_insert(future);
        }
    }
    Some(wrapper.map_or(Polled::Unnamed, Polled::Future))
}

fn is_boundary(plain: &str) -> bool {
    plain == LAST_BOUNDARY
        || BOUNDARIES.iter().any(|known| {
            plain.strip_prefix(known).is_some_and(|rest| {
                rest.is_empty() || path::is_closure(rest.trim_start_matches("::"))
            })
        })
}

/// The future that a type is or wraps; `None` for one that names none, such
/// as a trait object.
pub fn future_of_type(name: &str) -> Option<Polled> {
    named_type(name)
}

/// The future whose `poll`, or body, is the function of this name.
pub fn future_of_poll(name: &str) -> Option<String> {
    Path::parse(name)?.polled_type()
}

/// Whether the function of this name is the body of an async function or
/// block of the program's own.
pub fn is_own_body(name: &str) -> bool {
    Path::parse(name).is_some_and(|path| {
        let own = !PLUMBING
            .iter()
            .any(|crate_name| path.plain().starts_with(crate_name));
        let last = path.plain().rsplit("::").next();
        own && last.is_some_and(path::is_closure)
    })
}

/// The future that a type argument of the boundary names. Placeholders of the
/// legacy spelling (`T`) and trait objects name none.
fn named_type(argument: &str) -> Option<Polled> {
    let mut argument = argument.to_owned();
    // Bounded: each turn goes one level deeper into the text.
    while let Some(path) = Path::parse(&argument) {
        if path.plain().starts_with(SCHEDULERS[0]) || path.plain().starts_with(SCHEDULERS[1]) {
            return Some(Polled::Runtime);
        }
        if !WRAPPERS.contains(&path.plain()) {
            let boxed = ["core::pin::Pin", "alloc::boxed::Box"].contains(&path.plain());
            let name = path.future_name();
            return (name.contains("::") && !boxed).then_some(Polled::Future(name));
        }
        path.first_argument()?.clone_into(&mut argument);
    }
    None
}

#[cfg(test)]
mod tests;
