//! What tracing costs here, as one table: `cargo xtask bench`.
//!
//! All variants are measured by turns on one program that allocates and frees
//! in a tight loop, and the minimum of each over all passes counts: another
//! load on the machine makes single measurements longer, never shorter. The
//! nanoseconds belong to this machine; the ratios to the floors compare.
//!
//! A floor is the same run with empty kernel programs at the same
//! instructions: what the kernel takes for the traps alone.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

#[path = "cost/bpftrace.rs"]
mod bpftrace;
#[path = "cost/floor.rs"]
mod floor;
#[path = "cost/library.rs"]
mod library;
#[path = "cost/processors.rs"]
mod processors;
#[path = "cost/subject.rs"]
mod subject;
#[path = "cost/table.rs"]
mod table;
#[path = "cost/tracer.rs"]
mod tracer;

use std::process::ExitCode;

use anyhow::{Result, bail};
use lingerscope::{
    capture::{links::Method, trial},
    host::privilege,
};

use self::{
    floor::Floor, library::Library, processors::Processors, subject::Subject, table::Table,
    tracer::Tracer,
};

/// Every variant is measured once in each.
const PASSES: usize = 5;
/// The stacks of the pairs that are measured.
const FRAMES: usize = 50;
/// Further frames over the shortest stack, to tell what one frame costs.
const FURTHER: [usize; 4] = [10, 30, 50, 100];
/// What the call tree adds on average.
const TREE_FRAMES: usize = 6;
/// Sampling mean of the sampled row, bytes.
const MEAN: u64 = 512 << 10;

fn main() -> ExitCode {
    if lingerscope::reader::is_asked_for() {
        return lingerscope::reader::serve::run();
    }
    // Capture tries its ways of attaching on a copy of this program.
    if std::env::args().nth(1).as_deref() == Some(trial::SUBCOMMAND) {
        return trial::subject();
    }
    match run() {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command line tool for developers")]
fn complain(error: &anyhow::Error) {
    eprintln!("bench: {error:#}");
}

fn run() -> Result<Table> {
    if let Some(sentence) = privilege::missing() {
        bail!(sentence);
    }
    let processors = Processors::choose()?;
    let mut table = Table::new(&processors);

    let mut tracer = Tracer::load(Method::Multi)?;
    table.rss_loaded = processors::resident_bytes()?;
    let libraries = Library::none()?;
    {
        let probed = Subject::start(0, libraries.directory(), &processors)?;
        tracer.attach(probed.pid(), 1)?;
        libraries.copy(&tracer.library(probed.pid())?)?;
        tracer.detach(probed.pid());
    }
    // A stack grows by one and a half frames for each step of depth.
    let shortest = Subject::start(0, libraries.directory(), &processors)?;
    tracer.attach(shortest.pid(), 1)?;
    table.rss_target = processors::resident_bytes()?;
    let base = tracer.frames(shortest.pid())?;
    let floor = Floor::load(tracer.points(shortest.pid())?)?;
    let library = tracer.library(shortest.pid())?;
    tracer.detach(shortest.pid());
    shortest.pause()?;

    let deeper = |frames: usize| {
        let subject = Subject::start(
            ((frames * 2).div_ceil(3)) as u32,
            libraries.directory(),
            &processors,
        )?;
        subject.pause()?;
        anyhow::Ok(subject)
    };
    let main = deeper(FRAMES.saturating_sub(base))?;
    let varied = Subject::varied(
        ((FRAMES.saturating_sub(base + TREE_FRAMES) * 2).div_ceil(3)) as u32,
        libraries.directory(),
        &processors,
    )?;
    varied.pause()?;
    let ladder: Vec<Subject> = FURTHER
        .iter()
        .map(|frames| deeper(*frames))
        .collect::<Result<_>>()?;
    let mut perf = Tracer::load(Method::Perf)?;
    tracer.times.clear();

    for _ in 0..PASSES {
        main.resume()?;
        table.untraced.lower(main.best()?);
        {
            let _probes = floor.three_traps(main.pid())?;
            table.three_traps.lower(main.best()?);
        }
        tracer.attach(main.pid(), MEAN)?;
        table.sampled.lower(main.best()?);
        tracer.set_mean(main.pid(), 1)?;
        table.exact.lower(main.best()?);
        table.frames = tracer.frames(main.pid())?;
        tracer.read_task_ids(main.pid())?;
        table.with_task_id.lower(main.best()?);
        tracer.detach(main.pid());
        perf.attach(main.pid(), 1)?;
        table.perf_exact.lower(main.best()?);
        perf.detach(main.pid());
        if let Some(program) = bpftrace::find() {
            let script = bpftrace::Script::start(&program, &library, &main)?;
            table.bpftrace.lower(main.best()?);
            script.stop()?;
        }
        main.pause()?;

        varied.resume()?;
        {
            let _probes = floor.three_traps(varied.pid())?;
            table.varied_floor.lower(varied.best()?);
        }
        tracer.attach(varied.pid(), 1)?;
        table.varied.lower(varied.best()?);
        (table.varied_stacks, table.varied_frames) = tracer.spread(varied.pid())?;
        tracer.detach(varied.pid());
        varied.pause()?;

        let rungs = table
            .ladder
            .iter_mut()
            .zip([&shortest].into_iter().chain(&ladder));
        for (rung, subject) in rungs {
            subject.resume()?;
            tracer.attach(subject.pid(), 1)?;
            rung.pair.lower(subject.best()?);
            rung.frames = tracer.frames(subject.pid())?;
            tracer.detach(subject.pid());
            subject.pause()?;
        }
    }
    for tracer in [tracer, perf] {
        for (cause, events) in tracer.lost {
            *table.lost.entry(cause).or_default() += events;
        }
        table.times.push(tracer.times);
    }
    Ok(table)
}
