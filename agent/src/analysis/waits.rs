//! Futex waits: what each thread waits for, and which of them are why memory
//! grows.
//!
//! The class comes from the functions on the stack: what is innermost tells on
//! what the thread waits, and the frames around a task's poll whose work it
//! does.

mod class;
mod verdict;

use std::{collections::BTreeMap, time::Duration};

use crate::{
    finding::{self, Site, Text, Waiting, site_frame, user_functions},
    ledger::StackId,
};

use super::Stack;

pub use class::{Class, On, classify};
pub use verdict::blame;

/// Places that a document lists.
const MAX_PLACES: usize = 40;
/// Threads and tasks that are listed of one place.
const MAX_IDS: usize = 8;

/// Ended waits of one stack.
#[derive(Clone, Copy, Debug)]
pub struct EndedWaits {
    /// The stack; none when it was not unwound.
    pub stack: Option<StackId>,
    /// The Tokio task that waited.
    pub task: Option<u64>,
    /// The futex was a contended lock.
    pub contended: bool,
    /// How many.
    pub count: u64,
    /// How long in all.
    pub total: Duration,
    /// How long the longest.
    pub longest: Duration,
}

/// A wait that goes on.
#[derive(Clone, Copy, Debug)]
pub struct OpenWait {
    /// Thread id as the host sees it.
    pub thread: u32,
    /// The stack; none when it was not unwound.
    pub stack: Option<StackId>,
    /// The Tokio task that waits.
    pub task: Option<u64>,
    /// The futex is a contended lock.
    pub contended: bool,
    /// How long it has gone on, at least.
    pub age: Duration,
    /// It began before it was looked for.
    pub earlier: bool,
}

/// The waits of a process.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    /// Those that ended.
    pub ended: Vec<EndedWaits>,
    /// Long ones that go on.
    pub open: Vec<OpenWait>,
    /// For how long waits were followed.
    pub followed: Duration,
    /// Why they are not followed now.
    pub why_not: Option<String>,
}

impl Waits {
    /// The stacks in it.
    pub fn stacks(&self) -> impl Iterator<Item = StackId> {
        let ended = self.ended.iter().filter_map(|wait| wait.stack);
        ended.chain(self.open.iter().filter_map(|wait| wait.stack))
    }
}

/// The waits of one class in one function.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// What it was found to be.
    pub waiting: Waiting,
    /// The program's own functions, innermost first.
    functions: Vec<String>,
    /// Its longest open wait.
    open: Option<Duration>,
}

/// What waits are added up by: class, object, and functions.
type Key = (Class, On, Vec<String>);

/// Adds up waits by class and function: those that go on first, then the
/// longest.
pub fn places(waits: &Waits, stacks: &BTreeMap<StackId, Stack>) -> Vec<Place> {
    let mut places: BTreeMap<Key, Place> = BTreeMap::new();
    for wait in &waits.ended {
        let place = place(&mut places, wait.stack, wait.contended, stacks);
        let waiting = &mut place.waiting;
        waiting.count += wait.count;
        waiting.total_s += wait.total.as_secs_f64();
        waiting.longest_s = waiting.longest_s.max(wait.longest.as_secs_f64());
        if waiting.tasks.len() < MAX_IDS {
            waiting.tasks.extend(wait.task);
        }
    }
    for wait in &waits.open {
        let place = place(&mut places, wait.stack, wait.contended, stacks);
        place.open = place.open.max(Some(wait.age));
        let waiting = &mut place.waiting;
        waiting.open += 1;
        waiting.open_s = place.open.map(|age| age.as_secs_f64());
        waiting.began_before |= wait.earlier;
        if waiting.threads.len() < MAX_IDS {
            waiting.threads.push(wait.thread);
        }
        // Those that wait now are the ones to look at.
        waiting.tasks.splice(0..0, wait.task);
        waiting.tasks.truncate(MAX_IDS);
    }
    let mut places: Vec<Place> = places.into_values().collect();
    for place in &mut places {
        let tasks = &mut place.waiting.tasks;
        let mut seen = Vec::new();
        tasks.retain(|task| {
            !seen.contains(task) && {
                seen.push(*task);
                true
            }
        });
    }
    places.sort_by(|a, b| {
        let rank = |place: &Place| {
            let waiting = &place.waiting;
            (
                waiting.open > 0 && waiting.class.is_odd(waiting.on),
                waiting.class.is_odd(waiting.on),
                waiting.open > 0,
            )
        };
        rank(b)
            .cmp(&rank(a))
            .then(b.waiting.total_s.total_cmp(&a.waiting.total_s))
    });
    places.truncate(MAX_PLACES);
    places
}

fn place<'a>(
    places: &'a mut BTreeMap<Key, Place>,
    stack: Option<StackId>,
    contended: bool,
    stacks: &BTreeMap<StackId, Stack>,
) -> &'a mut Place {
    let nothing = Stack::default();
    let stack = stack
        .and_then(|stack| stacks.get(&stack))
        .unwrap_or(&nothing);
    let (class, on) = classify(&stack.frames, contended);
    let functions = if stack.frames.is_empty() {
        Vec::new()
    } else {
        user_functions(&stack.frames)
    };
    places
        .entry((class, on, functions.clone()))
        .or_insert_with(|| {
            let frame = site_frame(&stack.frames);
            Place {
                waiting: Waiting {
                    class,
                    on,
                    function: frame.map(|frame| Text::symbol(frame.label())),
                    location: frame.and_then(finding::Frame::location).map(Text::sentence),
                    site: Site {
                        frames: stack.frames.clone(),
                        truncated: stack.truncated.clone(),
                    },
                    ..Waiting::default()
                },
                functions,
                open: None,
            }
        })
}

/// The document's view.
pub fn describe(waits: &Waits, places: &[Place]) -> finding::Waits {
    finding::Waits {
        followed_s: waits.followed.as_secs_f64(),
        why_not: waits.why_not.as_ref().map(Text::sentence),
        places: places.iter().map(|place| place.waiting.clone()).collect(),
    }
}

#[cfg(test)]
mod tests;
