//! `cargo xtask soak`: the daemon while processes come and go, by hundreds a
//! second at times. Its own memory and open files must not grow.

mod churn;
mod samples;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::samples::Sample;
use crate::{
    daemon::Daemon,
    fleet::{
        Fleet,
        built::{self, Built, Given},
        period,
    },
    interrupt,
    packages::Need,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long it runs
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = period::parse)]
    time: Duration,
    /// Keep the programs' and the daemon's files
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    given: Given,
}

const SAMPLE: Duration = Duration::from_secs(10);
/// Rows of the table.
const ROWS: u32 = 12;

pub(crate) fn run(options: &Options, no_install: bool) -> Result<()> {
    match built::prepare(&options.given, Need::Test, no_install)? {
        Some(built) => watch(options, &built),
        None => Ok(()),
    }
}

fn watch(options: &Options, built: &Built) -> Result<()> {
    let mut fleet = Fleet::new("soak")?;
    fleet.keep_files = options.keep;
    let server = fleet.copy(&built.server, "server")?;
    let lingerscope = fleet.copy(&built.lingerscope, "lingerscope")?;
    // The servers are followed from their first moment.
    let settings = format!("pinned:\n  exe: ['{}']\n", server.display());
    let mut daemon = Daemon::start(&lingerscope, fleet.directory(), &settings)?;
    churn::start(&mut fleet, &server)?;
    eprintln!("soak: running for {}", period::show(options.time));
    let begin = Instant::now();
    let mut samples = Vec::new();
    let mut step = options.time / ROWS;
    while begin.elapsed() < options.time {
        interrupt::pause(SAMPLE.min(options.time.saturating_sub(begin.elapsed())))?;
        let processes = fleet.look()?.len();
        samples.push(Sample {
            at: begin.elapsed(),
            footprint: daemon.footprint()?,
            processes,
        });
        if begin.elapsed() >= step {
            // A run that is stopped early has shown something, too.
            let whole = samples.partition_point(|sample: &Sample| sample.at <= step);
            let table = samples::table(&samples[..whole], options.time / ROWS);
            eprintln!("soak: {}", table.lines().last().unwrap_or_default());
            step += options.time / ROWS;
        }
    }
    let attention = daemon.attention();
    daemon.stop()?;
    let alerts = daemon.alerts()?;
    println!("{}\n", samples::table(&samples, options.time / ROWS));
    println!(
        "followed {} times; {} messages in the journal",
        attention.values().map(|seen| seen.followed).sum::<usize>(),
        alerts.len()
    );
    match samples::judge(&samples) {
        Ok(sentence) => {
            println!("soak: right: {sentence}");
            Ok(())
        }
        Err(sentence) => {
            eprintln!("soak: the daemon's log ends with:\n{}", daemon.end_of_log());
            bail!(sentence)
        }
    }
}
