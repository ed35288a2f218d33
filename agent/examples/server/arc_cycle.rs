//! Connection and session own each other: the usual `Arc` cycle.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{truth::Loss, work::payload};

/// What `Arc` puts before its value: two counters.
const COUNTERS: usize = 16;

pub(super) struct Connection {
    buffer: Vec<u8>,
    session: Mutex<Option<Arc<Session>>>,
}

struct Session {
    /// The bug.
    owner: Option<Arc<Connection>>,
    /// The fix.
    parent: Weak<Connection>,
}

/// Makes a connection with its session.
#[inline(never)]
pub(super) fn leak_connection(size: usize, broken: bool) -> (Arc<Connection>, Loss) {
    let connection = Arc::new(Connection {
        buffer: payload(size),
        session: Mutex::new(None),
    });
    let session = Arc::new(Session {
        owner: broken.then(|| Arc::clone(&connection)),
        parent: Arc::downgrade(&connection),
    });
    std::hint::black_box((&session.owner, &session.parent, &connection.buffer));
    *connection
        .session
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = Some(session);
    let bytes = size + 2 * COUNTERS + size_of::<Connection>() + size_of::<Session>();
    (
        connection,
        Loss {
            bytes: bytes as u64,
            blocks: 3,
            overhead: 0,
        },
    )
}
