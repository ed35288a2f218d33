//! `cargo xtask boot`: the service under a real systemd, in a virtual machine
//! with a kernel of Debian's, beside a service that leaks and one that does
//! not.
//!
//! A container would not do: the kernel tells process ids of the host, and in
//! a container there are others.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
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
/// Runs the job when the system is up, and ends the system.
const JOB_UNIT: &str = include_str!("boot/job.service");
/// The machine is emulated and so about twenty times slower.
const SETTINGS: &str = "watch:
  interval: 2s
  patience: 30s
budget:
  target_percent: 20
  window_percent: 100
  window_ms: 10000
  agent_percent: 60
";
const MIRROR: &str = "http://deb.debian.org";
/// For the whole boot.
const LIMIT: Duration = Duration::from_mins(20);
/// Names another QEMU than the one in PATH.
const QEMU: &str = "LINGERSCOPE_QEMU";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Debian's name of the kernel; 6.12 has probes by `uprobe_multi`, 6.1 (linux-image-cloud-amd64 of Debian 12) by perf events only
    #[arg(long, default_value = "linux-image-6.12-cloud-amd64")]
    kernel: String,
}

/// A system that can be booted.
struct System {
    root: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

pub(crate) fn run(options: &Options, no_install: bool) -> Result<()> {
    let tools = setup::prepare(Need::Test, no_install)?;
    let qemu = env::var_os(QEMU).unwrap_or_else(|| "qemu-system-x86_64".into());
    install(&qemu, no_install)?;
    let programs = build::agent_and(&tools, &["--example", "server"])?;
    let system = System::of(&options.kernel)?;
    let work = shell::root().join("target/boot");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let job = work.join("job");
    fs::create_dir_all(&job)?;
    for name in ["lingerscope", "server"] {
        let program = programs.path(name)?;
        fs::copy(&program, job.join(name)).with_context(|| program.display().to_string())?;
    }
    for name in ["lingerscope.service", "lingerscope.catalog"] {
        fs::copy(shell::root().join("systemd").join(name), job.join(name))?;
    }
    fs::write(job.join("lingerscope.yaml"), SETTINGS)?;
    fs::write(job.join("job.sh"), JOB)?;
    system.boot(&qemu, &job, &work)?;
    let output = fs::read_to_string(work.join("output")).unwrap_or_default();
    print!("{output}");
    let status = fs::read_to_string(work.join("status"))
        .with_context(|| format!("no result; {} tells more", work.join("console").display()))?;
    if status.trim() != "0" {
        bail!("a check inside failed");
    }
    Ok(())
}

fn install(qemu: &OsString, no_install: bool) -> Result<()> {
    let there = |program: &str| Path::new(program).exists() || shell::which(program).is_some();
    let emulator = qemu.to_string_lossy();
    let missing: Vec<Missing> = [
        (&*emulator, "qemu-system-x86", "the virtual machine"),
        ("mmdebstrap", "mmdebstrap", "fills it with a Debian system"),
        ("/usr/sbin/mkfs.ext4", "e2fsprogs", "makes its disk"),
    ]
    .into_iter()
    .filter(|(program, ..)| !there(program))
    .map(|(_, package, reason)| Missing::new(package, reason))
    .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if no_install {
        packages::advise(&missing);
        bail!("something is missing, and nothing was installed");
    }
    packages::install(&missing)
        .with_context(|| format!("{QEMU} may name a QEMU that is not installed"))
}

impl System {
    /// A minimal Debian of this machine's release, made once per user: its C
    /// library is not older than the one that the programs were linked with.
    fn of(kernel: &str) -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("which system is this?")?;
        let name = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("/etc/os-release names no release")?
            .trim_matches('"');
        let directory = toolchain::cache()?.join(format!("boot-{name}-{kernel}"));
        let system = Self {
            root: directory.join("root.ext4"),
            kernel: directory.join("vmlinuz"),
            initrd: directory.join("initrd.img"),
        };
        if !system.root.exists() {
            Self::make(&directory, name, kernel)?;
        }
        Ok(system)
    }

    fn make(directory: &Path, release: &str, kernel: &str) -> Result<()> {
        eprintln!("boot: making a minimal system with {kernel}, two minutes:");
        let mut unfinished = directory.as_os_str().to_owned();
        unfinished.push(format!(".{}", std::process::id()));
        let unfinished = PathBuf::from(unfinished);
        let tree = unfinished.join("tree");
        fs::create_dir_all(&unfinished)?;
        let unit = unfinished.join("job.service");
        fs::write(&unit, JOB_UNIT)?;
        let mut make = shell::as_root("mmdebstrap", &[]);
        make.args(["--quiet", "--variant=minbase"])
            .arg(format!(
                "--include=systemd,systemd-sysv,dbus,udev,initramfs-tools,{kernel}"
            ))
            .args(
                ["doc", "man", "locale"]
                    .map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}/*")),
            )
            .arg(format!(
                "--customize-hook=copy-in {} /etc/systemd/system",
                unit.display()
            ))
            .arg("--customize-hook=cp \"$1\"/boot/vmlinuz-* \"$1\"/../vmlinuz")
            .arg("--customize-hook=cp \"$1\"/boot/initrd.img-* \"$1\"/../initrd.img")
            .arg(release)
            .arg(&tree)
            .arg(format!("deb {MIRROR}/debian {release} main"))
            .arg(format!(
                "deb {MIRROR}/debian-security {release}-security main"
            ));
        shell::run(&mut make)?;
        let mut disk = shell::as_root("/usr/sbin/mkfs.ext4", &[]);
        disk.args(["-q", "-F", "-O", "^has_journal", "-d"])
            .arg(&tree)
            .arg(unfinished.join("root.ext4"))
            .arg("3G");
        shell::run(&mut disk)?;
        shell::run(shell::as_root("rm", &[]).arg("-rf").arg(&tree))?;
        fs::rename(&unfinished, directory).context("cannot keep the system that was made")
    }

    /// Boots it with the files of `job` in /job, and fetches what the job
    /// wrote.
    fn boot(&self, qemu: &OsString, job: &Path, work: &Path) -> Result<()> {
        let (given, taken) = (work.join("given.tar"), work.join("taken.tar"));
        shell::run(
            shell::command("tar")
                .arg("-cf")
                .arg(&given)
                .arg("-C")
                .arg(job)
                .arg("."),
        )?;
        fs::File::create(&taken)?.set_len(64 << 20)?;
        let drive =
            |path: &Path, how: &str| format!("file={},format=raw,if=virtio,{how}", path.display());
        let mut machine = shell::command(qemu);
        machine
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", work.join("console").display()))
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            .args([
                "-append",
                "root=/dev/vda rw console=ttyS0 panic=-1 quiet mitigations=off systemd.wants=job.service",
            ])
            .arg("-drive")
            .arg(drive(&self.root, "snapshot=on"))
            .arg("-drive")
            .arg(drive(&given, "readonly=on"))
            .arg("-drive")
            .arg(drive(&taken, "cache=unsafe"))
            .stdin(Stdio::null());
        shell::run_within(&mut machine, LIMIT)?;
        shell::run(
            shell::command("tar")
                .arg("-xf")
                .arg(&taken)
                .arg("-C")
                .arg(work),
        )
    }
}
