//! Follows allocations of target processes in the kernel.

pub mod bpf;
pub mod object;
