//! Targets in control groups and namespaces as systemd and containers make
//! them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::{
    allocators::{SmallLeak, plain},
    inspection::Inspection,
    lab,
    program::Program,
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("containers::unit", unit),
        trial("containers::own_root_and_libraries", own_root),
    ]
}

/// A service's control group, removed with its processes' end.
struct Unit {
    name: String,
    group: PathBuf,
}

impl Unit {
    /// `None` where control groups cannot be made.
    fn make() -> Option<Self> {
        // The unified hierarchy, alone or beside others, or systemd's own.
        let root = [
            "/sys/fs/cgroup/cgroup.procs",
            "/sys/fs/cgroup/unified/cgroup.procs",
            "/sys/fs/cgroup/systemd/cgroup.procs",
        ]
        .into_iter()
        .map(Path::new)
        .find(|procs| procs.exists())?
        .parent()?;
        let name = format!("lingerscope-live-{}.service", std::process::id());
        let group = root.join("system.slice").join(&name);
        fs::create_dir_all(&group).ok()?;
        Some(Self { name, group })
    }

    fn take(&self, pid: u32) -> Result<()> {
        fs::write(self.group.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move {pid} to {}", self.group.display()))
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.group));
        // Ours if it is empty; systemd's is not.
        drop(self.group.parent().map(fs::remove_dir));
    }
}

#[expect(clippy::print_stderr, reason = "a test runner reports to its terminal")]
fn unit() -> Result<()> {
    let Some(unit) = Unit::make() else {
        eprintln!("containers::unit: control groups cannot be made here");
        return Ok(());
    };
    let mut small = SmallLeak::start(&plain()?, &mut lab::random("unit")?)?;
    let mut other = SmallLeak::start(&plain()?, &mut lab::random("no unit")?)?;
    let pid = small.pid();
    unit.take(pid)?;
    let name = unit.name.trim_end_matches(".service");
    let report = Inspection::new(8)?
        .arguments(["--unit", name, "--fail-on", "suspected"])
        .run()?;
    // The group can be removed when it is empty.
    small.program.kill()?;
    other.program.kill()?;
    report.expect_code(&[3])?;
    ensure!(
        report.processes().len() == 1,
        "not the one process of the unit\n{report}"
    );
    let process = report.process(pid)?;
    ensure!(
        process["unit"] == unit.name,
        "{}\n{report}",
        process["unit"]
    );
    ensure!(
        report.top(pid)?.first_user_function().contains("leak_here"),
        "{report}"
    );
    Ok(())
}

/// As in a container: its own process ids, and a root that no path of ours
/// leads to, with its own copy of the libraries.
fn own_root() -> Result<()> {
    let source = lab::fresh("image")?;
    copy_with_libraries(&plain()?, &source)?;
    let root = lab::fresh("root")?;
    fs::create_dir(&root)?;
    // The file system is mounted in the new namespace only.
    let script = "mount -t tmpfs none $1 && cp -a $0/. $1 && shift && exec chroot \"$@\"";
    let small = SmallLeak::start_by(
        |arguments| {
            let mut command = Command::new("unshare");
            command
                .args(["--pid", "--mount", "--fork", "--kill-child", "--"])
                .args(["sh", "-c", script])
                .args([&source, &root, &root])
                .arg("/leak")
                .args(arguments);
            command
        },
        Path::new("/truth"),
        |program| {
            let pid = only_child(program)?;
            Ok((pid, PathBuf::from(format!("/proc/{pid}/root/truth"))))
        },
        &mut lab::random("own root")?,
    )?;
    let pid = small.pid();
    let inside = fs::metadata(format!("/proc/{pid}/root/leak"))?;
    ensure!(inside.permissions().mode() & 0o111 != 0);
    ensure!(!root.join("leak").exists(), "the root is not its own");
    let report = small.check(&[], "glibc")?;
    let process = report.process(pid)?;
    ensure!(
        process["ns_pid"] == 1,
        "its own process id is {}\n{report}",
        process["ns_pid"]
    );
    ensure!(
        process["exe"]
            .as_str()
            .is_some_and(|exe| exe.ends_with("/leak")),
        "{}\n{report}",
        process["exe"]
    );
    Ok(())
}

/// Waits for the process that `unshare` has forked.
fn only_child(program: &Program) -> Result<u32> {
    let parent = program.pid();
    let list = format!("/proc/{parent}/task/{parent}/children");
    let begin = Instant::now();
    loop {
        let children = fs::read_to_string(&list)?;
        if let Some(child) = children.split_whitespace().next() {
            return Ok(child.parse()?);
        }
        ensure!(begin.elapsed() < Duration::from_secs(5), "no child");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Copies a program to `/leak` of a new root, with what `ldd` says it needs.
fn copy_with_libraries(program: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    fs::copy(program, root.join("leak"))?;
    let needs = String::from_utf8(lab::run(Command::new("ldd").arg(program))?)?;
    for library in needs
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(Path::new)
    {
        let copy = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(copy.parent().context("a library without a folder")?)?;
        fs::copy(library, copy)?;
    }
    Ok(())
}
