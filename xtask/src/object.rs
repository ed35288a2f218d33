//! The kernel object, `target/bpf/lingerscope.bpf.o`, which the agent embeds.

use std::{env, ffi::OsString, fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{setup::Toolchain, shell, toolchain};

/// Where agent/build.rs looks for the object, below the top of the repository.
const OBJECT: &str = "target/bpf/lingerscope.bpf.o";

/// Builds the object. It is written only when its content is new, so that
/// the agent is not built again for nothing.
pub(crate) fn build(tools: &Toolchain) -> Result<()> {
    shell::run(&mut cargo(tools, "build"))?;
    let made = shell::root()
        .join("target/bpf")
        .join(toolchain::BPF_TARGET)
        .join("release/lingerscope-ebpf");
    let new = fs::read(&made).with_context(|| format!("{} was not built", made.display()))?;
    let object = shell::root().join(OBJECT);
    if fs::read(&object).ok().as_ref() != Some(&new) {
        fs::write(&object, new).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(())
}

/// clippy for the kernel programs; false where their compiler has none.
pub(crate) fn clippy(tools: &Toolchain) -> Result<bool> {
    let (Some(clippy), Some(_)) = (
        tools.rustc.tool("cargo-clippy"),
        tools.rustc.tool("clippy-driver"),
    ) else {
        return Ok(false);
    };
    let mut lint = cargo(tools, "clippy");
    // Whichever cargo this is, the lints must be of the compiler's release.
    let mut path = OsString::from(clippy.parent().unwrap_or(shell::root()));
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    lint.env("PATH", path).args(["--", "-Dwarnings"]);
    shell::run(&mut lint)?;
    Ok(true)
}

/// The cargo command line of the kernel programs.
fn cargo(tools: &Toolchain, subcommand: &str) -> Command {
    let mut cargo = match tools.rustc.tool("cargo") {
        Some(own) => shell::command(own),
        None => shell::cargo(),
    };
    // What concerns the host's compiler, or chooses another one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let kept = ["CARGO_HOME", "RUSTUP_HOME", "RUST_BACKTRACE"].contains(&text.as_ref())
            || [
                "CARGO_HTTP_",
                "CARGO_NET_",
                "CARGO_REGISTRIES_",
                "CARGO_REGISTRY_",
                "CARGO_TERM_",
            ]
            .iter()
            .any(|start| text.starts_with(start));
        if (text.starts_with("CARGO") || text.starts_with("RUST")) && !kept {
            cargo.env_remove(&name);
        }
    }
    let arch = env::consts::ARCH;
    cargo
        .env("RUSTC", &tools.rustc.path)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker)
        // Without debug information there is no BTF, and without BTF no map
        // definition and no loop callback.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!("--cfg=bpf_target_arch=\"{arch}\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf"),
        )
        .args([
            subcommand,
            "-Z",
            "build-std=core",
            "--release",
            "-p",
            "agent-ebpf",
            "--bin",
            "lingerscope-ebpf",
        ])
        .args([
            "--features",
            "programs",
            "--target",
            toolchain::BPF_TARGET,
            "--target-dir",
            "target/bpf",
        ]);
    cargo
}
