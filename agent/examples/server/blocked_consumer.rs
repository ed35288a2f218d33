//! A queue whose consumer takes a lock in its task, and another thread that
//! keeps the lock.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    truth::{Loss, Truth},
    work::payload,
};

type Message = Vec<u8>;

pub(super) struct Queue {
    sender: mpsc::UnboundedSender<Message>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Message>>>,
    /// Bytes written so far.
    journal: Arc<Mutex<u64>>,
    broken: bool,
}

impl Queue {
    pub(super) fn new(broken: bool) -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the leak to be found")]
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            sender,
            receiver: Mutex::new(Some(receiver)),
            journal: Arc::default(),
            broken,
        }
    }

    /// Starts the consumer, and after `delay` the thread that it waits for.
    pub(super) fn start(&self, truth: Arc<Truth>, delay: Duration) {
        let Some(receiver) = lock(&self.receiver).take() else {
            return;
        };
        let journal = Arc::clone(&self.journal);
        tokio::spawn(consume(receiver, Arc::clone(&journal), truth));
        let broken = self.broken;
        thread::spawn(move || {
            thread::sleep(delay);
            rotate(&journal, broken);
        });
    }
}

async fn consume(
    mut receiver: mpsc::UnboundedReceiver<Message>,
    journal: Arc<Mutex<u64>>,
    truth: Arc<Truth>,
) {
    while let Some(message) = receiver.recv().await {
        write_out(&journal, &message);
        truth.remove(loss(message.len()));
    }
}

/// Waits for the lock, inside a poll.
#[inline(never)]
fn write_out(journal: &Mutex<u64>, message: &Message) {
    *lock(journal) += message.len() as u64;
}

/// Takes the lock now and then for a moment; the bug: for ever.
#[inline(never)]
fn rotate(journal: &Mutex<u64>, broken: bool) {
    loop {
        let taken = lock(journal);
        thread::sleep(Duration::from_millis(1));
        if broken {
            wait_for_confirmation();
        }
        drop(taken);
        thread::sleep(Duration::from_millis(20));
    }
}

/// It never comes.
fn wait_for_confirmation() {
    loop {
        thread::park();
    }
}

/// Queues one message of `size` bytes.
#[inline(never)]
pub(super) fn enqueue(queue: &Queue, size: usize) -> Loss {
    let sent = queue.sender.send(payload(size)).is_ok();
    std::hint::black_box(sent);
    loss(size)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn loss(size: usize) -> Loss {
    Loss {
        bytes: size as u64,
        blocks: 1,
        overhead: size_of::<Message>() as u64 + 2,
    }
}
