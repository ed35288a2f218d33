//! The same leaks on every allocator, linked in every way.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::{
    inspection::{Inspection, Report},
    lab,
    leaks::{check, check_rate},
    program::Program,
    random::Random,
    server::Server,
    trial,
    truth::Truth,
};

/// A build of the small leaking program: name, compiler, source, flags, and
/// the allocator that is expected to be named.
const BUILDS: [(&str, &str, &str, &[&str], &str); 8] = [
    ("glibc", "cc", "leak.c", &[], "glibc"),
    ("glibc_static", "cc", "leak.c", &["-static"], "glibc"),
    ("musl", "musl-gcc", "leak.c", &[], "musl"),
    ("musl_static", "musl-gcc", "leak.c", &["-static"], "musl"),
    (
        "jemalloc",
        "cc",
        "leak.c",
        &["-Wl,--no-as-needed", "-l:libjemalloc.so.2"],
        "jemalloc",
    ),
    (
        "mimalloc",
        "cc",
        "leak.c",
        &["-Wl,--no-as-needed", "-l:libmimalloc.so.2"],
        "mimalloc",
    ),
    (
        "tcmalloc",
        "cc",
        "leak.c",
        &["-Wl,--no-as-needed", "-l:libtcmalloc_minimal.so.4"],
        "tcmalloc",
    ),
    ("operator_new", "c++", "leak.cc", &[], "glibc"),
];

pub(crate) fn trials() -> Vec<Trial> {
    let servers = ["server_jemalloc", "server_mimalloc"]
        .into_iter()
        .flat_map(|example| {
            // The last one allocates with glibc in the same process.
            ["map", "arc-cycle", "ffi"].into_iter().map(move |leak| {
                trial(format!("allocators::{example}_{leak}"), move || {
                    let mut random = lab::random(&format!("{example} {leak}"))?;
                    let alone = Duration::from_secs_f64(random.share());
                    let server = Server::start(example, &["--leak", leak], &mut random, alone)?;
                    check(&server, &[])
                })
            })
        });
    let small = BUILDS
        .into_iter()
        .map(|(name, compiler, source, flags, kind)| {
            trial(format!("allocators::c_{name}"), move || {
                let path = lab::compile(compiler, source, flags, &format!("leak-{name}"))?;
                let small = SmallLeak::start(&path, &mut lab::random(name)?)?;
                small.check(&[], kind).map(drop)
            })
        });
    servers
        .chain(small)
        .chain([trial("allocators::stripped_program", stripped)])
        .collect()
}

/// Without any symbol: module and offset, which a debug file resolves.
fn stripped() -> Result<()> {
    let path = lab::path("leak-stripped")?;
    if !path.exists() {
        lab::run(Command::new("strip").arg(plain()?).arg("-o").arg(&path))?;
    }
    let small = SmallLeak::start(&path, &mut lab::random("stripped")?)?;
    let pid = small.program.pid();
    let report = Inspection::of(pid, 11)?
        .arguments(["--fail-on", "suspected"])
        .run()?;
    report.expect_code(&[3])?;
    let frames = report.top(pid)?.0["site"]["frames"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let own = frames.iter().find(|frame| {
        frame["module"]
            .as_str()
            .is_some_and(|module| module.ends_with("leak-stripped"))
    });
    let own = own.with_context(|| format!("no frame in the program: {frames:?}\n{report}"))?;
    ensure!(
        !own["offset"].is_null() && !own["build_id"].is_null(),
        "{own}\n{report}"
    );
    Ok(())
}

/// The small leaking program, plain C.
pub(crate) fn plain() -> Result<PathBuf> {
    lab::compile("cc", "leak.c", &[], "leak-glibc")
}

/// A running build of the small leaking program.
pub(crate) struct SmallLeak {
    pub(crate) program: Program,
    /// Its own process id, where it was started through another program.
    inside: Option<u32>,
    truth: PathBuf,
    drawn: String,
}

impl SmallLeak {
    pub(crate) fn start(path: &Path, random: &mut Random) -> Result<Self> {
        let truth = lab::fresh("truth")?;
        let (arguments, drawn) = draw(random, &truth);
        let program = Program::start(path, &arguments.each_ref().map(String::as_str))?;
        thread::sleep(Duration::from_secs_f64(0.5 + random.share()));
        Ok(Self {
            program,
            inside: None,
            truth,
            drawn: format!("{} {drawn}", path.display()),
        })
    }

    /// Starts it by a command that is made from its arguments. It writes its
    /// count to `truth` as it sees it; `find` tells its process id and where
    /// we see that file.
    pub(crate) fn start_by(
        command: impl FnOnce(&[String]) -> Command,
        truth: &Path,
        find: impl FnOnce(&Program) -> Result<(u32, PathBuf)>,
        random: &mut Random,
    ) -> Result<Self> {
        let (arguments, drawn) = draw(random, truth);
        let program = Program::from_command(command(&arguments))?;
        let (pid, truth) = find(&program)?;
        thread::sleep(Duration::from_secs_f64(0.5 + random.share()));
        Ok(Self {
            program,
            inside: Some(pid),
            truth,
            drawn,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.inside.unwrap_or(self.program.pid())
    }

    /// Inspects it with further `arguments`: the leak is found, at its rate,
    /// in an allocator called `kind`.
    pub(crate) fn check(&self, arguments: &[&str], kind: &str) -> Result<Report> {
        let pid = self.pid();
        let report = Inspection::of(pid, 11)?
            .arguments(["--fail-on", "suspected"])
            .arguments(arguments)
            .run()?;
        let about = format!("{}\n{report}", self.drawn);
        ensure!(report.code() == Some(3), "not found: {about}");
        let top = report.top(pid)?;
        ensure!(
            top.first_user_function().contains("leak_here"),
            "not the top finding: {about}"
        );
        // The program writes its count at its own pace: wait for the line
        // after the end.
        thread::sleep(Duration::from_millis(500));
        let (begin, end) = report.span()?;
        check_rate(
            top,
            Truth::read(&self.truth)?.rate(begin, end)?,
            false,
            &about,
        )?;
        let allocators = report.process(pid)?["allocators"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        ensure!(
            allocators.iter().any(|allocator| {
                allocator["attached"] == true
                    && allocator["kind"]
                        .as_str()
                        .is_some_and(|name| name.contains(kind))
            }),
            "no attached allocator {kind:?} in {allocators:?}: {about}"
        );
        // What only hands over to it, as libstdc++ does, is none of its own.
        ensure!(
            allocators
                .iter()
                .all(|allocator| allocator["kind"] != "c++"),
            "{allocators:?} names an allocator that is none: {about}"
        );
        Ok(report)
    }
}

/// Rate, size, seconds and the file for the count; and all that as text.
fn draw(random: &mut Random, truth: &Path) -> ([String; 4], String) {
    let rate = random.log_uniform(100, 1000);
    let size = random.log_uniform(100_000 / rate, 4_000_000 / rate);
    let arguments = [
        rate.to_string(),
        size.to_string(),
        "60".to_owned(),
        truth.to_string_lossy().into_owned(),
    ];
    let drawn = arguments.join(" ");
    (arguments, drawn)
}
