//! Compiler and linker of the kernel programs. Every version pin is here;
//! those of libraries are in Cargo.toml.
//!
//! `core` is built from source for the BPF target, which stable compilers do
//! with `RUSTC_BOOTSTRAP=1`: any rustc will do that has its library source
//! beside it. bpf-linker reads the compiler's LLVM bitcode, so its own LLVM
//! must not be older.

use std::{
    env, fmt,
    io::Write as _,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// Oldest compiler, as `rust-version` in Cargo.toml.
pub(crate) const RUST_MINIMUM: (u32, u32) = (1, 95);
/// The compiler that Debian ships for browsers, and its library source.
pub(crate) const APT_RUST: [&str; 2] = ["rustc-web", "rust-web-src"];
/// bpf-linker as it is installed.
pub(crate) const BPF_LINKER: &str = "0.13.0";
/// LLVM releases that this bpf-linker can be built with.
pub(crate) const BPF_LINKER_LLVM: RangeInclusive<u32> = 21..=23;
/// LLVM of the compilers above, assumed until one is installed.
pub(crate) const LLVM: u32 = 22;
/// The kernel programs' target.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";
/// `rustup component add` may find no way out; then apt gets its turn.
pub(crate) const RUSTUP_LIMIT: Duration = Duration::from_mins(2);

/// Names another compiler for the kernel programs.
pub(crate) const RUSTC_VARIABLE: &str = "LINGERSCOPE_BPF_RUSTC";

/// A compiler with its library source.
#[derive(Clone, Debug)]
pub(crate) struct Rustc {
    /// The compiler itself, no rustup proxy.
    pub(crate) path: PathBuf,
    /// Its sysroot.
    pub(crate) sysroot: PathBuf,
    /// `1.95.0`.
    pub(crate) release: String,
    /// Major version of its LLVM.
    pub(crate) llvm: u32,
}

impl fmt::Display for Rustc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rustc {} (LLVM {}) at {}",
            self.release,
            self.llvm,
            self.path.display()
        )
    }
}

impl Rustc {
    /// The first fitting compiler: the named one, else the one that is in
    /// use, rustup's stable and nightly, the system's.
    pub(crate) fn find() -> Result<Self> {
        if let Some(named) = env::var_os(RUSTC_VARIABLE) {
            return Self::examine(named.as_ref())
                .with_context(|| format!("{RUSTC_VARIABLE} names no fitting compiler"));
        }
        let mut reasons = Vec::new();
        for candidate in candidates() {
            match Self::examine(&candidate) {
                Ok(rustc) => return Ok(rustc),
                Err(why) => reasons.push(format!("{}: {why:#}", candidate.display())),
            }
        }
        bail!(
            "no Rust compiler here can build the kernel programs:\n  {}",
            reasons.join("\n  ")
        );
    }

