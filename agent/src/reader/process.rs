//! One reader process, from its start to its end.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
        unix::{net::UnixStream, process::ExitStatusExt as _},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    HELLO,
    wire::{self, Limits, Message},
};
use crate::host::{cpu_clock::CpuClock, memory::PAGE, population::Meter};

/// How often its processor time is looked at while it works.
const LOOK: Duration = Duration::from_millis(50);
/// How long an end that its socket announces may take.
const END: Duration = Duration::from_millis(200);

/// How long an answer may take: so much of a processor, and of time where the
/// machine is busy or the file system slow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) processor: Duration,
    pub(super) wall: Duration,
}

/// How a reader failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It ended.
    Ended(Option<ExitStatus>),
    /// It did not answer in time.
    Late(Duration),
    /// Its answer was no message, too large or out of turn.
    Unsound,
}

/// A reader that runs.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    socket: UnixStream,
    clock: CpuClock,
    asked: u32,
}

impl Process {
    /// Starts `program` with these arguments, and waits until it has locked
    /// itself in.
    pub(super) fn start(
        program: &Path,
        arguments: &[&str],
        deadline: Deadline,
    ) -> Result<Self, String> {
        let told = |error: io::Error| error.to_string();
        let (ours, theirs) = UnixStream::pair().map_err(told)?;
        ours.set_nonblocking(true).map_err(told)?;
        let child = Command::new(program)
            .args(arguments)
            // It needs none, and some settings write messages.
            .env_clear()
            // The C library's heap of a second thread opens a file before it
            // shrinks; tests run their reader in one.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(told)?;
        let clock = CpuClock::of(child.id()).unwrap_or(CpuClock::THIS_THREAD);
        let mut process = Self {
            child,
            socket: ours,
            clock,
            asked: 0,
        };
        let limits = Limits {
            body: 1024,
            payload: 0,
        };
        match process.receive(limits, deadline) {
            Ok(hello) if hello.body == HELLO.as_bytes() => Ok(process),
            // What it says instead is why it cannot lock itself in.
            Ok(hello) => Err(String::from_utf8_lossy(&hello.body)
                .escape_default()
                .to_string()),
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of its own memory; 0 when that cannot be told.
    pub(super) fn memory(&self) -> u64 {
        let pages = Meter::open(self.id()).and_then(|meter| meter.read());
        pages.map_or(0, |pages| pages.anonymous.saturating_mul(PAGE))
    }

    /// Whether it has ended while nothing was asked.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks and waits for the answer.
    pub(super) fn ask(
        &mut self,
        body: Vec<u8>,
        files: &[&File],
        limits: Limits,
        deadline: Deadline,
    ) -> Result<Message, Failure> {
        self.asked = self.asked.wrapping_add(1);
        let question = Message {
            number: self.asked,
            body,
            payload: Vec::new(),
        };
        let descriptors: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        let mut patience = Patience::new(&self.socket, self.clock, deadline);
        let sent = wire::send(
            self.socket.as_fd(),
            &question,
            &descriptors,
            &mut |events| patience.wait(events),
        );
        sent.map_err(|error| self.failure(&error, deadline))?;
        let answer = self.receive(limits, deadline)?;
        if answer.number != self.asked {
            return Err(Failure::Unsound);
        }
        Ok(answer)
    }

    fn receive(&mut self, limits: Limits, deadline: Deadline) -> Result<Message, Failure> {
        let mut patience = Patience::new(&self.socket, self.clock, deadline);
        let received = wire::receive(self.socket.as_fd(), limits, &mut |events| {
            patience.wait(events)
        });
        match received {
            Ok(Some((message, _))) => Ok(message),
            Ok(None) => Err(Failure::Ended(self.status())),
            Err(error) => Err(self.failure(&error, deadline)),
        }
    }

    fn failure(&mut self, error: &io::Error, deadline: Deadline) -> Failure {
        match error.kind() {
            io::ErrorKind::TimedOut => Failure::Late(deadline.processor),
            io::ErrorKind::InvalidData => Failure::Unsound,
            _ => Failure::Ended(self.status()),
        }
    }

    /// How it ended, once its socket is closed.
    fn status(&mut self) -> Option<ExitStatus> {
        let began = Instant::now();
        while began.elapsed() < END {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A child of ours, that does nothing but read.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(status) => {
                let signal = status.and_then(|status| status.signal());
                let code = status.and_then(|status| status.code());
                match (signal, code) {
                    (Some(libc::SIGBUS), _) => {
                        write!(f, "the reader ended by signal 7: the file became shorter")
                    }
                    (Some(libc::SIGABRT), _) => {
                        write!(f, "the reader ended by signal 6: it needed too much memory")
                    }
                    (Some(libc::SIGSYS), _) => write!(
                        f,
                        "the reader ended by signal 31: it made a system call that it may not"
                    ),
                    (Some(signal), _) => write!(f, "the reader ended by signal {signal}"),
                    (None, Some(code)) => write!(f, "the reader ended with status {code}"),
                    (None, None) => write!(f, "the reader closed its socket"),
                }
            }
            Self::Late(limit) => write!(f, "the reader had no answer after {limit:?}"),
            Self::Unsound => write!(f, "the reader's answer makes no sense"),
        }
    }
}

/// Waiting for a socket until a deadline has passed.
struct Patience<'a> {
    socket: &'a UnixStream,
    clock: CpuClock,
    /// Its processor time when the question was asked.
    before: Option<Duration>,
    began: Instant,
    deadline: Deadline,
}

impl<'a> Patience<'a> {
    fn new(socket: &'a UnixStream, clock: CpuClock, deadline: Deadline) -> Self {
        Self {
            socket,
            clock,
            before: clock.read().ok(),
            began: Instant::now(),
            deadline,
        }
    }

    fn wait(&mut self, events: PollFlags) -> io::Result<()> {
        loop {
            let mut descriptors = [PollFd::new(self.socket.as_fd(), events)];
            let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
            match poll(&mut descriptors, timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let used = self.before.and_then(|before| {
                let now = self.clock.read().ok()?;
                now.checked_sub(before)
            });
            if self.began.elapsed() >= self.deadline.wall
                || used.is_some_and(|used| used >= self.deadline.processor)
            {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
