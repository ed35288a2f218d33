//! The programs of a run: throw-away instances of real servers with load,
//! healthy examples, and one that leaks.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::{
    fleet::{self, Fleet},
    packages, shell,
};

/// The function that leaks, as `--leak map` has it.
pub(super) const LEAKING_FUNCTION: &str = "map::remember";
/// The name of the program that leaks.
pub(super) const LEAKING: &str = "server that leaks";

/// What the leaking program is called in a root of its own.
pub(super) const CONTAINED: &str = "/contained";

const CACHE_PY: &str = include_str!("caches/cache.py");
const CACHE_JS: &str = include_str!("caches/cache.js");
const CACHE_JAVA: &str = include_str!("caches/Cache.java");

/// How the programs behave.
pub(super) struct Pace {
    /// From empty to full, for every cache.
    pub(super) fill: Duration,
    /// Leave out what is not installed.
    pub(super) skip_missing: bool,
}

/// Starts all that do not leak; the names of those that are not installed.
pub(super) fn start_healthy(
    fleet: &mut Fleet,
    server: &Path,
    pace: &Pace,
) -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    redis(fleet, pace)?;
    nginx(fleet)?;
    python(fleet, pace)?;
    let there = |programs: &[&str]| programs.iter().all(|name| shell::which(name).is_some());
    if packages::postgres("postgres").is_some() || !pace.skip_missing {
        postgres(fleet)?;
    } else {
        missing.push("postgres");
    }
    if there(&["node"]) || !pace.skip_missing {
        node(fleet, pace)?;
    } else {
        missing.push("node");
    }
    if there(&["java", "javac"]) || !pace.skip_missing {
        java(fleet, pace)?;
    } else {
        missing.push("java");
    }
    for (name, work, rate, size) in [
        ("server, replies only", "none", 200, 4096),
        ("server, full cache", "lru", 300, 4096),
        ("server, sawtooth", "sawtooth", 300, 8192),
        ("server, burst then idle", "burst-then-idle", 300, 8192),
        ("server, bounded map", "map", 400, 2048),
        ("server, queue", "unbounded-channel", 200, 2048),
    ] {
        let mut command = Command::new(server);
        command.args(["--healthy", work]);
        start_example(fleet, name, command, rate, size)?;
    }
    Ok(missing)
}

fn start_example(
    fleet: &mut Fleet,
    name: &str,
    mut command: Command,
    rate: u32,
    size: u32,
) -> Result<()> {
    command
        .args(["--rate", &rate.to_string()])
        .args(["--size", &size.to_string()]);
    fleet.start(name, command)?;
    fleet.await_line("READY")
}

/// Starts the one that leaks, some 100 KiB/s; its process.
pub(super) fn start_leaking(fleet: &mut Fleet, server: &Path) -> Result<u32> {
    let mut command = Command::new(server);
    command.args(["--leak", "map"]);
    start_example(fleet, LEAKING, command, 100, 1024)?;
    fleet
        .programs()
        .last()
        .map(fleet::Program::pid)
        .context("nothing leaks")
}

/// The same as in a container: with process ids, a root and a C library of
/// its own, and in a control group that is named like a container's.
pub(super) fn start_contained(fleet: &mut Fleet, server: &Path) -> Result<Contained> {
    let image = fleet.room("image")?;
    copy_with_libraries(server, &image)?;
    let root = fleet.room("root")?;
    // The file system is mounted in the new namespace only.
    let script =
        "mount -t tmpfs -o mode=755 none $1 && cp -a $0/. $1 && shift && exec chroot \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--mount", "--fork", "--kill-child", "--"])
        .args(["sh", "-c", script])
        .args([&image, &root, &root])
        .args([
            CONTAINED, "--leak", "map", "--rate", "100", "--size", "1024",
        ]);
    fleet.start_as_we_are(LEAKING, command)?;
    fleet.await_line("READY")?;
    let pid = fleet.newest_child()?;
    Ok(Contained {
        pid,
        group: ContainerGroup::with(pid),
    })
}

/// A program in namespaces of its own.
pub(super) struct Contained {
    pub(super) pid: u32,
    pub(super) group: Option<ContainerGroup>,
}

/// A control group like a container's; removed when dropped, which must be
/// after its process has ended.
pub(super) struct ContainerGroup {
    directory: std::path::PathBuf,
    pub(super) id: String,
}

impl ContainerGroup {
    /// Puts a process into a new group; `None` where groups cannot be made.
    fn with(pid: u32) -> Option<Self> {
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
        let id = format!(
            "{:064x}",
            0xc0ff_ee00_0000_0000_u64 + u64::from(std::process::id())
        );
        let directory = root.join(format!("docker-{id}.scope"));
        fs::create_dir(&directory).ok()?;
        let group = Self { directory, id };
        fs::write(group.directory.join("cgroup.procs"), pid.to_string()).ok()?;
        Some(group)
    }
}

impl Drop for ContainerGroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.directory));
    }
}

