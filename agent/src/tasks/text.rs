//! The task table for people: types of futures, the most numerous first.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use super::document::{Document, ModuleEntry, TaskEntry, TypeEntry};
use crate::{
    finding::{
        Text,
        units::{bytes, count, time},
    },
    output::text::Style,
};

/// Types that are listed.
const MAX_TYPES: usize = 200;
/// Places that tasks of one type wait at, the most frequent.
const MAX_POINTS: usize = 3;
/// Ids of one type that are listed: the oldest and the newest.
const OLDEST: usize = 6;
const NEWEST: usize = 3;

/// Writes the document.
pub(super) fn write(document: &Document, style: Style, out: &mut impl Write) -> io::Result<()> {
    if let Some(why) = &document.why_not {
        return writeln!(out, "No tasks listed: {why}.");
    }
    head(document, style, out)?;
    if !document.types.is_empty() {
        writeln!(out)?;
        let heads = format!("{:>9}  {:>9}  FUTURE", "TASKS", "CELLS");
        writeln!(out, "{}", style.bold(&heads))?;
    }
    for entry in document.types.iter().take(MAX_TYPES) {
        write_type(entry, style, out)?;
    }
    match document.types.len().saturating_sub(MAX_TYPES) {
        0 => {}
        more => writeln!(out, "… and {more} more types; --json lists them.")?,
    }
    foot(document, out)
}

fn head(document: &Document, style: Style, out: &mut impl Write) -> io::Result<()> {
    let counts = &document.counts;
    let noun = |number: usize, one: &str| {
        let s = if number == 1 { "" } else { "s" };
        format!("{} {one}{s}", count(number as f64))
    };
    let comm = document.process.comm.as_ref();
    let title = format!(
        "{} (process {})",
        comm.map_or("?", |comm| comm.as_str()),
        document.process.pid
    );
    let owners = match counts.owners {
        0 => String::new(),
        1 => " of one runtime or LocalSet".to_owned(),
        number => format!(" of {number} runtimes and LocalSets"),
    };
    writeln!(
        out,
        "{}: {}{owners}",
        style.bold(&title),
        noun(counts.tasks, "Tokio task")
    )?;
    if counts.tasks > 0 {
        writeln!(out, "  {}", states(&counts.states))?;
    }
    for module in &document.modules {
        writeln!(out, "  {}", of_module(module))?;
    }
    Ok(())
}

/// `3 idle, 1 running`, the most frequent first.
fn states(states: &BTreeMap<&'static str, usize>) -> String {
    let mut states: Vec<_> = states.iter().collect();
    states.sort_by_key(|(name, number)| (std::cmp::Reverse(**number), **name));
    let parts: Vec<String> = states
        .into_iter()
        .map(|(name, number)| format!("{} {name}", count(*number as f64)))
        .collect();
    parts.join(", ")
}

fn of_module(module: &ModuleEntry) -> String {
    let version = module
        .tokio
        .as_ref()
        .map_or_else(|| "Tokio".to_owned(), |version| format!("Tokio {version}"));
    let why = module.why_not.as_ref().map_or("", |why| why.as_str());
    let ids = match module.task_id {
        "confirmed" if module.task_id_threads == 1 => {
            "current task ids confirmed on 1 thread".to_owned()
        }
        "confirmed" => format!(
            "current task ids confirmed on {} threads",
            module.task_id_threads
        ),
        "unconfirmed" => format!("current task ids not confirmed: {why}"),
        _ => format!("current task ids unknown: {why}"),
    };
    format!("{version} in {}; {ids}", module.path)
}

/// How a type is called in the table.
fn name(entry: &TypeEntry) -> String {
    let what = match (&entry.future, entry.kind) {
        (Some(future), "blocking") => format!("{future} (blocking pool)"),
        (Some(future), _) if entry.boxed => format!("{future} (boxed)"),
        (Some(future), _) => future.to_string(),
        (None, _) if !entry.alternatives.is_empty() => {
            let list: Vec<&str> = entry.alternatives.iter().map(Text::as_str).collect();
            list.join(" or ")
        }
        (None, "runtime") => "Tokio's workers".to_owned(),
        (None, "blocking") if entry.location.is_none() => {
            "unnamed work on the blocking pool".to_owned()
        }
        (None, "blocking") => "(blocking pool)".to_owned(),
        (None, _) if entry.boxed => "boxed future".to_owned(),
        (None, _) if entry.location.is_none() => "unnamed future".to_owned(),
        (None, _) => String::new(),
    };
    match &entry.location {
        Some(location) if what.is_empty() => location.to_string(),
        Some(location) => format!("{what}  {location}"),
        None => what,
    }
}

