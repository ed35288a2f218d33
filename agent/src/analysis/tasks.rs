//! Tasks that should not be there any more: verdicts from the lives of a
//! process's tasks, and what they say about its allocation sites.
//!
//! A site whose growing blocks are the cells of such tasks, or were allocated
//! by them, gets the tasks' verdict instead of plain growth: it is one leak,
//! told once, at the place where the tasks are spawned.

mod kinds;
mod merge;
mod states;
mod words;

pub use merge::{Block, explain};
pub use states::describe;

/// Kind of the evidence that names the tasks.
const EVIDENCE: &str = "tasks";

#[cfg(test)]
mod tests;