/// Copies a program to the top of a new root, with what `ldd` says it needs.
fn copy_with_libraries(program: &Path, root: &Path) -> Result<()> {
    let copy = root.join(CONTAINED.trim_start_matches('/'));
    fs::copy(program, copy).with_context(|| format!("cannot copy {}", program.display()))?;
    let needs = shell::answer(Command::new("ldd").arg(program))?;
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

/// Fills to its maxmemory, then evicts.
fn redis(fleet: &mut Fleet, pace: &Pace) -> Result<()> {
    const VALUE: u64 = 1000;
    /// A value with its key and redis's own entry.
    const ENTRY: u64 = VALUE + 130;
    const MAXMEMORY: u64 = 96 << 20;
    /// A burst of load and the pause after it.
    const PERIOD: f64 = 2.5;
    let port = fleet::free_port()?;
    let mut redis = Command::new("redis-server");
    redis
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .args(["--maxmemory", &MAXMEMORY.to_string()])
        .args(["--maxmemory-policy", "allkeys-lru"])
        .arg("--dir")
        .arg(fleet.room("redis")?);
    fleet.start("redis", redis)?;
    fleet.await_port(port)?;
    let bursts = pace.fill.as_secs_f64() / PERIOD;
    let sets = ((MAXMEMORY / ENTRY) as f64 / bursts).ceil() as u64;
    let benchmark = format!("redis-benchmark -p {port} -c 20 -q");
    fleet.repeat(
        "load for redis",
        &format!(
            "{benchmark} -r 1000000000 -n {sets} -d {VALUE} -t set; \
             {benchmark} -r 100000 -n 10000 -t get; sleep 2"
        ),
    )
}

/// Short requests for a small file.
fn nginx(fleet: &mut Fleet) -> Result<()> {
    let port = fleet::free_port()?;
    let room = fleet.room("nginx")?;
    let place = room.display();
    fs::write(room.join("page.html"), "lingerscope\n".repeat(400))?;
    let settings = room.join("nginx.conf");
    fs::write(
        &settings,
        format!(
            "daemon off;\nworker_processes 2;\npid {place}/pid;\nerror_log {place}/errors;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n  access_log off;\n  client_body_temp_path {place}/body;\n  \
             proxy_temp_path {place}/proxy;\n  fastcgi_temp_path {place}/fastcgi;\n  \
             uwsgi_temp_path {place}/uwsgi;\n  scgi_temp_path {place}/scgi;\n  gzip on;\n  \
             server {{ listen 127.0.0.1:{port}; root {place}; }}\n}}\n"
        ),
    )?;
    let program = shell::which("nginx").unwrap_or_else(|| "/usr/sbin/nginx".into());
    let mut nginx = Command::new(program);
    nginx
        .arg("-e")
        .arg(room.join("errors"))
        .arg("-c")
        .arg(settings);
    fleet.start("nginx", nginx)?;
    fleet.await_port(port)?;
    fleet.repeat(
        "load for nginx",
        &format!("wrk -t1 -c8 -d1s http://127.0.0.1:{port}/page.html; sleep 4"),
    )
}

/// A server of many processes, under pgbench.
fn postgres(fleet: &mut Fleet) -> Result<()> {
    let program = |name: &str| {
        packages::postgres(name)
            .map(Command::new)
            .with_context(|| format!("PostgreSQL's {name} is not installed"))
    };
    let port = fleet::free_port()?.to_string();
    let sockets = fleet.room("postgres")?;
    let data = sockets.join("data");
    fleet.run(
        program("initdb")?
            .arg("--pgdata")
            .arg(&data)
            .args(["--username=bench", "--auth=trust", "--no-sync"])
            .args(["--encoding=UTF8", "--no-locale"]),
    )?;
    let mut postgres = program("postgres")?;
    postgres
        .arg("-D")
        .arg(&data)
        .args(["-p", &port])
        .arg("-k")
        .arg(&sockets)
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"])
        .args(["-c", "shared_buffers=32MB"]);
    // SIGTERM would wait for its clients.
    fleet.start_ended_by(Signal::SIGINT, "postgres", postgres)?;
    let mut ready = program("pg_isready")?;
    ready.arg("-h").arg(&sockets).args(["-p", &port, "-q"]);
    fleet.await_success(&mut ready)?;
    let pgbench = || -> Result<Command> {
        let mut pgbench = program("pgbench")?;
        pgbench
            .arg("-h")
            .arg(&sockets)
            .args(["-p", &port, "-U", "bench"]);
        Ok(pgbench)
    };
    fleet.run(pgbench()?.args(["--initialize", "--quiet", "--scale=5", "postgres"]))?;
    let mut load = pgbench()?;
    load.args(["--client=4", "--rate=60", "--time=1000000", "postgres"]);
    fleet.start("load for postgres", load).map(drop)
}

fn python(fleet: &mut Fleet, pace: &Pace) -> Result<()> {
    // A wrapper, as pyenv has it, would be one more program.
    let program = if shell::is_program("/usr/bin/python3".as_ref()) {
        "/usr/bin/python3"
    } else {
        "python3"
    };
    let source = fleet.directory().join("cache.py");
    fs::write(&source, CACHE_PY)?;
    let mut python = Command::new(program);
    python.arg(source).args(["20000", &seconds(pace)]);
    fleet.start("python", python)?;
    fleet.await_line("READY")
}

fn node(fleet: &mut Fleet, pace: &Pace) -> Result<()> {
    let source = fleet.directory().join("cache.js");
    fs::write(&source, CACHE_JS)?;
    let mut node = Command::new("node");
    node.arg(source).args(["20000", &seconds(pace)]);
    fleet.start("node", node)?;
    fleet.await_line("READY")
}

/// Grows to its -Xmx.
fn java(fleet: &mut Fleet, pace: &Pace) -> Result<()> {
    let room = fleet.room("java")?;
    let source = room.join("Cache.java");
    fs::write(&source, CACHE_JAVA)?;
    fleet.run(Command::new("javac").arg("-d").arg(&room).arg(&source))?;
    let mut java = Command::new("java");
    java.args(["-Xms32m", "-Xmx256m", "-cp"])
        .arg(&room)
        .args(["Cache", "110000", &seconds(pace)]);
    fleet.start("java", java)?;
    fleet.await_line("READY")
}

fn seconds(pace: &Pace) -> String {
    pace.fill.as_secs().to_string()
}
