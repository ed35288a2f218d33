//! Programs that copy or overwrite the code of the process they run in: what
//! they copy may be a breakpoint, which the kernel knows at its own place
//! only, and whose signal then ends the process.
//!
//! They are told by the names of what is mapped, which the process chooses: a
//! wrong guess costs a refusal.

use crate::{capture::address_space::AddressSpace, host::process::Process};

/// Targets of QEMU's user mode emulators (`configs/targets/*-linux-user.mak`),
/// in whose files' names they stand. Its other programs are no translators.
const QEMU_TARGETS: [&str; 37] = [
    "aarch64",
    "aarch64_be",
    "alpha",
    "arm",
    "armeb",
    "cris",
    "hexagon",
    "hppa",
    "i386",
    "loongarch64",
    "m68k",
    "microblaze",
    "microblazeel",
    "mips",
    "mips64",
    "mips64el",
    "mipsel",
    "mipsn32",
    "mipsn32el",
    "nios2",
    "or1k",
    "ppc",
    "ppc64",
    "ppc64abi32",
    "ppc64le",
    "riscv32",
    "riscv64",
    "s390x",
    "sh4",
    "sh4eb",
    "sparc",
    "sparc32plus",
    "sparc64",
    "tilegx",
    "x86_64",
    "xtensa",
    "xtensaeb",
];

/// What rewrites the code of a process, by its executable and by what it has
/// mapped as code.
pub(super) fn of(process: &Process, space: &AddressSpace) -> Option<&'static str> {
    let exe = process.exe.as_os_str().as_encoded_bytes();
    let mapped = space.code.iter().map(|code| &code.mapping);
    let mapped = mapped.filter(|mapping| mapping.is_file());
    std::iter::once(exe)
        .chain(mapped.map(|mapping| mapping.path.as_slice()))
        .find_map(by_path)
}

fn by_path(path: &[u8]) -> Option<&'static str> {
    let mut parts = path.rsplit(|byte| *byte == b'/');
    let name = parts.next().unwrap_or_default();
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    let directory = parts.next().unwrap_or_default();
    let contains = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    let starts = |part: &[u8]| name.starts_with(part);
    // The tools are named `memcheck-amd64-linux` and the like.
    let is_tool = directory == b"valgrind" && name.ends_with(b"-linux");
    if is_tool || starts(b"vgpreload_") {
        return Some("valgrind");
    }
    if starts(b"libdynamorio.so") || starts(b"libdrpreload.so") {
        return Some("DynamoRIO");
    }
    if name == b"pinbin" || starts(b"libpin3dwarf.so") || starts(b"libpincrt") {
        return Some("Intel Pin");
    }
    if starts(b"librrpreload") || starts(b"librrpage") || starts(b"rr_page_") {
        return Some("rr");
    }
    // Injected as a file, or from memory (`memfd:frida-agent-64.so`).
    if contains(b"frida-agent") || contains(b"frida-gadget") {
        return Some("Frida");
    }
    if starts(b"libdyninstAPI_RT.so") {
        return Some("Dyninst");
    }
    is_qemu(name).then_some("QEMU's user mode")
}

/// `qemu-x86_64`, `qemu-aarch64-static`; not `qemu-img` or `qemu-system-x86_64`.
fn is_qemu(name: &[u8]) -> bool {
    let Some(target) = name.strip_prefix(b"qemu-") else {
        return false;
    };
    let target = target.strip_suffix(b"-static").unwrap_or(target);
    QEMU_TARGETS.iter().any(|known| known.as_bytes() == target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_rewrites_code() {
        for (path, name) in [
            ("/usr/libexec/valgrind/none-amd64-linux", "valgrind"),
            ("/usr/lib/valgrind/memcheck-amd64-linux", "valgrind"),
            (
                "/usr/libexec/valgrind/vgpreload_core-amd64-linux.so",
                "valgrind",
            ),
            (
                "/opt/DynamoRIO/lib64/release/libdynamorio.so.10.0",
                "DynamoRIO",
            ),
            ("/opt/pin/intel64/bin/pinbin", "Intel Pin"),
            ("/usr/lib/rr/librrpreload.so", "rr"),
            ("/usr/share/rr/rr_page_64", "rr"),
            ("/memfd:frida-agent-64.so (deleted)", "Frida"),
            ("/app/lib/libfrida-gadget.so", "Frida"),
            ("/usr/lib/dyninst/libdyninstAPI_RT.so.12.3", "Dyninst"),
            ("/usr/bin/qemu-x86_64", "QEMU's user mode"),
            ("/usr/bin/qemu-aarch64-static", "QEMU's user mode"),
        ] {
            assert_eq!(by_path(path.as_bytes()), Some(name), "{path}");
        }
    }

    #[test]
    fn leaves_others_alone() {
        for path in [
            "",
            "/",
            "/usr/bin/qemu-system-x86_64",
            "/usr/bin/qemu-img",
            "/usr/bin/qemu-storage-daemon",
            "/usr/bin/valgrind",
            "/usr/lib/x86_64-linux-gnu/libc.so.6",
            "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
            "/home/pin/server",
            "/opt/rr/server",
            "/srv/frida/kahlo",
            "/usr/lib/valgrind/libvex.so",
        ] {
            assert_eq!(by_path(path.as_bytes()), None, "{path}");
        }
    }
}