    fn examine(path: &Path) -> Result<Self> {
        let about = shell::answer(Command::new(path).arg("-vV"))?;
        let field = |name: &str| {
            about
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let release = field("release:")
            .context("it does not tell its version")?
            .to_owned();
        let llvm = field("LLVM version:")
            .and_then(major)
            .context("it does not tell its LLVM version")?;
        if version(&release).is_none_or(|version| version < RUST_MINIMUM) {
            bail!(
                "version {release} is older than {}.{}",
                RUST_MINIMUM.0,
                RUST_MINIMUM.1
            );
        }
        if llvm > *BPF_LINKER_LLVM.end() {
            bail!("its LLVM {llvm} is newer than bpf-linker {BPF_LINKER} knows");
        }
        let sysroot =
            PathBuf::from(shell::answer(Command::new(path).args(["--print", "sysroot"]))?.trim());
        if !sysroot
            .join("lib/rustlib/src/rust/library/Cargo.lock")
            .is_file()
        {
            bail!("no library source (rust-src) beside it");
        }
        // A rustup proxy would choose anew where it is called.
        let own = sysroot.join("bin/rustc");
        let path = if shell::is_program(&own) {
            own
        } else {
            path.to_owned()
        };
        Ok(Self {
            path,
            sysroot,
            release,
            llvm,
        })
    }

    /// Another tool of the same release.
    pub(crate) fn tool(&self, name: &str) -> Option<PathBuf> {
        Some(self.sysroot.join("bin").join(name)).filter(|tool| shell::is_program(tool))
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = shell::which("rustc").into_iter().collect();
    if shell::which("rustup").is_some() {
        for toolchain in ["stable", "nightly"] {
            let mut which = Command::new("rustup");
            which
                .args(["which", "--toolchain", toolchain, "rustc"])
                .env("RUSTUP_AUTO_INSTALL", "0");
            found.extend(
                shell::answer(&mut which)
                    .ok()
                    .map(|path| PathBuf::from(path.trim())),
            );
        }
    }
    found.push("/usr/bin/rustc".into());
    found.retain(|path| shell::is_program(path));
    found.dedup();
    found
}

/// The first number of a dotted version.
fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What is made once per user, for all checkouts.
pub(crate) fn cache() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(env::home_dir()?.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(cache.join("lingerscope"))
}

/// Where `setup` installs bpf-linker for one LLVM release.
pub(crate) fn linker_root(llvm: u32) -> Result<PathBuf> {
    Ok(cache()?.join(format!("bpf-linker-{BPF_LINKER}-llvm-{llvm}")))
}

/// A bpf-linker that can link what `rustc` makes: the one in PATH, else the
/// one that `setup` has installed.
pub(crate) fn find_linker(rustc: &Rustc) -> Result<PathBuf> {
    let mut reasons = Vec::new();
    let mut installed = Vec::new();
    for llvm in rustc.llvm..=*BPF_LINKER_LLVM.end() {
        installed.push(linker_root(llvm)?.join("bin/bpf-linker"));
    }
    installed.retain(|path| shell::is_program(path));
    for linker in shell::which("bpf-linker").into_iter().chain(installed) {
        match try_linker(rustc, &linker) {
            Ok(()) => return Ok(linker),
            Err(why) => reasons.push(format!(
                "{} cannot link for {rustc}: {why:#}",
                linker.display()
            )),
        }
    }
    if reasons.is_empty() {
        bail!("no bpf-linker in PATH");
    }
    bail!("{}", reasons.join("\n"));
}

/// The smallest program for the kernel: one function, no library.
const TRIAL: &str = r#"
#![feature(no_core, lang_items)]
#![allow(internal_features)]
#![no_core]
#[lang = "pointee_sized"] pub trait PointeeSized {}
#[lang = "meta_sized"] pub trait MetaSized: PointeeSized {}
#[lang = "sized"] pub trait Sized: MetaSized {}
#[unsafe(no_mangle)] #[unsafe(link_section = "uprobe")] pub extern "C" fn trial() {}
"#;

/// bpf-linker does not tell which LLVM it was built with, so it is tried: an
/// LLVM that is too old stops at the bitcode.
fn try_linker(rustc: &Rustc, linker: &Path) -> Result<()> {
    let object = env::temp_dir().join(format!("lingerscope-linker-trial-{}.o", std::process::id()));
    let mut compiler = Command::new(&rustc.path)
        .env("RUSTC_BOOTSTRAP", "1")
        .args([
            "--edition=2024",
            "--crate-name=trial",
            "--crate-type=cdylib",
            "--target",
            BPF_TARGET,
        ])
        .args(["-Cdebuginfo=2", "-Clink-arg=--btf"])
        .arg(format!("-Clinker={}", linker.display()))
        .arg("-o")
        .arg(&object)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    compiler
        .stdin
        .take()
        .context("no way to pass the trial program")?
        .write_all(TRIAL.as_bytes())?;
    let output = compiler.wait_with_output()?;
    let made = std::fs::remove_file(&object).is_ok();
    if !output.status.success() || !made {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Prefix of an installed LLVM, with headers, that fits `rustc` and bpf-linker.
pub(crate) fn find_llvm(rustc: &Rustc) -> Option<(u32, PathBuf)> {
    let named = (rustc.llvm..=*BPF_LINKER_LLVM.end()).flat_map(|llvm| {
        [
            Some(PathBuf::from(format!(
                "/usr/lib/llvm-{llvm}/bin/llvm-config"
            ))),
            shell::which(&format!("llvm-config-{llvm}")),
        ]
    });
    named
        .chain([shell::which("llvm-config")])
        .flatten()
        .filter(|path| shell::is_program(path))
        .find_map(|config| {
            let ask = |what: &str| {
                shell::answer(Command::new(&config).arg(what))
                    .ok()
                    .map(|text| text.trim().to_owned())
            };
            let llvm = major(&ask("--version")?)?;
            let headers = PathBuf::from(ask("--includedir")?).join("llvm-c/Core.h");
            let fits = llvm >= rustc.llvm && BPF_LINKER_LLVM.contains(&llvm) && headers.is_file();
            Some((llvm, PathBuf::from(ask("--prefix")?))).filter(|_| fits)
        })
}

/// The command that installs bpf-linker for an LLVM.
pub(crate) fn install_linker(llvm: u32, prefix: &Path) -> Result<Command> {
    let mut install = shell::cargo();
    install
        .env("LLVM_PREFIX", prefix)
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--locked",
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{llvm}")])
        // Anything there was tried and does not fit.
        .args(["--force", "--root"])
        .arg(linker_root(llvm)?);
    Ok(install)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("1.97.0-nightly"), Some((1, 97)));
        assert_eq!(version("nonsense"), None);
        assert_eq!(major("22.1.8-rust"), Some(22));
    }

    #[test]
    fn pins_fit_each_other() {
        assert!(BPF_LINKER_LLVM.contains(&LLVM));
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains(&format!(
            "rust-version = \"{}.{}\"",
            RUST_MINIMUM.0, RUST_MINIMUM.1
        )));
    }
}
