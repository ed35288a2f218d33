//! Ways to print a [`crate::finding::Document`].

pub mod journald;
pub mod json;
pub mod metrics;
pub mod notify;
pub mod text;

#[cfg(test)]
pub(crate) mod sample;
