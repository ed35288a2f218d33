//! Reading Tokio from outside, in unmodified release builds.

pub mod boundary;
pub mod current_task;
