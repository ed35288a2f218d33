//! `cargo xtask boot`: the service under a real systemd, booted in a container
//! on this kernel, beside a service that leaks and one that does not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    packages::{self, Missing, Need},
    setup, shell, toolchain,
};

/// What happens inside, one line per check.
const JOB: &str = include_str!("boot/job.sh");
/// Starts it when the system is up, and ends the system.
const JOB_UNIT: &str = "[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash -c 'cd /job && bash job.sh >output 2>&1; echo $? >status'
ExecStopPost=/bin/systemctl --no-block exit
TimeoutStartSec=infinity
";
const SETTINGS: &str = "watch:
  interval: 1s
  patience: 20s
";
/// For the whole boot.
const LIMIT: Duration = Duration::from_mins(8);

pub(crate) fn run(no_install: bool) -> Result<()> {
    let tools = setup::prepare(Need::Test, no_install)?;
    let missing: Vec<Missing> = [
        ("systemd-nspawn", "systemd-container", "boots a container"),
        ("mmdebstrap", "mmdebstrap", "fills it with a Debian system"),
    ]
    .into_iter()
    .filter(|(program, ..)| shell::which(program).is_none())
    .map(|(_, package, reason)| Missing::new(package, reason))
    .collect();
    if !missing.is_empty() && no_install {
        packages::advise(&missing);
        bail!("something is missing, and nothing was installed");
    }
    if !missing.is_empty() {
        packages::install(&missing)?;
    }
    let programs = build::agent_and(&tools, &["--example", "server"])?;
    let system = system()?;
    let job = shell::root().join("target/boot");
    if job.exists() {
        fs::remove_dir_all(&job)?;
    }
    fs::create_dir_all(&job)?;
    for (from, name) in [
        (programs.path("lingerscope")?, "lingerscope"),
        (programs.path("server")?, "server"),
    ] {
        fs::copy(&from, job.join(name)).with_context(|| from.display().to_string())?;
    }
    for name in ["lingerscope.service", "lingerscope.catalog"] {
        fs::copy(shell::root().join("systemd").join(name), job.join(name))?;
    }
    fs::write(job.join("lingerscope.yaml"), SETTINGS)?;
    fs::write(job.join("job.sh"), JOB)?;
    fs::write(job.join("job.service"), JOB_UNIT)?;
    let booted = boot(&system, &job);
    let output = fs::read_to_string(job.join("output")).unwrap_or_default();
    print!("{output}");
    booted?;
    let status = fs::read_to_string(job.join("status"))
        .with_context(|| format!("no result; {} tells more", job.join("console").display()))?;
    if status.trim() != "0" {
        bail!("a check inside the container failed");
    }
    Ok(())
}

fn boot(system: &Path, job: &Path) -> Result<()> {
    let bind = |option: &str, from: &Path, to: &str| format!("{option}={}:{to}", from.display());
    let mut nspawn = shell::as_root("systemd-nspawn", &[]);
    nspawn
        .args(["-q", "--boot", "--volatile=overlay", "--register=no"])
        .args(["--keep-unit", "--private-network", "--link-journal=no"])
        .args(["--console=pipe", "--capability=all"])
        .arg("--system-call-filter=bpf perf_event_open")
        .arg(format!("--machine=boot{}", std::process::id()))
        .arg("-D")
        .arg(system)
        .arg(bind("--bind", job, "/job"))
        .arg(bind(
            "--bind-ro",
            &job.join("job.service"),
            "/etc/systemd/system/job.service",
        ))
        .args([
            "systemd.wants=job.service",
            "systemd.mask=console-getty.service",
        ])
        .stdin(Stdio::null())
        .stdout(fs::File::create(job.join("console"))?)
        .stderr(fs::File::create(job.join("errors"))?);
    shell::run_within(&mut nspawn, LIMIT)
}

/// A minimal Debian of this machine's release, made once per user: its C
/// library is not older than the one that the programs were linked with.
fn system() -> Result<PathBuf> {
    let release = fs::read_to_string("/etc/os-release").context("which system is this?")?;
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no release")?
        .trim_matches('"');
    let cache = toolchain::cache()?;
    let system = cache.join(format!("boot-{name}"));
    if system.join("usr/lib/systemd/systemd").exists() {
        return Ok(system);
    }
    fs::create_dir_all(&cache)?;
    eprintln!("boot: making a minimal system, about a minute:");
    let unfinished = cache.join(format!("boot-{name}-{}", std::process::id()));
    let mut make: Command = shell::as_root("mmdebstrap", &[]);
    make.args(["--quiet", "--variant=minbase"])
        .arg("--include=systemd,systemd-sysv,dbus")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg(name)
        .arg(&unfinished);
    shell::run(&mut make)?;
    fs::rename(&unfinished, &system).context("cannot keep the system that was made")?;
    Ok(system)
}
