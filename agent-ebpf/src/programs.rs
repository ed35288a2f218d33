//! The programs: thin, they read, decide and record.

mod fault;
mod heap;
mod process;
mod task;
