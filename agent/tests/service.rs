//! The systemd unit, as systemd reads it, and as the program needs it.

use std::{env, fs, io::ErrorKind, process::Command};

use lingerscope::config::{Bytes, Settings};

const UNIT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../systemd/lingerscope.service"
);

/// The values of a key, in the order of the file.
fn values<'u>(unit: &'u str, key: &str) -> Vec<&'u str> {
    unit.lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .collect()
}

#[test]
fn systemd_has_nothing_to_say() {
    let folder = env::temp_dir().join(format!("lingerscope-unit-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("lingerscope.service");
    // It must not matter whether lingerscope is installed here.
    let unit = fs::read_to_string(UNIT).unwrap();
    let program = env::current_exe().unwrap();
    let unit = unit.replace("/usr/bin/lingerscope", program.to_str().unwrap());
    fs::write(&file, &unit).unwrap();
    let verify = |file: &std::path::Path| {
        Command::new("systemd-analyze")
            .args(["--man=no", "verify"])
            .arg(file)
            .output()
    };
    match verify(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: systemd-analyze is missing (Debian: apt-get install systemd)");
        }
        result => {
            // Unknown keys and bad values are told with exit code 0.
            let said = result.unwrap();
            let text = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(said.status.success() && text.is_empty(), "{text}");
            // and something wrong would be told
            fs::write(&file, format!("{unit}\n[Service]\nProtectEverything=yes\n")).unwrap();
            assert!(!verify(&file).unwrap().stderr.is_empty());
        }
    }
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn memory_limit_leaves_room_for_the_budget() {
    let unit = fs::read_to_string(UNIT).unwrap();
    let Bytes(budget) = Settings::default().budget.memory;
    let limit = values(&unit, "MemoryMax")[0].strip_suffix('M').unwrap();
    let limit = limit.parse::<u64>().unwrap() << 20;
    assert!(
        limit > budget && limit < budget * 3 / 2,
        "{limit} for a budget of {budget}"
    );
}

#[test]
fn rights_are_exactly_those_with_a_reason() {
    let unit = fs::read_to_string(UNIT).unwrap();
    let rights = values(&unit, "CapabilityBoundingSet");
    let [rights] = rights[..] else {
        panic!("{rights:?}");
    };
    let (_, reasons) = unit.split_once("# User 0 without").unwrap();
    let (reasons, _) = reasons.split_once("CapabilityBoundingSet=").unwrap();
    let rights: Vec<&str> = rights.split(' ').collect();
    for right in &rights {
        let name = right.strip_prefix("CAP_").unwrap();
        assert!(reasons.contains(name), "{right} has no reason");
    }
    let expected = [
        "CAP_BPF",
        "CAP_PERFMON",
        "CAP_SYS_PTRACE",
        "CAP_DAC_READ_SEARCH",
        "CAP_CHECKPOINT_RESTORE",
    ];
    assert_eq!(rights, expected);
    assert_eq!(values(&unit, "LimitCORE"), ["0"]);
    assert_eq!(values(&unit, "ExecStart"), ["/usr/bin/lingerscope daemon"]);
}
