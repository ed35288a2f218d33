//! Packages of the system: what each is for, how to see that it is there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// What needs a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Building, and so everything.
    Build,
    /// The tests only.
    Test,
    /// The servers that even a short run of `mixed` starts.
    Servers,
    /// All servers of `mixed`.
    AllServers,
}

/// How to see that a package's content is there, whoever installed it.
#[derive(Clone, Copy, Debug)]
enum Sign {
    /// A program in PATH.
    Program(&'static str),
    /// A library that the dynamic linker knows; the start of its name.
    Library(&'static str),
    /// One of these files.
    File(&'static [&'static str]),
    /// A program of PostgreSQL, which lies in a directory named by the release.
    Postgres(&'static str),
}

struct Row {
    /// Names in apt, the first known one is taken.
    apt: &'static [&'static str],
    sign: Sign,
    need: Need,
    reason: &'static str,
}

const TABLE: &[Row] = &[
    Row {
        apt: &["gcc"],
        sign: Sign::Program("cc"),
        need: Need::Build,
        reason: "links Rust programs, compiles C examples",
    },
    Row {
        apt: &["g++"],
        sign: Sign::Program("c++"),
        need: Need::Build,
        reason: "bpf-linker, C++ test programs",
    },
    Row {
        apt: &["make"],
        sign: Sign::Program("make"),
        need: Need::Test,
        reason: "builds jemalloc for an example",
    },
    Row {
        apt: &["binutils"],
        sign: Sign::Program("objcopy"),
        need: Need::Test,
        reason: "strips test programs and renames their symbols",
    },
    Row {
        apt: &["xz-utils"],
        sign: Sign::Program("xz"),
        need: Need::Test,
        reason: "packs symbols as Fedora does",
    },
    Row {
        apt: &["musl-tools"],
        sign: Sign::Program("musl-gcc"),
        need: Need::Test,
        reason: "test programs with musl's allocator",
    },
    Row {
        apt: &["libjemalloc2"],
        sign: Sign::Library("libjemalloc.so."),
        need: Need::Test,
        reason: "test programs on jemalloc",
    },
    Row {
        apt: &["libmimalloc2.0", "libmimalloc3"],
        sign: Sign::Library("libmimalloc.so."),
        need: Need::Test,
        reason: "test programs on mimalloc",
    },
    Row {
        apt: &["libtcmalloc-minimal4", "libtcmalloc-minimal4t64"],
        sign: Sign::Library("libtcmalloc_minimal.so."),
        need: Need::Test,
        reason: "test programs on tcmalloc",
    },
    Row {
        apt: &["systemd"],
        sign: Sign::File(&[
            "/usr/lib/systemd/systemd-journald",
            "/lib/systemd/systemd-journald",
        ]),
        need: Need::Test,
        reason: "a real journald to send alerts to, and journalctl",
    },
    Row {
        apt: &["valgrind"],
        sign: Sign::Program("valgrind"),
        need: Need::Test,
        reason: "a translator of code, whose programs are left alone",
    },
    Row {
        apt: &["python3"],
        sign: Sign::Program("python3"),
        need: Need::Test,
        reason: "Python programs to be watched",
    },
    // These packages may start a service of their own, which `mixed` does not
    // need: it starts its own instances on other ports.
    Row {
        apt: &["redis-server"],
        sign: Sign::Program("redis-server"),
        need: Need::Servers,
        reason: "a server on jemalloc that fills to its maxmemory",
    },
    Row {
        apt: &["redis-tools"],
        sign: Sign::Program("redis-benchmark"),
        need: Need::Servers,
        reason: "load for redis",
    },
    Row {
        apt: &["nginx", "nginx-light"],
        sign: Sign::File(&["/usr/sbin/nginx"]),
        need: Need::Servers,
        reason: "a server with many short requests",
    },
    Row {
        apt: &["wrk"],
        sign: Sign::Program("wrk"),
        need: Need::Servers,
        reason: "load for nginx",
    },
    Row {
        apt: &["postgresql"],
        sign: Sign::Postgres("postgres"),
        need: Need::AllServers,
        reason: "a server of many processes, and pgbench",
    },
    Row {
        apt: &["nodejs"],
        sign: Sign::Program("node"),
        need: Need::AllServers,
        reason: "a Node program",
    },
    Row {
        apt: &["default-jdk-headless"],
        sign: Sign::Program("javac"),
        need: Need::AllServers,
        reason: "a Java program that grows to its -Xmx",
    },
];

/// Something that is to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Names in apt, the first known one is taken.
    pub(crate) apt: Vec<String>,
    /// What it is for.
    pub(crate) reason: String,
}

