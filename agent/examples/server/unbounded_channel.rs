//! A queue whose consumer takes one message of fifty.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::sleep};

use super::{
    truth::{Loss, Truth},
    work::payload,
};

type Message = Vec<u8>;

/// Messages that arrive while the consumer handles one.
const SLOWNESS: f64 = 50.0;

enum Sender {
    /// The bug.
    Unbounded(mpsc::UnboundedSender<Message>),
    /// The fix: what does not fit is refused.
    Bounded(mpsc::Sender<Message>),
}

enum Receiver {
    Unbounded(mpsc::UnboundedReceiver<Message>),
    Bounded(mpsc::Receiver<Message>),
}

pub(super) struct Queue {
    sender: Sender,
    receiver: Mutex<Option<Receiver>>,
    pause: Duration,
}

impl Queue {
    pub(super) fn new(broken: bool, rate: u32) -> Self {
        let (sender, receiver) = if broken {
            #[expect(clippy::disallowed_methods, reason = "this is the leak to be found")]
            let (sender, receiver) = mpsc::unbounded_channel();
            (Sender::Unbounded(sender), Receiver::Unbounded(receiver))
        } else {
            let (sender, receiver) = mpsc::channel(64);
            (Sender::Bounded(sender), Receiver::Bounded(receiver))
        };
        Self {
            sender,
            receiver: Mutex::new(Some(receiver)),
            pause: Duration::from_secs_f64(SLOWNESS / f64::from(rate)),
        }
    }

    /// Starts the consumer; a second call does nothing.
    pub(super) fn start_consumer(&self, truth: Arc<Truth>) {
        let receiver = self
            .receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(receiver) = receiver {
            tokio::spawn(consume(receiver, self.pause, truth));
        }
    }
}

async fn consume(mut receiver: Receiver, pause: Duration, truth: Arc<Truth>) {
    loop {
        let message = match &mut receiver {
            Receiver::Unbounded(receiver) => receiver.recv().await,
            Receiver::Bounded(receiver) => receiver.recv().await,
        };
        let Some(message) = message else { return };
        let size = message.len();
        drop(message);
        truth.remove(loss(size));
        sleep(pause).await;
    }
}

/// Queues one message of `size` bytes.
#[inline(never)]
pub(super) fn enqueue(queue: &Queue, size: usize) -> Loss {
    let message = payload(size);
    let outcome = match &queue.sender {
        Sender::Unbounded(sender) => sender.send(message).is_ok(),
        Sender::Bounded(sender) => sender.try_send(message).is_ok(),
    };
    std::hint::black_box(outcome);
    loss(size)
}

/// Tokio keeps messages in blocks of 32; each has a small header.
fn loss(size: usize) -> Loss {
    Loss {
        bytes: size as u64,
        blocks: 1,
        overhead: size_of::<Message>() as u64 + 2,
    }
}
