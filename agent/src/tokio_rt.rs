//! Tokio seen from outside: the current task id of a thread, the table of all
//! tasks, and names of tasks in stacks.

pub mod acceptance;
pub mod await_point;
pub mod boundary;
pub mod cell;
pub mod confirmation;
pub mod current_task;
pub mod file;
pub mod future_name;
pub mod record;
pub mod sighting;
pub mod source_location;
pub mod table;
pub mod task_code;
pub mod thread;
pub mod tls;
pub mod vtable;
