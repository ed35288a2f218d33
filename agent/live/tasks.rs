//! The task table against what programs tell of their own tasks.

use std::{
    collections::BTreeSet,
    fmt,
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    lab,
    program::{self, Program},
    server::Server,
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("tasks::ids_and_names_are_those_of_the_program", same_tasks),
        trial("tasks::stripped_programs_have_source_lines", stripped),
        trial("tasks::what_is_remembered_is_the_same", remembered),
        trial("tasks::text_names_types_and_counts", text),
        trial("tasks::stuck_tasks_are_counted", || stuck("server")),
        trial("tasks::stuck_tasks_on_jemalloc", || {
            stuck("server_jemalloc")
        }),
        trial("tasks::stuck_tasks_on_mimalloc", || {
            stuck("server_mimalloc")
        }),
        trial("tasks::reading_does_no_harm", no_harm),
        trial("tasks::a_process_that_ends_meanwhile", ends_meanwhile),
        trial("tasks::no_tokio", no_tokio),
        trial("tasks::bad_input", bad_input),
        trial("tasks::not_root", not_root),
    ]
}

/// What `lingerscope tasks` printed.
struct Answer {
    output: Output,
    about: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(bytes.get(..4000).unwrap_or(bytes)).into_owned();
        write!(
            f,
            "{}: {}\n{}{}",
            self.about,
            self.output.status,
            text(&self.output.stdout),
            text(&self.output.stderr)
        )
    }
}

impl Answer {
    fn to(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(lab::lingerscope()?);
        command.arg("tasks").args(arguments);
        // Nothing that a run before has found out.
        command.env("CACHE_DIRECTORY", "");
        Self::of(command)
    }

    fn of(mut command: Command) -> Result<Self> {
        let output = command.output().context("cannot start lingerscope")?;
        Ok(Self {
            output,
            about: format!("{command:?}"),
        })
    }

    fn document(pid: u32) -> Result<Value> {
        let answer = Self::to(&["--json", "-p", &pid.to_string()])?;
        answer.expect(0, &[])?;
        serde_json::from_slice(&answer.output.stdout).with_context(|| answer.to_string())
    }

    /// The exit code, and words that must have been printed.
    fn expect(&self, code: i32, words: &[&str]) -> Result<()> {
        ensure!(
            self.output.status.code() == Some(code),
            "not exit code {code}: {self}"
        );
        let printed = [&self.output.stdout[..], &self.output.stderr[..]].concat();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        for word in words {
            ensure!(printed.contains(word), "{word:?} is missing: {self}");
        }
        ensure!(!printed.contains("panicked"), "{self}");
        Ok(())
    }
}

/// A task that the program has told.
struct Told {
    kind: String,
    name: String,
    ids: BTreeSet<u64>,
}

fn told(program: &Program) -> Result<Vec<Told>> {
    let mut told = Vec::new();
    for line in &program.greeting {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["TASK", kind, name, ids] = words.as_slice() {
            told.push(Told {
                kind: (*kind).to_owned(),
                name: (*name).to_owned(),
                ids: ids
                    .split(',')
                    .map(str::parse)
                    .collect::<Result<_, _>>()
                    .with_context(|| line.clone())?,
            });
        }
    }
    ensure!(told.len() >= 10, "the program has told little");
    Ok(told)
}

/// Types of the document that are not Tokio's own.
fn types(document: &Value) -> Result<Vec<&Value>> {
    let types = document["types"].as_array().context("no types")?;
    let own = |kind: &&Value| kind["kind"] != "runtime";
    Ok(types.iter().filter(own).collect())
}

fn ids(kind: &Value) -> BTreeSet<u64> {
    let tasks = kind["tasks"].as_array();
    let tasks = tasks.map(Vec::as_slice).unwrap_or_default();
    tasks
        .iter()
        .filter_map(|task| task["id"].as_u64())
        .collect()
}

fn confirmed(document: &Value) -> Result<()> {
    let module = &document["modules"][0];
    ensure!(
        module["task_id"] == "confirmed",
        "the current task's id: {module}"
    );
    Ok(())
}

/// The line of the program's source with this text.
fn line_of(text: &str) -> Option<usize> {
    let source = include_str!("../examples/tasks.rs");
    let index = source.lines().position(|line| line.contains(text))?;
    Some(index + 1)
}

fn has_line(kind: &Value, told: &Told) -> bool {
    let line = match told.kind.as_str() {
        "block" => line_of("// block: anonymous"),
        _ => line_of(&format!("async fn {}(", told.name)),
    };
    let location = kind["location"].as_str().unwrap_or_default();
    line.is_some_and(|line| location.contains(&format!("examples/tasks.rs:{line}:")))
}

