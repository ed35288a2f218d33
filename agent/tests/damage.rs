//! The reader process on damaged files, and on what may happen to it: an
//! answer or a counted loss, in time, within its memory, and none of it in the
//! process that asks.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "damage/files.rs"]
mod files;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use lingerscope::{
    host::{memory::PAGE, module::Stamp, population::Meter},
    reader::{
        Reader, SUBCOMMAND, Unread,
        question::{Answer, Question},
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The reader's own limit, and what the C library adds.
const MAX_MEMORY: u64 = 136 << 20;
/// Memory of this process that one file may cost.
const MAX_GROWTH: u64 = 4 << 20;
/// For one answer of an unoptimised build.
const PATIENCE: Duration = Duration::from_mins(1);

fn reader() -> Reader {
    Reader::new(env!("CARGO_BIN_EXE_lingerscope"), &[SUBCOMMAND])
}

/// Everything that is asked about any file.
fn questions(file: &File) -> Vec<Question> {
    let names = |debug| Question::Names {
        key: Stamp::of(file).unwrap().words(),
        debug,
        addresses: (0..400).map(|index| index * 16).collect(),
    };
    vec![
        Question::BuildId,
        Question::Code,
        Question::Rows,
        names(true),
        names(false),
        Question::Tasks {
            analyse: Some(true),
            mapping: (0x5555_0000_0000, 0x1000),
        },
        Question::Linking,
        Question::CachedLibrary(b"libc.so.6".to_vec()),
    ]
}

fn own_memory() -> u64 {
    let meter = Meter::open(std::process::id()).unwrap();
    meter.read().unwrap().anonymous * PAGE
}

/// A directory that is deleted with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lingerscope-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A library with symbols and debug information.
fn library(folder: &Folder) -> PathBuf {
    let (source, library) = (folder.0.join("good.c"), folder.0.join("good.so"));
    let functions: Vec<String> = (0..200)
        .map(|index| format!("int function{index}(int value) {{ return value * {index}; }}\n"))
        .collect();
    fs::write(&source, functions.concat()).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-g", "-shared", "-fPIC", "-o"]);
    let status = compiler.arg(&library).arg(&source).status().unwrap();
    assert!(status.success());
    library
}

/// The function whose first byte an address is of.
fn name_of_first_function(reader: &mut Reader, path: &Path) -> Option<String> {
    let file = File::open(path).unwrap();
    let data = fs::read(path).unwrap();
    let address = files::Library::of(&data).symbol(b"function7")?;
    let question = Question::Names {
        key: Stamp::of(&file)?.words(),
        debug: true,
        addresses: vec![address],
    };
    match reader.ask(&question, &[&file]).unwrap().0 {
        Answer::Names(names) => names.0.first()?.0.first()?.function.clone(),
        _ => None,
    }
}

#[test]
fn all_damage_is_answered_or_counted() {
    let folder = Folder::new("damage");
    let good = library(&folder);
    let mut reader = reader();
    let function7 = Some("function7".to_owned());
    assert_eq!(name_of_first_function(&mut reader, &good), function7);
    let damaged = files::write_all(&fs::read(&good).unwrap(), &folder.0.join("bad"));
    assert!(damaged.len() >= 84, "{} kinds", damaged.len());
    // What was needed to make them is no cost of reading them.
    let (mut failed, mut unfit, mut answered) = (0, 0, 0);
    for path in &damaged {
        let file = File::open(path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for question in questions(&file) {
            let (before, began) = (own_memory(), Instant::now());
            let outcome = reader.ask(&question, &[&file]);
            let took = began.elapsed();
            assert!(took < PATIENCE, "{name}: {question:?} took {took:?}");
            match outcome {
                Ok(answer) => {
                    answered += 1;
                    drop(answer);
                }
                Err(Unread::Unfit(_)) => unfit += 1,
                Err(Unread::Failed(why)) => {
                    println!("{name}: {why}");
                    failed += 1;
                }
                Err(Unread::Later(why)) => panic!("{name}: {why}"),
            }
            let grown = own_memory().saturating_sub(before);
            assert!(grown <= MAX_GROWTH, "{name}: {grown} bytes more");
            let taken = reader.memory();
            assert!(taken <= MAX_MEMORY, "{name}: the reader has {taken} bytes");
        }
    }
    let lost: u64 = reader.lost().values().sum();
    println!("{answered} answers, {unfit} refused, {failed} lost");
    assert_eq!(lost, failed);
    assert!(answered > unfit, "hardly any damage was so bad");
    assert_eq!(name_of_first_function(&mut reader, &good), function7);
}

#[test]
fn a_file_that_becomes_shorter_costs_itself() {
    let folder = Folder::new("shorter");
    let good = library(&folder);
    let victim = folder.0.join("victim.so");
    // Large enough to take a while.
    let data = fs::read("/proc/self/exe").unwrap();
    fs::write(&victim, &data).unwrap();
    let file = File::options()
        .read(true)
        .write(true)
        .open(&victim)
        .unwrap();
    let mut reader = reader();
    let over = AtomicBool::new(false);
    let died = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                file.set_len(4096).unwrap();
                thread::sleep(Duration::from_millis(5));
                file.write_all_at(&data, 0).unwrap();
                thread::sleep(Duration::from_millis(15));
            }
        });
        let began = Instant::now();
        let died = loop {
            match reader.ask(&Question::Code, &[&file]) {
                Err(Unread::Failed(why)) if why.contains("signal 7") => break true,
                _ if began.elapsed() > Duration::from_mins(1) => break false,
                _ => {}
            }
        };
        over.store(true, Ordering::Relaxed);
        died
    });
    assert!(died, "it was read while it had no contents");
    assert!(reader.lost().contains_key("files_unread_reader_ended"));
    let function7 = Some("function7".to_owned());
    assert_eq!(name_of_first_function(&mut reader, &good), function7);
}

