//! Work on a target's memory that must come back.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use super::Memory;

/// Runs `work` on a thread of its own and waits for it at most `limit`. A
/// thread that does not come back is left behind, and the memory is given up:
/// it is blocked in the kernel and ends when the target does.
///
/// # Errors
/// `TimedOut` when it does not come back, also when an earlier one has not,
/// or when no thread can be had.
pub fn with_deadline<T: Send + 'static>(
    memory: &Arc<Memory>,
    limit: Duration,
    work: impl FnOnce(&Memory) -> T + Send + 'static,
) -> io::Result<T> {
    if memory.is_stuck() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    let theirs = Arc::clone(memory);
    thread::Builder::new()
        .name("memory-reader".into())
        .spawn(move || {
            // The receiver is gone when the deadline has passed.
            drop(sender.send(work(&theirs)));
        })?;
    receiver.recv_timeout(limit).map_err(|why| match why {
        mpsc::RecvTimeoutError::Timeout => {
            memory.abandon();
            io::ErrorKind::TimedOut.into()
        }
        mpsc::RecvTimeoutError::Disconnected => io::Error::other("the reading thread ended early"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_reader_is_left_behind() {
        let memory = Arc::new(Memory::open(std::process::id()).unwrap());
        let five = with_deadline(&memory, Duration::from_secs(5), |_| 5).unwrap();
        assert_eq!(five, 5);
        let slow = with_deadline(&memory, Duration::from_millis(10), |_| {
            thread::sleep(Duration::from_millis(300));
        });
        assert_eq!(slow.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let later = with_deadline(&memory, Duration::from_secs(5), |_| ());
        assert_eq!(later.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
