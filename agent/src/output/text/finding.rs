//! One finding on one screen.

use std::{
    io::{self, Write},
    time::Duration,
};

use super::{Style, title};
use crate::finding::{
    Confidence, Finding, Frame, Process, Role, Task, is_user_frame, site_frame,
    units::{bytes, count, rate, time},
};

/// Frames that are printed; JSON has all.
const MAX_FRAMES: usize = 16;
/// Tasks that are printed.
const MAX_TASKS: usize = 5;
/// Width that sentences are wrapped to.
const WIDTH: usize = 96;

pub(super) fn write(
    process: &Process,
    finding: &Finding,
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    let leak = finding.leak_bytes_per_s;
    let sure = if finding.confidence >= Confidence::Strong {
        "1;31"
    } else {
        "1;33"
    };
    let kind = style.paint(
        sure,
        &format!("{} ({})", finding.verdict, finding.confidence),
    );
    writeln!(out, "{kind} in {}", style.bold(&title(process)))?;
    writeln!(out, "  {}", style.bold(&headline(finding)))?;
    field(
        out,
        style,
        "Rate",
        &format!(
            "{} (95 %: {} to {})",
            rate(leak.value),
            rate(leak.low),
            rate(leak.high)
        ),
    )?;
    if finding.live_blocks.high > 0.0 {
        live(finding, style, out)?;
    }
    if let Some(left) = finding.time_to_limit_s {
        field(out, style, "To limit", &time(seconds(left)))?;
    }
    stack(finding, style, out)?;
    tasks(finding, style, out)?;
    section(out, style, "Evidence")?;
    for line in &finding.evidence {
        wrapped(out, "    - ", "      ", &line.text)?;
    }
    section(out, style, "What to do")?;
    wrapped(out, "    ", "    ", &finding.advice)?;
    writeln!(
        out,
        "  {}",
        style.faint(&format!("Fingerprint {}", finding.fingerprint))
    )
}

fn live(finding: &Finding, style: Style, out: &mut impl Write) -> io::Result<()> {
    let live = &finding.live_bytes;
    let range = if live.high - live.low > live.value * 0.01 {
        format!(" (95 %: {} to {})", bytes(live.low), bytes(live.high))
    } else {
        String::new()
    };
    let oldest = finding.oldest_s.map_or_else(String::new, |age| {
        format!(", the oldest {} old", time(seconds(age)))
    });
    field(
        out,
        style,
        "Live",
        &format!(
            "{}{range} in {} blocks{oldest}",
            bytes(live.value),
            count(finding.live_blocks.value)
        ),
    )
}

/// The first function of the program's own, and where it is.
pub(super) fn headline(finding: &Finding) -> String {
    let Some(frame) = site_frame(&finding.site.frames) else {
        return "unknown code (the stack could not be read)".to_owned();
    };
    match frame.location() {
        Some(location) => format!("{} at {location}", frame.label()),
        None => frame.label(),
    }
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)
}

fn field(out: &mut impl Write, style: Style, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "  {} {value}", style.faint(&format!("{name:<9}")))
}

fn section(out: &mut impl Write, style: Style, name: &str) -> io::Result<()> {
    writeln!(out, "  {}", style.faint(name))
}

fn stack(finding: &Finding, style: Style, out: &mut impl Write) -> io::Result<()> {
    let frames = &finding.site.frames;
    if frames.is_empty() {
        return Ok(());
    }
    section(
        out,
        style,
        "Stack, innermost first (> the program's own code)",
    )?;
    let mut left = MAX_FRAMES;
    for run in frames.chunk_by(|a, b| is_user_frame(a) == is_user_frame(b)) {
        let own = run.first().is_some_and(is_user_frame);
        // One library frame takes no more room than the words for it.
        if !own && run.len() > 1 {
            let line = format!("      … {} frames of libraries", run.len());
            writeln!(out, "{}", style.faint(&line))?;
            continue;
        }
        let shown = run.len().min(left);
        left -= shown;
        for frame in run.iter().take(shown) {
            writeln!(out, "    {}", line(frame, style))?;
        }
        if shown < run.len() {
            writeln!(out, "      … {} more frames", run.len() - shown)?;
        }
    }
    match &finding.site.truncated {
        Some(why) => writeln!(out, "      … the stack is incomplete: {why}"),
        None => Ok(()),
    }
}

