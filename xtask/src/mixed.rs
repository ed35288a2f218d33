//! `cargo xtask mixed`: the daemon on a machine with a dozen real programs of
//! which one leaks. The leak has to be told with the right function, and
//! nothing else.

mod outcome;
mod programs;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::{
    outcome::{Leak, Outcome},
    programs::Pace,
};
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
    /// How long the daemon watches: 30m unless --short
    #[arg(long = "for", value_name = "TIME", value_parser = period::parse)]
    time: Option<Duration>,
    /// Settings of little patience, only the servers that are installed, and only these are followed: 5 minutes
    #[arg(long)]
    short: bool,
    /// The leaking program has process ids, a root and a C library of its own, as in a container
    #[arg(long)]
    contained: bool,
    /// Growth for so long makes a suspect (watch.patience), instead of the shipped settings
    #[arg(long, value_name = "TIME", value_parser = period::parse, conflicts_with = "short")]
    patience: Option<Duration>,
    /// Keep the programs' and the daemon's files
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    given: Given,
}

const LONG: Duration = Duration::from_mins(30);
const SHORT: Duration = Duration::from_mins(5);
/// Between two looks at the programs.
const LOOK: Duration = Duration::from_secs(5);

/// A short run goes beside compilers, which grow too and would take the places
/// of those that it is about.
const SHORT_ONLY: &str = "include:\n  uid: [65534]\n";
/// Growth of a minute and a half is enough here.
const SHORT_SETTINGS: &str = "watch:\n  interval: 1s\n  patience: 1min\n  min_growth: 2MiB\n";

pub(crate) fn run(options: &Options, no_install: bool) -> Result<()> {
    let need = if options.short {
        Need::Servers
    } else {
        Need::AllServers
    };
    match built::prepare(&options.given, need, no_install)? {
        Some(built) => watch(options, &built),
        None => Ok(()),
    }
}

fn settings(options: &Options) -> String {
    if options.short {
        // What starts as root has no other user to be known by.
        let only = if options.contained { "" } else { SHORT_ONLY };
        return format!("{SHORT_SETTINGS}{only}");
    }
    options.patience.map_or_else(String::new, |patience| {
        format!("watch:\n  patience: {}s\n", patience.as_secs())
    })
}

fn watch(options: &Options, built: &Built) -> Result<()> {
    let time = options
        .time
        .unwrap_or(if options.short { SHORT } else { LONG });
    // Dropped last, when nothing is in it any more.
    let mut group = None;
    let mut fleet = Fleet::new("mixed")?;
    fleet.keep_files = options.keep;
    let server = fleet.copy(&built.server, "server")?;
    let pace = Pace {
        // Shorter than the patience: what fills evenly for longer than that
        // cannot be told from a leak by anybody.
        fill: if options.short {
            Duration::from_secs(40)
        } else {
            options.patience.unwrap_or(Duration::from_mins(15)) / 2
        },
        skip_missing: options.short,
    };
    let lingerscope = fleet.copy(&built.lingerscope, "lingerscope")?;
    let mut daemon = Daemon::start(&lingerscope, fleet.directory(), &settings(options))?;
    let missing = programs::start_healthy(&mut fleet, &server, &pace)?;
    for name in &missing {
        eprintln!("mixed: without {name}, which is not installed");
    }
    let leaking = if options.contained {
        let contained = programs::start_contained(&mut fleet, &server)?;
        group = contained.group;
        contained.pid
    } else {
        programs::start_leaking(&mut fleet, &server)?
    };
    let leak = Leak {
        pid: leaking,
        container_id: group.as_ref().map(|group| group.id.clone()),
        own_root: options.contained,
    };
    eprintln!(
        "mixed: {} programs run, process {leaking} leaks; watching for {}",
        fleet.programs().len(),
        period::show(time)
    );
    let mut outcome = Outcome::begin(&fleet.look()?, &fleet, daemon.footprint()?);
    let begin = Instant::now();
    while begin.elapsed() < time {
        interrupt::pause(LOOK.min(time.saturating_sub(begin.elapsed())))?;
        let all = fleet.look()?;
        outcome.look(&all, &fleet, daemon.footprint()?);
        for line in daemon.news() {
            let who = outcome::names(&line, &fleet);
            eprintln!("mixed: {:4} s:{line}{who}", begin.elapsed().as_secs());
        }
    }
    daemon.stop()?;
    let alerts = daemon.alerts()?;
    let verdict = outcome.print(&fleet, &leak, &alerts, &daemon.attention());
    if verdict.is_err() {
        eprintln!("mixed: the daemon's whole log:\n{}", daemon.log());
    }
    match verdict {
        Ok(sentence) => {
            println!("{sentence}");
            Ok(())
        }
        Err(sentence) => bail!(sentence),
    }
}
