//! What this process may do, and what that is needed for.

use std::fs;

/// A capability with its reason.
struct Need {
    number: u32,
    name: &'static str,
    reason: &'static str,
}

/// Numbers from include/uapi/linux/capability.h.
const NEEDS: [Need; 4] = [
    Need {
        number: 39,
        name: "CAP_BPF",
        reason: "to load kernel programs",
    },
    Need {
        number: 38,
        name: "CAP_PERFMON",
        reason: "to attach them",
    },
    Need {
        number: 19,
        name: "CAP_SYS_PTRACE",
        reason: "to read the mappings of other users' processes",
    },
    Need {
        number: 2,
        name: "CAP_DAC_READ_SEARCH",
        reason: "to read their files",
    },
];

/// A sentence that names what is missing and the mend; `None` when all is
/// there.
pub fn missing() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    missing_of(&status)
}

/// The initial pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const HOST: &str = "pid:[4026531836]";

/// A sentence when this process has process ids of its own: kernel programs
/// tell those of the host.
pub fn confined() -> Option<String> {
    confined_to(&fs::read_link("/proc/self/ns/pid").ok()?.to_string_lossy())
}

fn confined_to(namespace: &str) -> Option<String> {
    (namespace != HOST).then(|| {
        "this is a pid namespace of its own, and the kernel tells the host's process ids: run it in the host's (docker run --pid=host, hostPID: true in Kubernetes)".to_owned()
    })
}

fn missing_of(status: &str) -> Option<String> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let held = u64::from_str_radix(effective.trim(), 16).ok()?;
    let missing: Vec<String> = NEEDS
        .iter()
        .filter(|need| held & (1 << need.number) == 0)
        .map(|need| format!("{} ({})", need.name, need.reason))
        .collect();
    if missing.is_empty() {
        return None;
    }
    Some(format!(
        "missing privileges: {}; run it as root, for example by sudo",
        missing.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_process_ids_are_told() {
        assert_eq!(confined_to("pid:[4026531836]"), None);
        assert!(confined_to("pid:[4026532211]").unwrap().contains("host"));
    }

    #[test]
    fn names_what_is_missing() {
        assert_eq!(missing_of("CapEff:\t000001ffffffffff\n"), None);
        let sentence = missing_of("Name:\tx\nCapEff:\t0000000000000000\n").unwrap();
        for need in &NEEDS {
            assert!(sentence.contains(need.name));
        }
        let sentence = missing_of("CapEff:\t0000004000080004\n").unwrap();
        assert!(sentence.contains("CAP_BPF") && !sentence.contains("CAP_PERFMON"));
    }
}
