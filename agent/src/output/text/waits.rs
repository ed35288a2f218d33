//! Who waits in a process, in a few lines.

use std::{
    io::{self, Write},
    time::Duration,
};

use super::finding::wrapped;
use crate::finding::{
    Class, Waiting, Waits,
    units::{count, time},
};

/// Share of the time that waits of one place take to be worth a line.
const SHARE: f64 = 0.01;
/// Places that are printed; JSON has more.
const MAX_PLACES: usize = 6;

pub(super) fn write(waits: &Waits, out: &mut impl Write) -> io::Result<()> {
    if waits.places.is_empty() {
        return Ok(());
    }
    let mut shown = waits
        .places
        .iter()
        .filter(|waiting| is_work(waiting, waits.followed_s));
    let followed = time(seconds(waits.followed_s));
    write!(out, "  Waits (futex, followed for {followed}):")?;
    let first: Vec<&Waiting> = shown.by_ref().take(MAX_PLACES).collect();
    if first.is_empty() {
        writeln!(out, " none that keeps work waiting.")?;
    } else {
        writeln!(out)?;
    }
    for waiting in first {
        wrapped(out, "    - ", "      ", &line(waiting))?;
    }
    match shown.count() {
        0 => {}
        more => writeln!(out, "      … and {more} more places; --json lists them.")?,
    }
    match &waits.why_not {
        Some(why) => wrapped(out, "    ", "      ", &format!("Not all the time: {why}.")),
        None => Ok(()),
    }
}

/// Whether work waits there, for more than a moment now and then; idle threads
/// are in JSON only.
fn is_work(waiting: &Waiting, followed_s: f64) -> bool {
    let idle = matches!(
        waiting.class,
        Class::ParkedWorker | Class::IdlePoolThread | Class::BlockOn
    );
    !idle && (waiting.open > 0 || waiting.total_s >= SHARE * followed_s)
}

fn line(waiting: &Waiting) -> String {
    let place = match (&waiting.function, &waiting.location) {
        (Some(function), Some(location)) => format!("{function} at {location}"),
        (Some(function), None) => function.to_string(),
        (None, _) => "unknown code".to_owned(),
    };
    let mut parts = Vec::new();
    if waiting.count > 0 {
        parts.push(format!(
            "{} waits, {} in all, the longest {}",
            count(waiting.count as f64),
            time(seconds(waiting.total_s)),
            time(seconds(waiting.longest_s)),
        ));
    }
    if let Some(open) = waiting.open_s {
        let threads = if waiting.open == 1 {
            "1 thread waits".to_owned()
        } else {
            format!("{} threads wait", count(waiting.open as f64))
        };
        let before = if waiting.began_before {
            ", since before the observation"
        } else {
            ""
        };
        parts.push(format!(
            "{threads} now, for up to {}{before}",
            time(seconds(open))
        ));
    }
    format!(
        "{} ({}) in {place}: {}",
        waiting.class.id(),
        waiting.on.id(),
        parts.join("; ")
    )
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}
