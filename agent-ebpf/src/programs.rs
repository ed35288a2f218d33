//! The programs: thin, they read, decide and record.

mod fault;
mod futex;
mod heap;
mod process;
mod task;
