//! What crosses the border between the kernel programs and user space.
//!
//! [`abi`] holds the layouts: `repr(C)`, fixed-width integers, explicit
//! padding, a size check each. [`logic`] holds the decisions that both sides
//! must agree on, as plain functions that are tested on the host.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod abi;
pub mod logic;
