//! The programs: thin, they read, decide and record.

mod heap;
mod process;
mod task;
