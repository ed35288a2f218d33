//! The document for people: one screen per finding, worst first, then what
//! was measured, what was lost, and what would have been found.

mod finding;
mod waits;

use std::{
    io::{self, Write},
    time::Duration,
};

use crate::finding::{
    Document, Process, TargetCpu,
    units::{bytes, count, rate, time},
};

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Colours by ANSI escapes.
    pub colour: bool,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Stands out.
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Stands back.
    pub(crate) fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// Quiet verdicts that are listed.
const MAX_NOT_LEAKS: usize = 5;

/// Writes the document.
pub fn write(document: &Document, style: Style, out: &mut impl Write) -> io::Result<()> {
    for process in &document.processes {
        for finding in &process.findings {
            finding::write(process, finding, style, out)?;
            writeln!(out)?;
        }
    }
    for process in &document.processes {
        write_process(process, style, out)?;
    }
    for skipped in &document.skipped {
        match skipped.pid {
            Some(pid) => writeln!(out, "Not observed: process {pid}: {}", skipped.why)?,
            None => writeln!(out, "Not observed: {}", skipped.why)?,
        }
    }
    if document.processes.is_empty() && document.skipped.is_empty() {
        writeln!(out, "No process was observed.")?;
    }
    Ok(())
}

/// `comm (process 12, unit x.service)`.
fn title(process: &Process) -> String {
    let unit = process
        .unit
        .as_ref()
        .map_or_else(String::new, |unit| format!(", {unit}"));
    format!("{} (process {}{unit})", process.comm, process.pid)
}

fn write_process(process: &Process, style: Style, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", style.bold(&title(process)))?;
    verdict(process, out)?;
    not_leaks(process, out)?;
    if let Some(waits) = &process.waits {
        waits::write(waits, out)?;
    }
    capture(process, out)?;
    losses(process, out)?;
    if let Some(ended) = &process.ended {
        let who = if process.command.is_some() {
            "The command"
        } else {
            "The process"
        };
        finding::wrapped(out, "  ", "    ", &ended.sentence(who))?;
        if let Some(death) = &ended.under_probes {
            // Not wrapped: there is a command in it, to be copied.
            writeln!(out, "  {}", death.consequence(process.uid))?;
        }
    } else if let Some(command) = &process.command {
        match (command.exit_status, command.signal) {
            (Some(status), _) => writeln!(out, "  The command ended with exit status {status}.")?,
            (None, Some(signal)) => writeln!(out, "  The command was ended by signal {signal}.")?,
            (None, None) => writeln!(out, "  The command is still running.")?,
        }
    }
    writeln!(out)
}

/// What was found, and what would have been.
fn verdict(process: &Process, out: &mut impl Write) -> io::Result<()> {
    let found = process.findings.len();
    match (found, process.detection_limit_bytes_per_s) {
        (0, Some(limit)) => writeln!(
            out,
            "  No leak above {} (blocks of up to 4 KiB, 95 %).",
            rate(limit)
        ),
        (_, Some(limit)) => {
            let noun = if found == 1 { "finding" } else { "findings" };
            writeln!(
                out,
                "  {found} {noun}; any other leak above {} would have been found (blocks of up to 4 KiB, 95 %).",
                rate(limit)
            )
        }
        (0, None) => match &process.why_not {
            Some(why) => writeln!(out, "  Nothing found, and nothing can be said: {why}."),
            None => writeln!(
                out,
                "  Nothing found, and nothing can be said about smaller leaks."
            ),
        },
        (_, None) => writeln!(out, "  {found} found; what else there is cannot be said."),
    }
}

fn not_leaks(process: &Process, out: &mut impl Write) -> io::Result<()> {
    for healthy in process.not_leaks.iter().take(MAX_NOT_LEAKS) {
        let site = finding::headline(healthy);
        let reason = healthy
            .evidence
            .first()
            .map_or("", |line| line.text.as_str());
        let held = if healthy.live_blocks.high > 0.0 {
            format!("{} live", bytes(healthy.live_bytes.value))
        } else {
            format!("grows by {}", rate(healthy.leak_bytes_per_s.value))
        };
        let text = format!("No leak ({}): {site}, {held}. {reason}", healthy.verdict);
        finding::wrapped(out, "  ", "    ", &text)?;
    }
    match process.not_leaks.len().saturating_sub(MAX_NOT_LEAKS) {
        0 => Ok(()),
        more => writeln!(
            out,
            "  … and {more} more that are no leak; --json lists them."
        ),
    }
}

