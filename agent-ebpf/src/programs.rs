//! The programs: thin, they read, decide and record.

mod ending;
mod fault;
mod futex;
mod heap;
mod process;
mod task;