fn same_tasks() -> Result<()> {
    let program = Program::start(&lab::plain_example("tasks")?, &["1000"])?;
    let document = Answer::document(program.pid())?;
    confirmed(&document)?;
    let told = told(&program)?;
    let types = types(&document)?;
    let listed: BTreeSet<u64> = types.iter().flat_map(|kind| ids(kind)).collect();
    let expected: BTreeSet<u64> = told.iter().flat_map(|told| told.ids.clone()).collect();
    ensure!(
        listed == expected,
        "missing {:?}, invented {:?}",
        expected.difference(&listed).collect::<Vec<_>>(),
        listed.difference(&expected).collect::<Vec<_>>()
    );
    ensure!(
        document["counts"]["tasks"] == expected.len(),
        "the count is wrong: {}",
        document["counts"]
    );
    for told in told {
        let kind = types
            .iter()
            .find(|kind| told.ids.is_subset(&ids(kind)))
            .with_context(|| format!("the tasks of {} are not of one type", told.name))?;
        let future = kind["future"].as_str().unwrap_or_default();
        let expected = match told.kind.as_str() {
            "block" | "blocking" => "main",
            _ => &told.name,
        };
        ensure!(future.contains(expected), "{} is named {kind}", told.name);
        ensure!(
            told.kind == "blocking" || has_line(kind, &told),
            "the place of {} is {}",
            told.name,
            kind["location"]
        );
        let complete = kind["tasks"][0]["state"] == "complete";
        ensure!(
            complete == (told.kind == "complete"),
            "the state of {} is {}",
            told.name,
            kind["tasks"][0]
        );
    }
    Ok(())
}

fn stripped() -> Result<()> {
    let program = Program::start(&lab::stripped_example("tasks")?, &["50"])?;
    let document = Answer::document(program.pid())?;
    confirmed(&document)?;
    let types = types(&document)?;
    for told in told(&program)? {
        let kind = types
            .iter()
            .find(|kind| told.ids.is_subset(&ids(kind)))
            .with_context(|| format!("the tasks of {} are not of one type", told.name))?;
        ensure!(kind["future"].is_null(), "a name without symbols: {kind}");
        let sure = !["blocking", "boxed"].contains(&told.kind.as_str());
        ensure!(
            kind["location"].is_null() && !sure || has_line(kind, &told) || told.kind == "blocking",
            "the place of {} is {}",
            told.name,
            kind["location"]
        );
    }
    Ok(())
}

/// A second look answers from the cache; a damaged cache is not believed.
fn remembered() -> Result<()> {
    let program = Program::start(&lab::stripped_example("tasks")?, &["50"])?;
    let directory = lab::fresh("cache")?;
    let look = || -> Result<Value> {
        let mut command = Command::new(lab::lingerscope()?);
        command
            .args(["tasks", "--json", "-p", &program.pid().to_string()])
            .env("CACHE_DIRECTORY", &directory);
        let answer = Answer::of(command)?;
        answer.expect(0, &[])?;
        serde_json::from_slice(&answer.output.stdout).with_context(|| answer.to_string())
    };
    let places = |document: &Value| -> Result<Vec<(Value, BTreeSet<u64>)>> {
        let types = types(document)?;
        let mut places: Vec<_> = types
            .into_iter()
            .map(|kind| (kind["location"].clone(), ids(kind)))
            .collect();
        places.sort_by_key(|(_, ids)| ids.first().copied());
        Ok(places)
    };
    let (first, second) = (look()?, look()?);
    ensure!(
        places(&first)? == places(&second)?,
        "{:?} became {:?}",
        places(&first)?,
        places(&second)?
    );
    confirmed(&second)?;
    let mut kept = 0;
    for file in std::fs::read_dir(&directory)? {
        let path = file?.path();
        let mut content = std::fs::read(&path)?;
        let middle = content.len() / 2;
        content[middle] ^= 1;
        std::fs::write(&path, content)?;
        kept += 1;
    }
    let third = look()?;
    ensure!(
        kept > 0 && third["read"]["cache_ignored"] == kept,
        "{kept} files were damaged: {}",
        third["read"]
    );
    ensure!(
        places(&first)? == places(&third)?,
        "{:?} became {:?}",
        places(&first)?,
        places(&third)?
    );
    Ok(())
}

fn text() -> Result<()> {
    let program = Program::start(&lab::plain_example("tasks")?, &["1000"])?;
    let pid = program.pid().to_string();
    let expected: usize = told(&program)?.iter().map(|told| told.ids.len()).sum();
    let thousands = format!("{},{:03} Tokio tasks", expected / 1000, expected % 1000);
    Answer::to(&["-p", &pid])?.expect(
        0,
        &[
            &format!("tasks (process {pid})"),
            &thousands,
            "    1,000 ",
            "tasks::one_of_many",
            "1,000 idle",
            "(blocking pool)",
            "(boxed)",
            "confirmed on",
        ],
    )
}

