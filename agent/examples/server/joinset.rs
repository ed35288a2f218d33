//! Tasks that finish, in a `JoinSet` that is never asked for their results.

use tokio::task::JoinSet;

use super::{truth::Loss, work::payload};

/// Task cell and list entry of the set, rounded up generously.
const CELL: usize = 1024;

/// Runs a request as a task of its own.
#[inline(never)]
pub(super) fn spawn_request(set: &mut JoinSet<Vec<u8>>, size: usize, broken: bool) -> Loss {
    if !broken {
        while set.try_join_next().is_some() {}
    }
    let buffer = payload(size);
    let request = async move { buffer };
    let cell = size_of_val(&request) + CELL;
    set.spawn(request);
    Loss {
        bytes: size as u64,
        blocks: 3,
        overhead: cell as u64,
    }
}
