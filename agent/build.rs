//! Embeds the kernel object that `cargo xtask build` has made. Without one the
//! program still builds, and says at start that it cannot capture.

use std::{env, fs, path::PathBuf};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let object = env::var_os("LINGERSCOPE_EBPF_OBJECT")
        .map_or_else(|| root.join("target/bpf/lingerscope.bpf.o"), PathBuf::from);
    println!("cargo::rerun-if-env-changed=LINGERSCOPE_EBPF_OBJECT");
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded =
        PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("lingerscope.bpf.o");
    let bytes = fs::read(&object).unwrap_or_default();
    if let Err(error) = fs::write(&embedded, bytes) {
        println!("cargo::error=cannot write {}: {error}", embedded.display());
    }
}
