//! What runs on this host and how to read it without changing it.
//!
//! This is the only room that opens files or memory of other processes
//! (SAFE-1).

pub mod arguments;
pub mod btf;
pub mod cache;
pub mod cgroup;
pub mod counting;
pub mod cpu_clock;
pub mod heap;
pub mod kernel;
pub mod mapping;
pub mod meminfo;
pub mod memory;
pub mod module;
pub mod own_tables;
pub mod population;
pub mod pressure;
pub mod privilege;
pub mod process;
pub mod quarantine;
pub mod thread;
pub mod urgency;