impl Missing {
    pub(crate) fn new(apt: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            apt: vec![apt.into()],
            reason: reason.into(),
        }
    }

    /// The name that apt knows here; its first name if it knows none.
    fn name(&self) -> &str {
        let known =
            |name: &&String| shell::answer(Command::new("apt-cache").args(["show", name])).is_ok();
        self.apt
            .iter()
            .find(known)
            .or(self.apt.first())
            .map_or("", String::as_str)
    }
}

/// What the table asks for and this machine has not.
pub(crate) fn missing(need: Need) -> Vec<Missing> {
    let rows = TABLE
        .iter()
        .filter(|row| row.need <= need)
        .collect::<Vec<_>>();
    let libraries = if need >= Need::Test {
        libraries()
    } else {
        String::new()
    };
    rows.into_iter()
        .filter(|row| !row.sign.is_there(&libraries))
        .map(|row| Missing {
            apt: row.apt.iter().map(ToString::to_string).collect(),
            reason: row.reason.to_owned(),
        })
        .collect()
}

impl Sign {
    fn is_there(self, libraries: &str) -> bool {
        match self {
            Self::Program(name) => shell::which(name).is_some(),
            Self::Library(start) => libraries
                .lines()
                .any(|line| line.trim_start().starts_with(start)),
            Self::File(paths) => paths.iter().any(|path| Path::new(path).exists()),
            Self::Postgres(name) => postgres(name).is_some(),
        }
    }
}

/// A program of the newest PostgreSQL, as Debian lays it out or in PATH.
pub(crate) fn postgres(name: &str) -> Option<PathBuf> {
    let releases = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = releases
        .flatten()
        .filter_map(|entry| {
            let release: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((release, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| shell::is_program(path))
        .max();
    newest.map(|(_, path)| path).or_else(|| shell::which(name))
}

/// The dynamic linker's list; its program is not in everybody's PATH.
fn libraries() -> String {
    let ldconfig = shell::which("ldconfig").unwrap_or_else(|| "/sbin/ldconfig".into());
    shell::answer(Command::new(ldconfig).arg("-p")).unwrap_or_default()
}

/// Whether this is Debian or one of its family.
pub(crate) fn has_apt() -> bool {
    shell::which("apt-get").is_some()
}

/// The two commands that install these packages.
fn commands(missing: &[Missing]) -> [Command; 2] {
    let mut update = shell::as_root("apt-get", &[]);
    update.args(["update", "-qq"]);
    let mut install = shell::as_root("apt-get", &[("DEBIAN_FRONTEND", "noninteractive".into())]);
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        // Another compiler package must not be pushed out for ours.
        .arg("--no-remove")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(missing.iter().map(Missing::name));
    [update, install]
}

/// Says what is installed and why, and does it.
pub(crate) fn install(missing: &[Missing]) -> Result<()> {
    if !has_apt() {
        advise(missing);
        bail!("something is missing, and only apt can be asked to install it");
    }
    eprintln!("setup: installing packages of the system:");
    explain(missing);
    let [mut update, _] = commands(missing);
    if let Err(why) = shell::run(&mut update) {
        eprintln!("setup: {why:#}; going on with the package lists that are there");
    }
    // Only now is it known which names apt knows.
    let [_, mut install] = commands(missing);
    shell::run(&mut install)
        .context("apt could not install what is missing; the lines above say why")
}

/// One line per package.
fn explain(missing: &[Missing]) {
    for package in missing {
        eprintln!("  {}: {}", package.apt.join(" or "), package.reason);
    }
}

/// Says what to install, where that is left to the user.
pub(crate) fn advise(missing: &[Missing]) {
    eprintln!("setup: missing:");
    explain(missing);
    if has_apt() {
        eprintln!("setup: install them with");
        commands(missing).iter().for_each(shell::print);
    } else {
        eprintln!(
            "setup: these are Debian's names; install the same with your system's package manager"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_says_why_and_how() {
        for row in TABLE {
            assert!(!row.reason.is_empty() && !row.apt.is_empty());
        }
    }

    #[test]
    fn building_needs_less_than_testing() {
        let count = |need| TABLE.iter().filter(|row| row.need <= need).count();
        assert!(0 < count(Need::Build) && count(Need::Build) < count(Need::Test));
        assert!(count(Need::Test) < count(Need::Servers));
        assert_eq!(count(Need::AllServers), TABLE.len());
    }

    #[test]
    fn a_library_is_seen_by_its_name() {
        let list = "1 libs found\n\tlibjemalloc.so.2 (libc6,x86-64) => /usr/lib/libjemalloc.so.2\n";
        assert!(Sign::Library("libjemalloc.so.").is_there(list));
        assert!(!Sign::Library("libmimalloc.so.").is_there(list));
    }
}
