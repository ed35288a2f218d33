//! `cargo xtask setup`: finds what builds and tests need, installs what is
//! missing, and is silent when nothing is.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    packages::{self, Missing, Need},
    shell,
    toolchain::{self, Rustc},
};

/// What builds the kernel programs.
pub(crate) struct Toolchain {
    pub(crate) rustc: Rustc,
    pub(crate) linker: PathBuf,
}

/// Makes sure that everything is there.
pub(crate) fn prepare(need: Need, no_install: bool) -> Result<Toolchain> {
    if no_install {
        return only_look(need);
    }
    let rustc = match Rustc::find() {
        // Nothing that is installed mends a wrong choice.
        Err(why) if env::var_os(toolchain::RUSTC_VARIABLE).is_some() => return Err(why),
        found => found.or_else(|_| install_rust())?,
    };
    let mut missing = packages::missing(need);
    let linker = toolchain::find_linker(&rustc);
    if linker.is_err() && toolchain::find_llvm(&rustc).is_none() {
        missing.push(llvm_package(rustc.llvm));
    }
    if !missing.is_empty() {
        packages::install(&missing)?;
    }
    let linker = match linker {
        Ok(linker) => linker,
        Err(why) => install_linker(&rustc).with_context(|| format!("{why:#}"))?,
    };
    Ok(Toolchain { rustc, linker })
}

/// Makes sure that the packages are there, for what builds nothing.
pub(crate) fn packages(need: Need, no_install: bool) -> Result<()> {
    let missing = packages::missing(need);
    if missing.is_empty() {
        return Ok(());
    }
    if no_install {
        packages::advise(&missing);
        bail!("something is missing, and nothing was installed");
    }
    packages::install(&missing)
}

/// Finds everything, or says what is missing and which commands install it.
fn only_look(need: Need) -> Result<Toolchain> {
    let missing = packages::missing(need);
    let rustc = Rustc::find();
    let linker = rustc
        .as_ref()
        .ok()
        .and_then(|rustc| toolchain::find_linker(rustc).ok());
    match (rustc, linker) {
        (Ok(rustc), Some(linker)) if missing.is_empty() => Ok(Toolchain { rustc, linker }),
        (rustc, linker) => {
            advise(missing, rustc, linker.is_none())?;
            bail!("something is missing, and nothing was installed");
        }
    }
}

fn advise(mut missing: Vec<Missing>, rustc: Result<Rustc>, wants_linker: bool) -> Result<()> {
    if let Err(why) = &rustc {
        eprintln!("setup: {why:#}");
        if shell::which("rustup").is_some() {
            eprintln!("setup: mend it with");
            shell::print(&add_source());
            let packages = toolchain::APT_RUST.join(" and ");
            eprintln!("setup: or, where rustup is refused, with the packages {packages}");
        } else {
            missing.extend(rust_packages());
        }
    }
    let assumed = rustc.as_ref().map_or(toolchain::LLVM, |rustc| rustc.llvm);
    let llvm = rustc.ok().and_then(|rustc| toolchain::find_llvm(&rustc));
    if wants_linker && llvm.is_none() {
        missing.push(llvm_package(assumed));
    }
    if !missing.is_empty() {
        packages::advise(&missing);
    }
    if wants_linker {
        let (llvm, prefix) = llvm.unwrap_or((assumed, format!("/usr/lib/llvm-{assumed}").into()));
        eprintln!("setup: then install bpf-linker with");
        shell::print(&toolchain::install_linker(llvm, &prefix)?);
    }
    Ok(())
}

fn rust_packages() -> [Missing; 2] {
    toolchain::APT_RUST.map(|name| {
        Missing::new(
            name,
            "a Rust compiler with its library source, for the kernel programs",
        )
    })
}

fn llvm_package(llvm: u32) -> Missing {
    Missing::new(
        format!("llvm-{llvm}-dev"),
        "LLVM of the compiler's release, to build bpf-linker with",
    )
}

fn add_source() -> Command {
    let mut rustup = shell::command("rustup");
    rustup.args(["component", "add", "rust-src"]);
    rustup
}

/// Makes sure that programs can be compiled for a target other than ours.
pub(crate) fn rust_target(triple: &str, no_install: bool) -> Result<()> {
    let mut ask = shell::command("rustc");
    ask.args(["--print=target-libdir", "--target", triple]);
    if Path::new(shell::answer(&mut ask)?.trim()).is_dir() {
        return Ok(());
    }
    let mut add = shell::command("rustup");
    add.args(["target", "add", triple]);
    if no_install {
        eprintln!("setup: install Rust's library for {triple} with");
        shell::print(&add);
        bail!("something is missing, and nothing was installed");
    }
    shell::run_within(&mut add, toolchain::RUSTUP_LIMIT)
        .with_context(|| format!("Rust's library for {triple} is not installed"))
}

/// Library source from rustup, for the compiler in use; a compiler of the
/// system's where rustup is not there, is refused or takes too long.
fn install_rust() -> Result<Rustc> {
    if shell::which("rustup").is_some() {
        eprintln!("setup: installing the library source that the kernel programs are built with:");
        match shell::run_within(&mut add_source(), toolchain::RUSTUP_LIMIT) {
            Ok(()) => {
                if let Ok(rustc) = Rustc::find() {
                    return Ok(rustc);
                }
            }
            Err(why) => eprintln!("setup: {why:#}; trying packages of the system"),
        }
    }
    if !packages::has_apt() {
        Rustc::find().with_context(|| {
            format!(
                "install rustup's stable toolchain with `rustup component add rust-src`, or name a rustc \
                 that has its library source in {}",
                toolchain::RUSTC_VARIABLE
            )
        })?;
    }
    packages::install(&rust_packages())?;
    Rustc::find().context("apt has installed its compiler, but it does not fit")
}

/// Builds bpf-linker, once per user.
fn install_linker(rustc: &Rustc) -> Result<PathBuf> {
    let (llvm, prefix) = toolchain::find_llvm(rustc).with_context(|| {
        format!(
            "LLVM {} with its headers is not here; or put a fitting bpf-linker into PATH",
            rustc.llvm
        )
    })?;
    eprintln!(
        "setup: installing bpf-linker {} for LLVM {llvm}, about a minute:",
        toolchain::BPF_LINKER
    );
    shell::run(&mut toolchain::install_linker(llvm, &prefix)?)?;
    let linker = toolchain::find_linker(rustc)?;
    eprintln!(
        "setup: {} is used from where it is; it need not be in PATH",
        linker.display()
    );
    Ok(linker)
}
