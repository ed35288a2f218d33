//! Page faults of a process: where its memory grows, without a breakpoint.
//!
//! Attached to the software event of page faults, which calls it once per so
//! many faults of a thread.
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macro passes the context by value"
)]

use agent_ebpf::abi::{fault::FaultSite, heap::TargetCounts, loss::Loss};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_NOEXIST, bpf_perf_event_data, pt_regs},
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    macros::perf_event,
    programs::PerfEventContext,
};

use crate::{
    maps::{COUNTS, EPOCHS, FAULT_SCRATCH, FAULTS, SLOTS},
    unwind,
};

/// One past the highest user address (x86-64, four-level page tables).
const USER_END: u64 = 0x7fff_ffff_f000;

#[perf_event]
pub(crate) fn page_fault(ctx: PerfEventContext) -> u32 {
    record(&ctx);
    0
}

#[inline(always)]
fn record(ctx: &PerfEventContext) -> Option<()> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: map values stay valid while the program runs.
    let slot = SLOTS.get_ptr(tgid).map(|slot| unsafe { *slot })?;
    let epoch = *EPOCHS.get(slot)?;
    let counts = COUNTS.get_ptr_mut(slot)?;
    let data = ctx.as_ptr() as *const bpf_perf_event_data;
    // SAFETY: the kernel's own context; the registers of a fault that the
    // kernel took for the process are at the bottom of its kernel stack.
    let (ip, sp, bp, address) = unsafe {
        let address = (*data).addr;
        let regs = &(*data).regs;
        if regs.rip < USER_END {
            (regs.rip, regs.rsp, regs.rbp, address)
        } else {
            let task = bpf_get_current_task_btf();
            let saved = bpf_task_pt_regs(task) as *const pt_regs;
            let regs = bpf_probe_read_kernel(saved).ok()?;
            (regs.rip, regs.rsp, regs.rbp, address)
        }
    };
    // Events of one CPU cannot preempt each other.
    let scratch = FAULT_SCRATCH.get_ptr_mut(0)?;
    // Apart from the hashes of allocation stacks.
    let seed = (u64::from(tgid) << 32) | u64::from(epoch) | 1 << 31;
    unwind::unwind_fault(scratch, unwind::Owner::new(tgid, slot), seed, ip, sp, bp);
    // SAFETY: map values.
    unsafe {
        let hash = (*scratch).hash;
        if let Some(site) = FAULTS.get_ptr_mut(hash) {
            if (*site).announced == 0 {
                (*site).announced = u64::from(unwind::announce(scratch, tgid, epoch));
            }
            (*site).faults += 1;
            (*site).address = address;
            return Some(());
        }
        let announced = unwind::announce(scratch, tgid, epoch);
        if !announced {
            lose(counts, Loss::RingFull);
        }
        let site = FaultSite {
            tgid,
            epoch,
            announced: u64::from(announced),
            faults: 1,
            address,
        };
        match FAULTS.insert(hash, site, u64::from(BPF_NOEXIST)) {
            Err(code) if code != -17 => lose(counts, Loss::SitesFull),
            _ => {}
        }
    }
    Some(())
}

#[inline(always)]
fn lose(counts: *mut TargetCounts, cause: Loss) {
    // SAFETY: a value of this CPU in a map; the index is a constant.
    unsafe { (*counts).lost[cause as usize] += 1 };
}