fn write_type(entry: &TypeEntry, style: Style, out: &mut impl Write) -> io::Result<()> {
    let cells = entry.cell_bytes as f64 * entry.count as f64;
    writeln!(
        out,
        "{:>9}  {:>9}  {}",
        count(entry.count as f64),
        bytes(cells),
        name(entry)
    )?;
    let mut by_state = BTreeMap::new();
    let mut by_owner = BTreeMap::new();
    let (mut least, mut most) = (u64::MAX, 0);
    for task in &entry.tasks {
        *by_state.entry(task.state).or_default() += 1;
        *by_owner.entry(task.owner).or_insert(0_usize) += 1;
        least = least.min(task.references);
        most = most.max(task.references);
    }
    let references = if least == most {
        format!("{most}")
    } else {
        format!("{least} to {most}")
    };
    let owners: Vec<String> = by_owner
        .keys()
        .flatten()
        .take(4)
        .map(u64::to_string)
        .collect();
    let owners = match owners.as_slice() {
        [] => String::new(),
        list => format!("; owner {}", list.join(", ")),
    };
    let detail = format!(
        "{}; references {references}{owners}; {} B a cell; {}",
        states(&by_state),
        entry.cell_bytes,
        ids(entry)
    );
    writeln!(out, "{:>22} {}", "", style.faint(&detail))?;
    let mut points: BTreeMap<&str, usize> = BTreeMap::new();
    for point in entry.tasks.iter().filter_map(|task| task.waits_at.as_ref()) {
        *points.entry(point.as_str()).or_default() += 1;
    }
    let mut points: Vec<(&str, usize)> = points.into_iter().collect();
    points.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    for (point, number) in points.iter().take(MAX_POINTS) {
        let waiting = format!("{} in .await at {point}", count(*number as f64));
        writeln!(out, "{:>22} {}", "", style.faint(&waiting))?;
    }
    Ok(())
}

/// `ids 4, 5, 6 … 90, 91`; the thread of a running one in brackets.
fn ids(entry: &TypeEntry) -> String {
    let shown = |task: &TaskEntry| match task.thread {
        Some(thread) => format!("{} [thread {thread}]", task.id),
        None => task.id.to_string(),
    };
    let word = if entry.tasks.len() == 1 { "id" } else { "ids" };
    if entry.tasks.len() <= OLDEST + NEWEST {
        let all: Vec<String> = entry.tasks.iter().map(shown).collect();
        return format!("{word} {}", all.join(", "));
    }
    let oldest: Vec<String> = entry.tasks.iter().take(OLDEST).map(shown).collect();
    let skip = entry.tasks.len() - NEWEST;
    let newest: Vec<String> = entry.tasks.iter().skip(skip).map(shown).collect();
    format!("{word} {} … {}", oldest.join(", "), newest.join(", "))
}

fn foot(document: &Document, out: &mut impl Write) -> io::Result<()> {
    let read = &document.read;
    writeln!(
        out,
        "\nRead {} in {}; the process ran on meanwhile.",
        bytes(read.bytes as f64),
        time(Duration::from_secs_f64(document.duration_s.max(0.0)))
    )?;
    if read.swapped_bytes > 0 {
        writeln!(
            out,
            "Not read: {} in swap; tasks in there are missing.",
            bytes(read.swapped_bytes as f64)
        )?;
    }
    if read.dropped_tasks > 0 {
        writeln!(
            out,
            "Not listed: {} more tasks than are kept.",
            count(read.dropped_tasks as f64)
        )?;
    }
    for file in &read.unread_files {
        writeln!(out, "Not looked at: {}: {}", file.path, file.why)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::document::tests::sample;

    fn printed(name: &str) -> String {
        let mut out = Vec::new();
        write(&sample(name), Style::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn types_with_their_tasks() {
        let text = printed("app::serve");
        for line in [
            ": 3 Tokio tasks of one runtime or LocalSet",
            "  1 complete, 1 idle, 1 running",
            "  Tokio 1.54.1 in /bin/app::serve; current task ids confirmed on 2 threads",
            "        2      512 B  app::serve  src/app::serve.rs:7:3",
            "1 idle, 1 running; references 2 to 3; owner 1; 256 B a cell; ids 17, 18 [thread 99]",
            "app::load (blocking pool)",
            "Tokio's workers",
        ] {
            assert!(text.contains(line), "{line:?} is missing:\n{text}");
        }
    }

    #[test]
    fn hostile_names_do_no_harm() {
        let text = printed("a\x1b[31m\nb\u{202e}");
        assert!(!text.contains(['\x1b', '\u{202e}']), "{text}");
    }

    #[test]
    fn many_tasks_are_cut() {
        let mut document = sample("app::serve");
        let entry = &mut document.types[0];
        let tasks = (0..50).map(|id| {
            let mut task = entry.tasks[0].clone();
            task.id = id;
            task
        });
        entry.tasks = tasks.collect();
        assert_eq!(ids(entry), "ids 0, 1, 2, 3, 4, 5 … 47, 48, 49");
    }
}
