//! Tokio's current task id of the running thread.

use agent_ebpf::abi::heap::TaskIdRecipe;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user};

use crate::maps::{self, global};

/// Follows the recipe; 0 for no task. `Err` when memory could not be read.
#[inline(always)]
pub(crate) fn current(recipe: &TaskIdRecipe) -> Result<u64, i32> {
    if recipe.kind == TaskIdRecipe::KIND_NONE {
        return Ok(0);
    }
    // SAFETY: both helpers check the address themselves.
    unsafe {
        let task = bpf_get_current_task();
        let thread_pointer: u64 =
            bpf_probe_read_kernel((task + global(&maps::TASK_FSBASE)) as *const u64)?;
        let block = if recipe.kind == TaskIdRecipe::KIND_DTV {
            // glibc: the second word of the thread control block is the
            // dynamic thread vector, two words per module, −1 not allocated.
            let vector: u64 = bpf_probe_read_user((thread_pointer + 8) as *const u64)?;
            let block: u64 = bpf_probe_read_user((vector + recipe.block) as *const u64)?;
            if block == u64::MAX {
                return Ok(0);
            }
            block
        } else {
            thread_pointer.wrapping_sub(recipe.block)
        };
        let slot = block.wrapping_add(recipe.slot);
        if recipe.has_tag != 0 {
            let tag: u64 = bpf_probe_read_user(slot.wrapping_sub(8) as *const u64)?;
            // A byte; the rest of the word is padding.
            if tag as u8 == 0 {
                return Ok(0);
            }
        }
        bpf_probe_read_user(slot as *const u64)
    }
}