#[test]
fn a_reader_that_hangs_is_ended_and_its_file_not_asked_for_again() {
    let folder = Folder::new("hangs");
    let good = library(&folder);
    let file = File::open(&good).unwrap();
    let mut reader = reader().within(Duration::from_millis(300));
    reader.start().unwrap();
    let id = Pid::from_raw(reader.id().unwrap() as i32);
    kill(id, Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    let outcome = reader.ask(&Question::BuildId, &[&file]);
    assert!(
        matches!(&outcome, Err(Unread::Failed(why)) if why.contains("no answer")),
        "{outcome:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(kill(id, None).is_err(), "it runs on");
    assert!(reader.ask(&Question::BuildId, &[&file]).is_err());
    let lost = reader.lost();
    assert_eq!(lost.get("files_unread_reader_late"), Some(&1));
    assert_eq!(lost.get("questions_not_asked_again"), Some(&1));
    // Another question, and another state of the file, are asked.
    assert!(reader.ask(&Question::Linking, &[&file]).is_ok());
    let mut more = File::options().append(true).open(&good).unwrap();
    std::io::Write::write_all(&mut more, b"more").unwrap();
    assert!(reader.ask(&Question::BuildId, &[&file]).is_ok());
}

#[test]
fn the_end_of_an_idle_reader_is_nobodys_fault() {
    let folder = Folder::new("idle");
    let good = library(&folder);
    let mut reader = reader();
    for _ in 0..3 {
        let function7 = Some("function7".to_owned());
        assert_eq!(name_of_first_function(&mut reader, &good), function7);
        let id = Pid::from_raw(reader.id().unwrap() as i32);
        kill(id, Signal::SIGKILL).unwrap();
        while fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(reader.lost().is_empty());
}

#[test]
fn too_many_failures_make_it_rest() {
    let folder = Folder::new("rest");
    let mut reader = reader().within(Duration::from_millis(10));
    let mut rests = false;
    for number in 0..30 {
        let path = folder.0.join(number.to_string());
        fs::write(&path, b"\x7fELF").unwrap();
        let file = File::open(&path).unwrap();
        match reader.start() {
            Ok(()) => {
                let id = Pid::from_raw(reader.id().unwrap() as i32);
                kill(id, Signal::SIGSTOP).unwrap();
                let outcome = reader.ask(&Question::BuildId, &[&file]);
                assert!(matches!(outcome, Err(Unread::Failed(_))), "{outcome:?}");
            }
            Err(why) => {
                assert!(!why.is_lasting() && number >= 10, "{why}");
                rests = true;
            }
        }
    }
    assert!(rests);
}

#[test]
fn a_reader_has_given_everything_up() {
    let mut reader = reader();
    reader.start().unwrap();
    let id = reader.id().unwrap();
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    if nix::unistd::geteuid().is_root() {
        assert_eq!(field("CapBnd:"), "0000000000000000");
        assert_eq!(field("Uid:"), "65534\t65534\t65534\t65534");
        assert_eq!(field("Gid:"), "65534\t65534\t65534\t65534");
        assert_eq!(field("Groups:"), "");
        let open = fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
        assert_eq!(open, 3, "its socket and /dev/null twice");
    }
}

#[test]
fn a_reader_of_another_kind_is_not_believed() {
    // `cat` sends back what it is asked, and `true` says nothing.
    for program in ["/bin/cat", "/bin/true"] {
        let mut reader = Reader::new(program, &[]).within(Duration::from_millis(500));
        let file = File::open("/proc/self/exe").unwrap();
        let outcome = reader.ask(&Question::BuildId, &[&file]);
        assert!(matches!(outcome, Err(Unread::Later(_))), "{outcome:?}");
    }
}

/// What a program prints that packs its input.
fn packed(program: &str, arguments: &[&str], input: &mut (impl std::io::Read + Send)) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut to = child.stdin.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || std::io::copy(input, &mut to).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    })
}
