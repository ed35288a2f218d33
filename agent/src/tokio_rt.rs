//! Tokio seen from outside: the current task id of a thread, and names of
//! tasks in stacks.

pub mod boundary;
pub mod current_task;
pub mod tls;
