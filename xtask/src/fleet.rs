//! Programs that a command starts beside the daemon, and that never outlive
//! it.

pub(crate) mod built;
pub(crate) mod census;
pub(crate) mod period;

use std::{
    collections::HashMap,
    fs::{self, File},
    net::{TcpListener, TcpStream},
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use crate::interrupt;
use census::Process;

/// `nobody` on every Linux: what the programs run as.
const NOBODY: u32 = 65534;
/// How long a program may take until it serves.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Until those that were asked to end are killed.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A started program with everything that it starts itself.
pub(crate) struct Program {
    pub(crate) name: String,
    child: Child,
    /// What asks it to end.
    end: Signal,
    ended: bool,
}

impl Program {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// All of them, with a directory for their files. Dropping it stops them and
/// removes the directory, unless that is to be kept.
pub(crate) struct Fleet {
    directory: PathBuf,
    programs: Vec<Program>,
    /// Index of the program that a process belongs to, ended ones included.
    owners: HashMap<u32, usize>,
    pub(crate) keep_files: bool,
}

impl Fleet {
    /// An empty one; `name` becomes part of its directory's name.
    pub(crate) fn new(name: &str) -> Result<Self> {
        // Orphans become our children, and so are found at the end.
        prctl::set_child_subreaper(true).context("cannot adopt orphans")?;
        let directory =
            std::env::temp_dir().join(format!("lingerscope-{name}-{}", std::process::id()));
        fs::create_dir(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self {
            directory,
            programs: Vec::new(),
            owners: HashMap::new(),
            keep_files: false,
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new directory that belongs to the programs' user.
    pub(crate) fn room(&self, name: &str) -> Result<PathBuf> {
        let room = self.directory.join(name);
        fs::create_dir(&room).with_context(|| format!("cannot make {}", room.display()))?;
        chown(&room, Some(NOBODY), Some(NOBODY))
            .with_context(|| format!("cannot give {} away", room.display()))?;
        Ok(room)
    }

    /// A copy of a program that stays when the original is built anew.
    pub(crate) fn copy(&self, program: &Path, name: &str) -> Result<PathBuf> {
        let copy = self.directory.join(name);
        fs::copy(program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
        Ok(copy)
    }

    /// Runs a short command as the programs' user.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        command
            .current_dir(&self.directory)
            .uid(NOBODY)
            .gid(NOBODY)
            .stdin(Stdio::null());
        let output = command
            .output()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        if !output.status.success() {
            bail!(
                "{}: {}\n{}{}",
                command.get_program().display(),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Starts a program as the programs' user.
    pub(crate) fn start(&mut self, name: &str, mut command: Command) -> Result<&mut Program> {
        command.uid(NOBODY).gid(NOBODY);
        self.start_as_we_are(name, command)
    }

    /// Starts a program without changing its user.
    pub(crate) fn start_as_we_are(
        &mut self,
        name: &str,
        mut command: Command,
    ) -> Result<&mut Program> {
        let log = self.log_of(name);
        let output =
            File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let child = command
            .current_dir(&self.directory)
            // Ctrl-C on a terminal is for us; we stop the others in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let index = self.programs.len();
        self.owners.insert(child.id(), index);
        self.programs.push(Program {
            name: name.to_owned(),
            child,
            end: Signal::SIGTERM,
            ended: false,
        });
        self.programs.last_mut().context("nothing was started")
    }

    /// Starts a program that ends in order only when it gets this signal.
    pub(crate) fn start_ended_by(
        &mut self,
        end: Signal,
        name: &str,
        command: Command,
    ) -> Result<()> {
        self.start(name, command)?.end = end;
        Ok(())
    }

    /// Starts a shell that repeats `line`.
    pub(crate) fn repeat(&mut self, name: &str, line: &str) -> Result<()> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("while :; do {line}; done")]);
        self.start(name, shell).map(drop)
    }

    /// Waits until the newest program accepts connections.
    pub(crate) fn await_port(&mut self, port: u16) -> Result<()> {
        self.await_newest("does not listen", |_| {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
    }

    /// Waits until this command says that the newest program serves.
    pub(crate) fn await_success(&mut self, question: &mut Command) -> Result<()> {
        question.stdin(Stdio::null()).stdout(Stdio::null());
        self.await_newest("is not ready", |_| {
            question.status().is_ok_and(|status| status.success())
        })
    }

    /// Waits until the newest program has printed a line that begins so.
    pub(crate) fn await_line(&mut self, start: &str) -> Result<()> {
        self.await_newest(&format!("did not print {start}"), |log| {
            log.lines().any(|line| line.starts_with(start))
        })
    }

    fn await_newest(&mut self, why: &str, mut ready: impl FnMut(&str) -> bool) -> Result<()> {
        let program = self.programs.last_mut().context("nothing was started")?;
        let log = self.directory.join(format!("{}.log", program.name));
        let read = || fs::read_to_string(&log).unwrap_or_default();
        let mut ended = false;
        let outcome = interrupt::await_that(why, START_LIMIT, || {
            ended = program
                .child
                .try_wait()
                .is_ok_and(|status| status.is_some());
            ended || ready(&read())
        });
        if ended {
            bail!("{} has ended:\n{}", program.name, read());
        }
        outcome.with_context(|| format!("{}:\n{}", program.name, read()))
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    pub(crate) fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// The program that a process belongs to or belonged to.
    pub(crate) fn owner(&self, pid: u32) -> Option<&Program> {
        self.programs.get(*self.owners.get(&pid)?)
    }

    /// The newest program's own process, or the one that it was started for
    /// where a wrapper stands before it.
    pub(crate) fn newest_child(&self) -> Result<u32> {
        let parent = self.programs.last().context("nothing was started")?.pid();
        let mut child = None;
        interrupt::await_that("no child process", START_LIMIT, || {
            child = census::all()
                .into_iter()
                .find(|process| process.parent == parent)
                .map(|process| process.pid);
            child.is_some()
        })?;
        child.context("no child process")
    }

    /// Looks who belongs to whom; all processes of the host. A program that
    /// has ended is an error.
    pub(crate) fn look(&mut self) -> Result<Vec<Process>> {
        let all = census::all();
        for (index, program) in self.programs.iter().enumerate() {
            for process in census::tree(&all, program.pid()) {
                self.owners.insert(process.pid, index);
            }
        }
        self.reap(&all);
        for index in 0..self.programs.len() {
            let program = &mut self.programs[index];
            if program.ended {
                continue;
            }
            if let Some(status) = program.child.try_wait()? {
                program.ended = true;
                let log = fs::read_to_string(self.log_of(&self.programs[index].name));
                bail!(
                    "{} has ended early: {status}\n{}",
                    self.programs[index].name,
                    log.unwrap_or_default()
                );
            }
        }
        Ok(all)
    }

    /// Takes note of orphans' ends, so that they do not stay as zombies.
    fn reap(&self, all: &[Process]) {
        let ours = std::process::id();
        let started = |pid| self.programs.iter().any(|program| program.pid() == pid);
        for orphan in all
            .iter()
            .filter(|process| process.parent == ours && process.is_zombie())
            .filter(|process| self.owners.contains_key(&process.pid) && !started(process.pid))
        {
            let pid = Pid::from_raw(orphan.pid as i32);
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
    }

    /// Asks all to end, the newest first, and kills what does not.
    fn stop_all(&mut self) {
        for program in self.programs.iter_mut().rev() {
            // The whole group: a shell does not pass signals on.
            let _ = killpg(Pid::from_raw(program.pid() as i32), program.end);
        }
        let end = Instant::now() + END_LIMIT;
        for program in self.programs.iter_mut().rev() {
            while Instant::now() < end && program.child.try_wait().is_ok_and(|s| s.is_none()) {
                thread::sleep(Duration::from_millis(20));
            }
            drop(program.child.kill());
            drop(program.child.wait());
        }
        // Their orphans are ours now, and may have children that follow.
        for _ in 0..20 {
            let all = census::all();
            let left: Vec<u32> = census::tree(&all, std::process::id())
                .filter(|process| process.pid != std::process::id() && !process.is_zombie())
                .map(|process| process.pid)
                .collect();
            if left.is_empty() {
                break;
            }
            kill_all(&left);
            thread::sleep(Duration::from_millis(50));
        }
        self.programs.clear();
    }
}

fn kill_all(pids: &[u32]) {
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop_all();
        if !self.keep_files {
            drop(fs::remove_dir_all(&self.directory));
        }
    }
}

/// A port of the loopback interface that nobody has at the moment.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}
