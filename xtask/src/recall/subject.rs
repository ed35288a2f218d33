//! The programs that are looked at.

use std::{fmt, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{build::Programs, setup, shell};

/// The target whose programs are on musl.
const MUSL: &str = "x86_64-unknown-linux-musl";

/// An allocator of the example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Allocator {
    Glibc,
    Jemalloc,
    Mimalloc,
    Tcmalloc,
    Musl,
}

impl Allocator {
    const fn name(self) -> &'static str {
        match self {
            Self::Glibc => "glibc",
            Self::Jemalloc => "jemalloc",
            Self::Mimalloc => "mimalloc",
            Self::Tcmalloc => "tcmalloc",
            Self::Musl => "musl",
        }
    }

    /// The library that takes the place of glibc's allocator.
    const fn library(self) -> Option<&'static str> {
        match self {
            Self::Glibc | Self::Musl => None,
            Self::Jemalloc => Some("libjemalloc.so.2"),
            Self::Mimalloc => Some("libmimalloc.so.2"),
            Self::Tcmalloc => Some("libtcmalloc_minimal.so.4"),
        }
    }
}

/// One kind of program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) allocator: Allocator,
    /// Bytes of the blocks that stay; 0: none do.
    pub(super) size: usize,
    /// All other blocks have the same size.
    pub(super) same: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.allocator.name())?;
        match self.size {
            0 => f.write_str(", no leak")?,
            size => write!(f, ", {size} B")?,
        }
        f.write_str(if self.same { ", all of one size" } else { "" })
    }
}

/// The built programs.
pub(super) struct Subjects {
    churn: PathBuf,
    on_musl: Option<PathBuf>,
}

impl Subjects {
    /// The example is built already; on musl it is another program.
    pub(super) fn build(
        programs: &Programs,
        allocators: &[Allocator],
        no_install: bool,
    ) -> Result<Self> {
        let on_musl = allocators
            .contains(&Allocator::Musl)
            .then(|| build_on_musl(no_install))
            .transpose()?;
        Ok(Self {
            churn: programs.path("churn")?,
            on_musl,
        })
    }

    /// Starts a program of this kind.
    pub(super) fn command(&self, case: Case) -> Command {
        let program = match (&self.on_musl, case.allocator) {
            (Some(on_musl), Allocator::Musl) => on_musl,
            _ => &self.churn,
        };
        let mut command = shell::command(program);
        command.arg(case.size.to_string());
        command.args(case.same.then_some("same"));
        if let Some(library) = case.allocator.library() {
            command.env("LD_PRELOAD", library);
        }
        command
    }
}

/// The example needs nothing but the standard library.
fn build_on_musl(no_install: bool) -> Result<PathBuf> {
    setup::rust_target(MUSL, no_install)?;
    let directory = shell::root().join("target/recall");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let program = directory.join("churn-musl");
    let mut rustc = shell::command("rustc");
    rustc
        .args([
            "--edition=2024",
            "-Copt-level=3",
            "-Cdebuginfo=line-tables-only",
        ])
        .args(["--target", MUSL])
        .arg("agent/examples/churn.rs")
        .arg("-o")
        .arg(&program);
    shell::run(&mut rustc)?;
    Ok(program)
}
