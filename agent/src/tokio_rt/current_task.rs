//! Which task allocates: how to read Tokio's current task id in a process.

use agent_ebpf::abi::heap::TaskIdRecipe;

use crate::capture::address_space::AddressSpace;

/// How the tasks of a process's allocations are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskIds {
    /// For the kernel programs.
    pub recipe: TaskIdRecipe,
    /// Whether Tokio was found at all.
    pub tokio: bool,
    /// Why ids cannot be read.
    pub why_not: Option<String>,
}

/// Looks for Tokio in a process's files.
pub fn find(pid: u32, space: &AddressSpace) -> TaskIds {
    let _ = (pid, space);
    TaskIds::default()
}