fn line(frame: &Frame, style: Style) -> String {
    let mark = if is_user_frame(frame) { ">" } else { " " };
    let inlined = if frame.inlined { " (inlined)" } else { "" };
    let location = frame.location().map_or_else(String::new, |location| {
        format!("  {}", style.faint(&location))
    });
    format!("{mark} {}{inlined}{location}", frame.label())
}

fn tasks(finding: &Finding, style: Style, out: &mut impl Write) -> io::Result<()> {
    for (role, title) in [
        (Role::Allocated, "Tokio tasks that allocated it"),
        (Role::Holds, "Tokio tasks that hold it, the longest first"),
    ] {
        let named: Vec<&Task> = finding
            .tasks
            .iter()
            .filter(|task| task.role == role && (task.id.is_some() || task.name.is_some()))
            .collect();
        if named.is_empty() {
            continue;
        }
        section(out, style, title)?;
        for task in named.iter().take(MAX_TASKS) {
            wrapped(out, "      ", "        ", &of_task(task))?;
        }
        match named.len().saturating_sub(MAX_TASKS) {
            0 => {}
            more => writeln!(out, "      … {more} more")?,
        }
    }
    Ok(())
}

fn of_task(task: &Task) -> String {
    let id = task
        .id
        .map_or_else(|| "task".to_owned(), |id| format!("task {id}"));
    let name = task
        .name
        .as_ref()
        .map_or_else(String::new, |name| format!(" {name}"));
    let location = task
        .location
        .as_ref()
        .map_or_else(String::new, |at| format!(" at {at}"));
    format!(
        "{id}{name}{location}: {} in {} blocks{}",
        bytes(task.bytes as f64),
        count(task.blocks as f64),
        fate(task)
    )
}

/// What became of a task, as far as that is known.
fn fate(task: &Task) -> String {
    let state = task.state.as_ref().map_or("", |state| state.as_str());
    match (state, task.ended_s, task.idle_s) {
        ("", ..) => String::new(),
        ("finished", Some(least), _) => format!(
            "; finished {} ago, while its blocks live",
            range(least, task.ended_most_s)
        ),
        ("complete", Some(least), _) => format!(
            "; finished {} ago, but still held",
            range(least, task.ended_most_s)
        ),
        ("idle", _, Some(least)) => match task.idle_most_s {
            Some(most) if least < 0.5 && least < most / 2.0 => {
                format!("; alive, idle for less than {}", time(seconds(most)))
            }
            most => format!("; alive, idle for {}", range(least, most)),
        },
        (state, ..) => format!("; alive, {state}"),
    }
}

/// `40 to 50 s`; `at least 40 s` where nobody knows more.
fn range(least: f64, most: Option<f64>) -> String {
    let Some(most) = most else {
        return format!("at least {}", time(seconds(least)));
    };
    let (from, to) = (time(seconds(least)), time(seconds(most)));
    match (from.split_once(' '), to.split_once(' ')) {
        _ if from == to => to,
        (Some((number, unit)), Some((_, same))) if unit == same => format!("{number} to {to}"),
        _ => format!("{from} to {to}"),
    }
}

/// Breaks a sentence into lines.
pub(super) fn wrapped(out: &mut impl Write, first: &str, next: &str, text: &str) -> io::Result<()> {
    let mut line = first.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(out, "{line}")?;
            next.clone_into(&mut line);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    writeln!(out, "{line}")
}
