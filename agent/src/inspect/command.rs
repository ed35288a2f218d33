//! A command that is inspected from its first allocation: it waits between
//! fork and exec until the probes are ready.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use nix::fcntl::OFlag;

use crate::{capture::libraries, host::module};

/// A child that has been forked and waits for [`Self::release`].
///
/// It is made before any probe descriptor exists, so that it inherits none.
pub(super) struct Waiting {
    /// Its process id.
    pub(super) pid: u32,
    program: PathBuf,
    gate: OwnedFd,
    spawner: JoinHandle<io::Result<Child>>,
}

impl Waiting {
    /// Forks. With `quiet_stdout` the command's standard output goes to our
    /// standard error, because ours carries a document.
    pub(super) fn new(command: &[OsString], quiet_stdout: bool) -> Result<Self> {
        let (program, arguments) = command.split_first().context("no command given")?;
        let (gate_read, gate) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (pid_read, pid_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let mut command = Command::new(program);
        command.args(arguments);
        if quiet_stdout {
            command.stdout(Stdio::from(io::stderr().as_fd_clone()?));
        }
        let gate_copy = gate.as_raw_fd();
        // SAFETY: only system calls on descriptors that the child has.
        unsafe {
            command.pre_exec(move || {
                // Our end must not keep the gate open in the child itself.
                libc::close(gate_copy);
                let pid = libc::getpid().to_ne_bytes();
                let mut go = 0u8;
                if libc::write(pid_write.as_raw_fd(), pid.as_ptr().cast(), pid.len())
                    != pid.len() as isize
                    || libc::read(gate_read.as_raw_fd(), (&raw mut go).cast(), 1) != 1
                {
                    return Err(io::Error::other("lingerscope gave up before the start"));
                }
                Ok(())
            });
        }
        // `spawn` returns only after the exec.
        let spawner = thread::Builder::new()
            .name("spawner".into())
            .spawn(move || command.spawn())?;
        let mut pid = [0u8; 4];
        if let Err(error) = File::from(pid_read).read_exact(&mut pid) {
            let reason = spawner.join().ok().context("the spawning thread failed")?;
            return Err(reason.err().unwrap_or(error)).context("cannot start the command");
        }
        Ok(Self {
            pid: i32::from_ne_bytes(pid) as u32,
            program: PathBuf::from(program),
            gate,
            spawner,
        })
    }

    /// Lets it exec.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn release(self) -> Result<Starting> {
        File::from(self.gate)
            .write_all(&[1])
            .context("cannot start the command")?;
        Ok(Starting {
            program: self.program,
            spawner: self.spawner,
        })
    }
}

/// A child that was let go and executes the command about now.
pub(super) struct Starting {
    program: PathBuf,
    spawner: JoinHandle<io::Result<Child>>,
}

impl Starting {
    /// The child, after its exec.
    ///
    /// # Errors
    /// When the command cannot be executed.
    pub(super) fn child(self) -> Result<Child> {
        self.spawner
            .join()
            .ok()
            .context("the spawning thread failed")?
            .with_context(|| format!("cannot execute {}", self.program.display()))
    }
}

/// A second descriptor of the same open file.
trait Duplicate {
    fn as_fd_clone(&self) -> io::Result<OwnedFd>;
}

impl Duplicate for io::Stderr {
    fn as_fd_clone(&self) -> io::Result<OwnedFd> {
        use std::os::fd::AsFd as _;
        self.as_fd().try_clone_to_owned()
    }
}

/// The files that the command will map, as far as they can be told.
pub(super) fn upcoming_files(command: &[OsString]) -> Vec<PathBuf> {
    let Some(program) = command.first() else {
        return Vec::new();
    };
    let environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    match libraries::images(&HostFiles, program, &environment) {
        Ok(images) => images.files,
        Err(problem) => {
            tracing::debug!(%problem, "the command's libraries are not known before it runs");
            Vec::new()
        }
    }
}

/// Files as this process sees them, which the command inherits.
struct HostFiles;

impl libraries::Files for HostFiles {
    fn open(&self, path: &Path) -> io::Result<File> {
        module::open_regular(path).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_its_release() {
        let command = ["sh", "-c", "exit 7"].map(OsString::from);
        let waiting = Waiting::new(&command, false).unwrap();
        let exe = |pid| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        assert_eq!(exe(waiting.pid), exe(std::process::id()));
        let mut child = waiting.release().unwrap().child().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn tells_of_a_command_that_does_not_exist() {
        let waiting = Waiting::new(&[OsString::from("/no/such/command")], false).unwrap();
        assert!(
            format!("{:#}", waiting.release().unwrap().child().unwrap_err())
                .contains("No such file")
        );
    }
}
