//! What the server does for a connection or a request beside answering it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    Arguments, Healthy, Leak,
    arc_cycle::{self, Connection},
    blocked_consumer, burst, ffi, forget, joinset,
    lru::{self, Lru},
    map::{self, Memory},
    sawtooth, slow_cache, stuck_task,
    truth::{Loss, Truth},
    unbounded_channel::{self, Queue},
};

/// The function that allocates what leaks.
#[derive(Clone, Copy)]
pub(super) struct Function {
    /// As the end of its demangled name.
    pub(super) name: &'static str,
    /// Whether the counted bytes are all that the leak allocates.
    pub(super) exact: bool,
}

/// The one thing this process does, with its state.
enum Shape {
    None,
    ArcCycle,
    StuckTask,
    Channel(Queue),
    BlockedConsumer(blocked_consumer::Queue),
    JoinSet(Mutex<JoinSet<Vec<u8>>>),
    Map(Mutex<Memory>),
    Forget,
    Ffi,
    Lru(Mutex<Lru>),
    Sawtooth(Mutex<VecDeque<Vec<u8>>>),
    Burst(Mutex<Vec<Vec<u8>>>),
    SlowCache(Mutex<VecDeque<Vec<u8>>>),
}

pub(super) struct Work {
    shape: Shape,
    /// Whether the bug is in.
    broken: bool,
    size: usize,
    rate: usize,
    begin: Instant,
    delay: Duration,
    truth: Arc<Truth>,
}

impl Work {
    pub(super) fn new(arguments: &Arguments) -> Self {
        let truth = Arc::new(Truth::default());
        let broken = arguments.leak != Leak::None;
        let rate = arguments.rate as usize;
        let shape = match (arguments.leak, arguments.healthy) {
            (Leak::ArcCycle, _) | (_, Healthy::ArcCycle) => Shape::ArcCycle,
            (Leak::StuckTask, _) | (_, Healthy::StuckTask) => Shape::StuckTask,
            (Leak::UnboundedChannel, _) | (_, Healthy::UnboundedChannel) => {
                Shape::Channel(Queue::new(broken, arguments.rate))
            }
            (Leak::BlockedConsumer, _) | (_, Healthy::BlockedConsumer) => {
                Shape::BlockedConsumer(blocked_consumer::Queue::new(broken))
            }
            (Leak::Joinset, _) | (_, Healthy::Joinset) => Shape::JoinSet(Mutex::default()),
            (Leak::Map, _) | (_, Healthy::Map) => Shape::Map(Mutex::default()),
            (Leak::Forget, _) | (_, Healthy::Forget) => Shape::Forget,
            (Leak::Ffi, _) | (_, Healthy::Ffi) => Shape::Ffi,
            (Leak::None, Healthy::None) => Shape::None,
            (Leak::None, Healthy::Lru) => Shape::Lru(Mutex::new(Lru::new(2 * rate))),
            (Leak::None, Healthy::Sawtooth) => Shape::Sawtooth(Mutex::default()),
            (Leak::None, Healthy::BurstThenIdle) => Shape::Burst(Mutex::default()),
            (Leak::None, Healthy::SlowCache) => Shape::SlowCache(Mutex::default()),
        };
        Self {
            shape,
            broken,
            size: arguments.size as usize,
            rate,
            begin: Instant::now(),
            delay: Duration::from_secs(arguments.delay),
            truth,
        }
    }

    pub(super) fn truth(&self) -> Arc<Truth> {
        Arc::clone(&self.truth)
    }

    /// Where the leak allocates; the empty name for work without one.
    pub(super) fn function(&self) -> Function {
        let (name, exact) = match (self.broken, &self.shape) {
            (true, Shape::ArcCycle) => ("arc_cycle::leak_connection", true),
            (true, Shape::StuckTask) => ("stuck_task::serve", false),
            (true, Shape::Channel(_)) => ("unbounded_channel::enqueue", false),
            (true, Shape::BlockedConsumer(_)) => ("blocked_consumer::enqueue", false),
            (true, Shape::JoinSet(_)) => ("joinset::spawn_request", false),
            (true, Shape::Map(_)) => ("map::remember", false),
            (true, Shape::Forget) => ("forget::discard", true),
            (true, Shape::Ffi) => ("ffi::leak_native", true),
            _ => ("", true),
        };
        Function { name, exact }
    }

    /// Starts background tasks; needs the runtime.
    pub(super) fn start(&self) {
        match &self.shape {
            Shape::Channel(queue) => queue.start_consumer(self.truth()),
            Shape::BlockedConsumer(queue) => queue.start(self.truth(), self.delay),
            _ => {}
        }
    }

    /// Whether the work is done once per connection.
    pub(super) fn wants_new_connections(&self) -> bool {
        matches!(self.shape, Shape::ArcCycle)
    }

    fn has_begun(&self) -> bool {
        self.begin.elapsed() >= self.delay
    }

    /// Called by a connection's task when it starts; what it returns lives as
    /// long as the connection.
    pub(super) fn open(&self) -> Option<Arc<Connection>> {
        if !matches!(self.shape, Shape::ArcCycle) || !self.has_begun() {
            return None;
        }
        let (connection, loss) = arc_cycle::leak_connection(self.size, self.broken);
        self.lost(loss);
        Some(connection)
    }

    /// Called by a connection's task for each request.
    pub(super) fn request(&self) {
        if !self.has_begun() {
            return;
        }
        let loss = match &self.shape {
            Shape::None | Shape::ArcCycle => return,
            Shape::StuckTask => stuck_task::serve(self.size, self.broken),
            Shape::Channel(queue) => unbounded_channel::enqueue(queue, self.size),
            Shape::BlockedConsumer(queue) => blocked_consumer::enqueue(queue, self.size),
            Shape::JoinSet(set) => joinset::spawn_request(&mut lock(set), self.size, self.broken),
            Shape::Map(memory) => map::remember(&mut lock(memory), self.size, self.broken),
            Shape::Forget => forget::discard(self.size, self.broken),
            Shape::Ffi => ffi::serve(self.size, self.broken),
            Shape::Lru(cache) => return lru::put(&mut lock(cache), self.size),
            Shape::Sawtooth(pile) => {
                return sawtooth::collect(&mut lock(pile), self.size, 4 * self.rate);
            }
            Shape::Burst(pool) => return burst::grow(&mut lock(pool), self.size, 3 * self.rate),
            Shape::SlowCache(cache) => {
                return slow_cache::fill(&mut lock(cache), self.size, 1800 * self.rate);
            }
        };
        self.lost(loss);
    }

    fn lost(&self, loss: Loss) {
        if self.broken {
            self.truth.add(loss);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A payload that is really written, so that it counts in RSS.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "the caller must be the first function of this program on the stack"
)]
pub(super) fn payload(size: usize) -> Vec<u8> {
    // Real payloads differ from one another, as blocks of equal contents
    // cannot be told apart from outside.
    let mut bytes = vec![0xA5; size];
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = next_word().to_ne_bytes();
    }
    std::hint::black_box(bytes)
}

/// The next number of a sequence without repeats (splitmix64).
fn next_word() -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0);
    let state = STATE
        .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
