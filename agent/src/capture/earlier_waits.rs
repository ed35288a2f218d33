//! Threads that wait already when a target's waits are first followed: no
//! event tells of them until they run again, so they are looked at from
//! outside. Their stacks stand still.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use agent_ebpf::abi::{
    futex::{Place, ThreadRegisters, Wait},
    stack::Row,
};

use super::{address_space::AddressSpace, files::CodeFile, ring::Stack};
use crate::{
    host::{
        kernel, mapping,
        memory::Memory,
        process,
        thread::{self, Blocked},
    },
    reader,
    unwind::walk,
};

/// Threads that are looked at.
const MAX_THREADS: usize = 512;
/// Threads whose stacks are looked at.
const MAX_STACKS: usize = 64;

/// A thread that was found waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Earlier {
    pub(super) thread: u32,
    /// It began before `began_ns`.
    pub(super) wait: Wait,
}

/// Those that wait for a futex now.
pub(super) fn find(pid: u32, epoch: u32) -> Vec<Earlier> {
    let now = kernel::monotonic_ns();
    process::threads(pid)
        .into_iter()
        .take(MAX_THREADS)
        .filter_map(|thread| {
            // The order matters: whoever runs in between is not the same then.
            let ran_ns = thread::run_time_ns(pid, thread)?;
            let blocked = thread::blocked_in(pid, thread)?;
            let hints = hints(&blocked)?;
            Some(Earlier {
                thread,
                wait: Wait {
                    place: Place {
                        tgid: pid,
                        epoch,
                        hints,
                        ..Place::default()
                    },
                    began_ns: now,
                    ran_ns,
                    address: blocked.arguments[0],
                    ip: blocked.ip,
                    sp: blocked.sp,
                    open: 1,
                    ..Wait::default()
                },
            })
        })
        .collect()
}

/// As the kernel program tells them; none when it waits for no futex.
fn hints(blocked: &Blocked) -> Option<u32> {
    let [_, operation, value, limit, ..] = blocked.arguments;
    match (blocked.call, operation & 0x7f) {
        // FUTEX_WAIT, FUTEX_WAIT_BITSET, FUTEX_LOCK_PI, FUTEX_WAIT_REQUEUE_PI,
        // FUTEX_LOCK_PI2
        (202, operation @ (0 | 6 | 9 | 11 | 13)) => {
            let taken = matches!(operation, 6 | 13) || (operation != 11 && value as u32 == 2);
            let contended = if taken { Place::CONTENDED } else { 0 };
            let limited = if limit == 0 { 0 } else { Place::LIMITED };
            Some(contended | limited)
        }
        (449 | 455, _) => Some(0),
        _ => None,
    }
}

/// Looks at the stacks of those that wait still, and names them. `registers`
/// may be missing.
pub(super) fn unwind(
    pid: u32,
    space: &AddressSpace,
    registers: &[ThreadRegisters],
    waits: &mut [Earlier],
) -> Vec<Stack> {
    let (Ok(memory), Ok(mappings)) = (Memory::open(pid), mapping::of(pid)) else {
        return Vec::new();
    };
    let mut rows: HashMap<*const CodeFile, Vec<Row>> = HashMap::new();
    let mut stacks = Vec::new();
    for earlier in waits.iter_mut().take(MAX_STACKS) {
        let wait = &mut earlier.wait;
        let bp = registers
            .iter()
            .find(|known| {
                (known.tgid, known.thread) == (pid, earlier.thread)
                    && (known.ip, known.sp) == (wait.ip, wait.sp)
            })
            .map(|known| known.bp);
        // Files that the stack leads through become known one by one.
        let (frames, end) = loop {
            let missing = std::cell::Cell::new(None);
            let walked = walk::walk(
                (wait.ip, wait.sp, bp),
                |ip| {
                    let code = space.find(ip)?;
                    let file = code.file.as_ref().ok()?;
                    let Some(rows) = rows.get(&std::sync::Arc::as_ptr(file)) else {
                        missing.set(Some(file));
                        return None;
                    };
                    let pc = u32::try_from(ip.wrapping_sub(code.bias)).ok()?;
                    let after = rows.partition_point(|row| row.pc <= pc);
                    rows.get(after.checked_sub(1)?).copied()
                },
                |address| memory.word(&mappings, address).ok(),
            );
            let Some(file) = missing.get() else {
                break walked;
            };
            rows.insert(std::sync::Arc::as_ptr(file), rows_of(file));
        };
        // It ran meanwhile: what was read may be of different moments.
        if thread::run_time_ns(pid, earlier.thread) != Some(wait.ran_ns) {
            continue;
        }
        let mut hasher = DefaultHasher::new();
        (pid, wait.place.epoch, &frames).hash(&mut hasher);
        let hash = hasher.finish() | 1;
        wait.place.stack = hash;
        stacks.push(Stack {
            tgid: pid,
            epoch: wait.place.epoch,
            hash,
            end,
            frames,
        });
    }
    stacks
}

fn rows_of(file: &CodeFile) -> Vec<Row> {
    file.module
        .as_ref()
        .and_then(|module| reader::rows(&module.file).ok())
        .unwrap_or_default()
}
