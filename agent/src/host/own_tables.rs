//! Kernel memory of the tables that we hold open.

use std::fs;

/// Bytes that the kernel counts for all eBPF maps of this process: `memlock`
/// in `/proc/self/fdinfo`, which includes what maps have allocated so far
/// (kernel 6.4 and later; before that their largest size).
pub fn bytes() -> u64 {
    let Ok(entries) = fs::read_dir("/proc/self/fdinfo") else {
        return 0;
    };
    entries
        .filter_map(|entry| of_descriptor(&fs::read_to_string(entry.ok()?.path()).ok()?))
        .sum()
}

fn of_descriptor(text: &str) -> Option<u64> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    field("map_type:")?;
    field("memlock:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_maps_only() {
        let map = "pos:\t0\nmap_type:\t1\nkey_size:\t4\nmemlock:\t4096\nfrozen:\t0\n";
        assert_eq!(of_descriptor(map), Some(4096));
        let program = "prog_type:\t2\nmemlock:\t8192\n";
        assert_eq!(of_descriptor(program), None);
    }
}
