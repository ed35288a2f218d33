//! Decisions shared by both sides of the border, free of kernel helpers.

pub mod ending;
pub mod rows;
pub mod rules;
pub mod sampling;