fn capture(process: &Process, out: &mut impl Write) -> io::Result<()> {
    let capture = &process.capture;
    let taken = if capture.sampling_mean_bytes <= 1 {
        "every allocation".to_owned()
    } else {
        format!(
            "about one allocation per {}",
            bytes(capture.sampling_mean_bytes as f64)
        )
    };
    let open = time(Duration::from_secs_f64(capture.open_s.max(0.0)));
    let observed = match capture.mode {
        "survey" if capture.windows == 1 => format!("One window, open for {open}"),
        "survey" => format!("{} windows, open for {open} in all", capture.windows),
        _ => format!("Observed for {open}"),
    };
    writeln!(
        out,
        "  {observed}, {taken}: {} allocations, {} recorded.",
        count(capture.allocations as f64),
        count(capture.sampled as f64),
    )?;
    if let Some(decision) = capture.decisions.last() {
        finding::wrapped(out, "  ", "    ", &format!("Budget: {decision}."))?;
    }
    if let Some(rss) = process.rss {
        writeln!(
            out,
            "  Memory of the process (RSS and swap): {} at the start, {} at the end.",
            bytes(rss.start_bytes as f64),
            bytes(rss.end_bytes as f64)
        )?;
    }
    let costs: Vec<String> = [
        capture
            .target_slowdown_percent
            .map(|share| format!("{share:.1} % of the process's time")),
        capture
            .agent_cpu_percent
            .map(|share| format!("{share:.1} % of one core for lingerscope")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !costs.is_empty() {
        writeln!(out, "  Cost of observing: {}.", costs.join(", "))?;
    }
    if let Some(sentence) = own_cpu(&capture.target_cpu) {
        finding::wrapped(out, "  ", "    ", &sentence)?;
    }
    for allocator in process
        .allocators
        .iter()
        .filter(|allocator| !allocator.attached)
    {
        let why = allocator
            .why_not
            .as_ref()
            .map_or("no reason known", |why| why.as_str());
        writeln!(
            out,
            "  Not observed: allocator {} in {}: {why}.",
            allocator.kind, allocator.module
        )?;
    }
    if let Some(tokio) = process
        .tokio
        .as_ref()
        .filter(|tokio| tokio.task_id != "tls")
    {
        let why = tokio
            .why_not
            .as_ref()
            .map_or("no reason known", |why| why.as_str());
        writeln!(
            out,
            "  Tokio task ids are not known ({why}); tasks are named from the stack where possible."
        )?;
    }
    Ok(())
}

/// What probing is in terms of the processor time that the process itself
/// uses; none when no probe was on.
fn own_cpu(cpu: &TargetCpu) -> Option<String> {
    let during = cpu.cores_during?;
    let before = match cpu.cores_before {
        Some(cores) => format!("{cores:.3} cores before"),
        None => "not measured before".to_owned(),
    };
    let between = cpu
        .cores_between
        .map_or_else(String::new, |cores| format!(", {cores:.3} between windows"));
    let share = cpu.probe_percent_of_own.map_or_else(String::new, |share| {
        format!("; the probes took about {share:.1} % of that")
    });
    let overall = cpu
        .probe_percent_overall
        .filter(|_| cpu.cores_between.is_some());
    let overall = overall.map_or_else(String::new, |share| {
        format!(", {share:.1} % of all it used since the first window")
    });
    Some(format!(
        "Its own processor time: {before}{between}, {during:.3} cores while probed{share}{overall}."
    ))
}

fn losses(process: &Process, out: &mut impl Write) -> io::Result<()> {
    if process.capture.lost.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = process
        .capture
        .lost
        .iter()
        .map(|(cause, number)| format!("{cause} {}", count(*number as f64)))
        .collect();
    writeln!(out, "  Lost, by cause: {}.", list.join(", "))
}

#[cfg(test)]
mod tests;