/// The server counts what it spawns and never wakes.
fn stuck(example: &str) -> Result<()> {
    let mut random = lab::random(example)?;
    let alone = Duration::from_secs(3);
    let arguments = ["--leak", "stuck-task"];
    let server = Server::start(example, &arguments, &mut random, alone)?;
    // Three blocks for each: the buffer, the notification and the cell.
    let spawned = |server: &Server| Ok::<_, anyhow::Error>(server.truth()?.blocks() / 3);
    let before = spawned(&server)?;
    let document = Answer::document(server.program.pid())?;
    // The side file may be 200 ms behind.
    thread::sleep(Duration::from_millis(600));
    let after = spawned(&server)?;
    confirmed(&document)?;
    let found = types(&document)?
        .into_iter()
        .filter(|kind| {
            let future = kind["future"].as_str().unwrap_or_default();
            future.ends_with("stuck_task::serve")
        })
        .map(|kind| ids(kind).len() as u64)
        .max()
        .unwrap_or(0);
    ensure!(
        (before..=after).contains(&found),
        "{found} stuck tasks listed, {before} to {after} spawned ({})",
        server.drawn
    );
    Ok(())
}

/// Read over and over, the program goes on and ends as if nothing were.
fn no_harm() -> Result<()> {
    let mut command = Command::new(lab::example("server")?);
    command.args(["--seconds", "6", "--rate", "2000"]);
    let mut program = Program::from_command(command)?;
    let pid = program.pid();
    for _ in 0..5 {
        Answer::document(pid)?;
    }
    program.ends_well(Duration::from_secs(20))
}

fn ends_meanwhile() -> Result<()> {
    for pause in [0, 5, 20, 40, 80, 160] {
        let mut program = Program::start(&lab::plain_example("tasks")?, &["20000"])?;
        let mut command = Command::new(lab::lingerscope()?);
        command
            .args(["tasks", "-p", &program.pid().to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut running = command.spawn()?;
        thread::sleep(Duration::from_millis(pause));
        program.kill()?;
        let status = program::wait(&mut running, Duration::from_secs(20))?;
        let answer = Answer {
            output: running.wait_with_output()?,
            about: format!("{command:?} (killed after {pause} ms)"),
        };
        ensure!(status.is_some(), "it hangs: {answer}");
        match answer.output.status.code() {
            Some(0) => answer.expect(0, &["Tokio tasks"])?,
            _ => answer.expect(4, &["No tasks listed"])?,
        }
    }
    Ok(())
}

fn no_tokio() -> Result<()> {
    let mut sleep = Command::new("sleep").arg("30").spawn()?;
    let pid = sleep.id().to_string();
    thread::sleep(Duration::from_millis(200));
    let outcome = (|| {
        Answer::to(&["-p", &pid])?.expect(4, &["no Tokio", &pid])?;
        let answer = Answer::to(&["--json", "-p", &pid])?;
        answer.expect(4, &["why_not"])?;
        let document: Value = serde_json::from_slice(&answer.output.stdout)?;
        ensure!(
            document["types"].as_array().is_some_and(Vec::is_empty),
            "{answer}"
        );
        Ok(())
    })();
    sleep.kill()?;
    sleep.wait()?;
    outcome
}

fn bad_input() -> Result<()> {
    Answer::to(&[])?.expect(2, &["--pid"])?;
    for garbage in ["server", "-1", "99999999999"] {
        Answer::to(&[&format!("--pid={garbage}")])?.expect(2, &["--pid"])?;
    }
    Answer::to(&["-p", "2"])?.expect(4, &["kernel thread"])?;
    let mut ended = Command::new("true").spawn()?;
    let pid = ended.id().to_string();
    ended.wait()?;
    Answer::to(&["-p", &pid])?.expect(4, &["does not exist", &pid])?;
    let mut itself = Command::new("sh");
    itself
        .args(["-c", "exec \"$0\" tasks -p $$"])
        .arg(lab::lingerscope()?);
    let answer = Answer {
        output: itself.output()?,
        about: "tasks of itself".to_owned(),
    };
    answer.expect(4, &["itself"])
}

/// A process of another user.
fn not_root() -> Result<()> {
    let program = Program::start(&lab::plain_example("tasks")?, &["10"])?;
    let directory = std::env::temp_dir().join(format!("lingerscope-tasks-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let outcome = (|| {
        let binary = directory.join("lingerscope");
        std::fs::copy(lab::lingerscope()?, &binary)?;
        for path in [&directory, &binary] {
            lab::run(Command::new("chmod").arg("755").arg(path))?;
        }
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg(&binary)
            .args(["tasks", "-p", &program.pid().to_string()]);
        let answer = Answer {
            output: command.output()?,
            about: format!("{command:?}"),
        };
        answer.expect(1, &["CAP_SYS_PTRACE"])
    })();
    drop(std::fs::remove_dir_all(&directory));
    outcome
}
