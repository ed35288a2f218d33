//! A process's command line, read without faulting a page in.
//!
//! `/proc/PID/cmdline` would: the kernel fetches the page for its reader. So
//! the place of the arguments is taken from `/proc/PID/stat` and read like
//! other memory, present pages only.

use std::fs;

use super::{mapping::Mapping, memory::Memory};

/// Longest command line that is looked at.
const MAX_BYTES: u64 = 16 << 10;

/// The arguments of a process, raw; empty where they cannot be read.
pub fn of(pid: u32, memory: &Memory, mappings: &[Mapping]) -> Vec<Vec<u8>> {
    let Some((start, end)) = place(pid) else {
        return Vec::new();
    };
    let length = end.saturating_sub(start).min(MAX_BYTES);
    let mut text = vec![0; length as usize];
    let Some(mapping) = mappings
        .iter()
        .find(|mapping| mapping.start <= start && start < mapping.end)
    else {
        return Vec::new();
    };
    if memory.read(mapping, start, &mut text).is_err() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// Fields 48 and 49 of `/proc/PID/stat` (proc_pid_stat(5)).
fn place(pid: u32) -> Option<(u64, u64)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let mut fields = text.split_whitespace().skip(45);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mapping;

    #[test]
    fn reads_its_own_arguments() {
        let pid = std::process::id();
        let Ok(memory) = Memory::open(pid) else {
            println!("skipped: /proc/self/mem is not readable here");
            return;
        };
        let arguments = of(pid, &memory, &mapping::of(pid).unwrap());
        let first = std::env::args_os().next().unwrap();
        assert_eq!(
            arguments.first().map(Vec::as_slice),
            Some(first.as_encoded_bytes())
        );
    }
}
