//! What the reader process does: it locks itself in, then answers one question
//! after the other.

use std::{
    io,
    ops::Deref,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    process::ExitCode,
    ptr::NonNull,
};

use nix::poll::PollFlags;

use super::{
    HELLO, code,
    names::Sources,
    question::{Answer, Linking, Names, Paths, Question, packed},
    sandbox,
    wire::{self, Limits, Message},
};
use crate::{
    capture::libraries,
    elf::{self, Loaded, image},
    tokio_rt::file,
    unwind,
};

/// Largest question: the vtables of a large program, each with what its
/// futures begin with.
const LIMITS: Limits = Limits {
    body: 64 << 20,
    payload: 0,
};
/// Seconds for one answer, more than the asking side ever waits: when that is
/// gone, nobody else ends a reader that hangs.
const ALONE: libc::c_uint = if cfg!(debug_assertions) { 300 } else { 30 };
/// As the asking side keeps it.
const MAX_BYTES: u64 = 8 << 30;

/// The reader process: standard input is its socket.
pub fn run() -> ExitCode {
    // SAFETY: open for as long as the process lives.
    let socket = unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) };
    let hello = match sandbox::enter() {
        Ok(()) => HELLO.to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let message = Message {
        number: 0,
        body: hello.clone().into_bytes(),
        payload: Vec::new(),
    };
    if wire::send(socket, &message, &[], &mut never).is_err() || hello != HELLO {
        return ExitCode::FAILURE;
    }
    match serve(socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The socket blocks.
fn never(_: PollFlags) -> io::Result<()> {
    Err(io::ErrorKind::WouldBlock.into())
}

/// Answers until nobody asks any more.
fn serve(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut server = Server::default();
    while let Some((message, descriptors)) = wire::receive(socket, LIMITS, &mut never)? {
        let number = message.number;
        give_up_after(ALONE);
        let (answer, payload) = server.answer_message(&message.body, &descriptors);
        drop((message, descriptors));
        let body = postcard::to_allocvec(&answer).map_err(io::Error::other)?;
        let answer = Message {
            number,
            body,
            payload,
        };
        give_up_after(0);
        wire::send(socket, &answer, &[], &mut never)?;
    }
    Ok(())
}

/// Has the kernel end this process after so many seconds; 0: not at all.
fn give_up_after(seconds: libc::c_uint) {
    // SAFETY: takes a number.
    unsafe { libc::syscall(libc::SYS_alarm, seconds) };
}

/// A file, read-only in memory. Where it becomes shorter meanwhile, reading
/// ends the process; it is there for that.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

impl Mapping {
    /// Maps a whole file.
    ///
    /// # Errors
    /// What the kernel answers, or when it is too large.
    pub fn of(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a descriptor that is open.
        let size = unsafe { libc::lseek(descriptor.as_raw_fd(), 0, libc::SEEK_END) };
        let Ok(size) = u64::try_from(size) else {
            return Err(io::Error::last_os_error());
        };
        if size > MAX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let size = size as usize;
        if size == 0 {
            return Ok(Self {
                start: NonNull::dangling(),
                size,
            });
        }
        // SAFETY: a new mapping, anywhere.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                descriptor.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, size })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped as long as this lives. Somebody may write the file
        // meanwhile; what is read then is wrong, as any damaged file is, in a
        // process that can do nothing but answer.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.size > 0 {
            // SAFETY: it was mapped so.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
        }
    }
}

/// Answers questions, and remembers what takes long to read.
#[derive(Default)]
pub struct Server {
    sources: Sources,
}

impl Server {
    fn answer_message(&mut self, body: &[u8], descriptors: &[OwnedFd]) -> (Answer, Vec<u8>) {
        let nothing = |why: String| (Answer::Nothing(why), Vec::new());
        let question: Question = match postcard::from_bytes(body) {
            Ok(question) => question,
            Err(error) => return nothing(format!("the question makes no sense: {error}")),
        };
        let files = descriptors
            .iter()
            .map(|descriptor| Mapping::of(descriptor.as_fd()));
        match files.collect::<io::Result<Vec<Mapping>>>() {
            Ok(files) => self.answer(&question, files),
            Err(error) => nothing(format!("it cannot be mapped: {error}")),
        }
    }

    /// Answers a question about files; the second value travels beside the
    /// answer.
    pub fn answer(&mut self, question: &Question, files: Vec<Mapping>) -> (Answer, Vec<u8>) {
        if let Question::Names {
            key,
            debug,
            addresses,
        } = question
        {
            let names = self.sources.names(*key, *debug, files, addresses);
            let answer = names.map_or_else(Answer::Nothing, |names| Answer::Names(Names(names)));
            return (answer, Vec::new());
        }
        let Some(file) = files.first() else {
            return (Answer::Nothing("no file".to_owned()), Vec::new());
        };
        answer(question, file)
    }
}

/// Answers what is about one file and needs no memory of it.
pub fn answer(question: &Question, bytes: &[u8]) -> (Answer, Vec<u8>) {
    if let Question::CachedLibrary(name) = question {
        let paths = libraries::cached(bytes, name);
        return (Answer::CachedLibrary(Paths(paths)), Vec::new());
    }
    let Ok(elf) = Loaded::parse(bytes) else {
        return (
            Answer::Nothing("it is no 64-bit ELF file".to_owned()),
            Vec::new(),
        );
    };
    let mut payload = Vec::new();
    let answer = match question {
        Question::BuildId => Answer::BuildId(code::build_id(&elf)),
        Question::Code => {
            let (code, rows) = code::read(&elf);
            payload = packed(&rows);
            Answer::Code(Box::new(code))
        }
        Question::Rows => match unwind::compile(&elf) {
            Ok(table) => {
                payload = packed(&table.rows);
                Answer::Rows
            }
            Err(error) => Answer::Nothing(format!("{error:#}")),
        },
        Question::Tasks { analyse, mapping } => tasks(&elf, *analyse, *mapping),
        Question::TaskNames(questions) => {
            Answer::TaskNames(Box::new(file::name(&elf, questions).into()))
        }
        Question::Linking => Answer::Linking(linking(&elf)),
        Question::Names { .. } | Question::CachedLibrary(_) => {
            Answer::Nothing("not about one file".to_owned())
        }
    };
    (answer, payload)
}

fn tasks(elf: &Loaded<'_>, analyse: Option<bool>, (start, offset): (u64, u64)) -> Answer {
    let file = match analyse.map(|is_main| file::analyse(elf, is_main)) {
        None => None,
        Some(Ok(file)) => file,
        Some(Err(why)) => return Answer::Nothing(why.to_owned()),
    };
    Answer::Tasks(Box::new(super::question::Tasks {
        file: file.map(Into::into),
        bias: image::bias(elf, start, offset, true),
    }))
}

fn linking(elf: &Loaded<'_>) -> Linking {
    use object::elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH};
    let strings = |tag| {
        let strings = elf::dynamic_strings(elf, tag).into_iter();
        let bounded = strings.filter(|text| text.len() <= libc::PATH_MAX as usize);
        bounded.take(256).map(<[u8]>::to_vec).collect()
    };
    Linking {
        interpreter: elf::interpreter(elf).map(<[u8]>::to_vec),
        needed: strings(DT_NEEDED),
        rpath: strings(DT_RPATH),
        runpath: strings(DT_RUNPATH),
    }
}
