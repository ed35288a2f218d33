//! A task that waits for a notification, while the only other holder of the
//! `Notify` has gone away without sending it.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, time::sleep};

use super::{truth::Loss, work::payload};

/// Header, scheduler, stage and trailer of a task cell, rounded up generously.
const CELL: usize = 512;

/// Answers later: hands the payload to a task of its own.
#[inline(never)]
pub(super) fn serve(size: usize, broken: bool) -> Loss {
    let done = Arc::new(Notify::new());
    let notifier = Arc::clone(&done);
    let buffer = payload(size);
    let waiting = async move {
        done.notified().await;
        std::hint::black_box(&buffer);
    };
    let cell = size_of_val(&waiting) + CELL;
    tokio::spawn(waiting);
    if !broken {
        tokio::spawn(async move {
            sleep(Duration::from_millis(50)).await;
            notifier.notify_one();
        });
    }
    let bytes = size + 16 + size_of::<Notify>();
    Loss {
        bytes: bytes as u64,
        blocks: 3,
        overhead: cell as u64,
    }
}
