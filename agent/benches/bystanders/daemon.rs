//! The daemon, and a process for it to follow.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// This program as a process that is followed.
pub(crate) const FOLLOWED: &str = "be-followed";
/// What the daemon does at its start is over by then.
const SETTLED: Duration = Duration::from_secs(2);
/// The daemon watches by then, or never.
const PATIENCE: Duration = Duration::from_mins(1);

/// Has a child not outlive us.
fn end_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: takes numbers only and allocates nothing.
    let tie = || match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: it may run between fork and exec.
    unsafe { command.pre_exec(tie) }
}

/// Allocates and frees a little, for ever.
pub(crate) fn be_followed() -> ! {
    // SAFETY: a name that ends with a null.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"be-followed".as_ptr()) };
    loop {
        drop(std::hint::black_box(vec![1u8; 100]));
        thread::sleep(Duration::from_millis(10));
    }
}

/// A process to follow; it ends when this is dropped.
pub(crate) struct Followed(Child);

impl Followed {
    pub(crate) fn start() -> Result<Self> {
        let child = end_with_us(Command::new(env::current_exe()?).arg(FOLLOWED))
            .spawn()
            .context("cannot start a process to follow")?;
        Ok(Self(child))
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A daemon with its own settings; it ends when this is dropped.
pub(crate) struct Daemon {
    child: Child,
    directory: PathBuf,
}

impl Daemon {
    /// Starts it, and waits until it has nothing more to do; with `followed`,
    /// until it has decided how to follow that.
    pub(crate) fn start(settings: &str, followed: Option<&Followed>) -> Result<Self> {
        let program = env::var_os("LINGERSCOPE_BIN").context("LINGERSCOPE_BIN names no program")?;
        let directory =
            env::temp_dir().join(format!("lingerscope-bystanders-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let (file, log) = (directory.join("lingerscope.yaml"), directory.join("log"));
        fs::write(&file, settings)?;
        let mut command = Command::new(program);
        command
            .args(["daemon", "--config"])
            .arg(&file)
            .env_remove("LINGERSCOPE_LOG")
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?);
        let child = end_with_us(&mut command)
            .spawn()
            .context("cannot start the daemon")?;
        let mut daemon = Self { child, directory };
        let sign = match followed {
            Some(followed) => format!("process {}: ", followed.0.id()),
            None => "watching".to_owned(),
        };
        let began = Instant::now();
        loop {
            let said = fs::read_to_string(&log)?;
            if said.contains(&sign) {
                break;
            }
            let ended = daemon.child.try_wait()?;
            ensure!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "the daemon does not say {sign:?}:\n{said}"
            );
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(SETTLED);
        Ok(daemon)
    }

    /// Has it end, as the service manager would.
    pub(crate) fn end(mut self) -> Result<()> {
        // SAFETY: takes two numbers; the child is not yet waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the daemon: {status}");
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("the daemon does not end")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_dir_all(&self.directory));
    }
}
