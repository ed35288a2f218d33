//! What the program printed against what lingerscope read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{SAMPLE, builds::Build};

/// A task that the program has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Printed {
    kind: String,
    name: String,
    id: u64,
}

impl Printed {
    /// Reads `TASK kind name id,id…`; other lines tell of no task.
    pub(crate) fn parse(line: &str) -> Result<Vec<Self>> {
        let words: Vec<&str> = line.split(' ').collect();
        let ["TASK", kind, name, ids] = words.as_slice() else {
            return Ok(Vec::new());
        };
        let ids = ids.split(',').map(|id| {
            Ok(Self {
                kind: (*kind).to_owned(),
                name: (*name).to_owned(),
                id: id.parse().with_context(|| format!("no id: {line}"))?,
            })
        });
        ids.collect()
    }

    /// The line of the sample's `.await` that it waits at: each of its futures
    /// has one. A boxed future's is not told.
    fn awaits(&self) -> Option<usize> {
        if !["future", "block"].contains(&self.kind.as_str()) {
            return None;
        }
        let lines = self.lines()?;
        let inside = SAMPLE.lines().zip(1..).take(*lines.end());
        let mut awaits = inside
            .skip(lines.start() - 1)
            .filter(|(line, _)| line.contains(".await"));
        Some(awaits.next()?.1)
    }

    /// Bytes of the block that it allocates: those of no other kind of task
    /// are as large.
    fn mark(&self) -> Option<u64> {
        let lines = self.lines()?;
        let (_, rest) = SAMPLE
            .lines()
            .skip(lines.start() - 1)
            .take(lines.count())
            .find_map(|line| line.split_once("mark!("))?;
        let (bytes, _) = rest.split_once(')')?;
        bytes.replace('_', "").parse().ok()
    }

    /// The lines of the sample that a location may name: the opening of the
    /// async function or block, or one inside where a build has no panic for
    /// the opening. A closure on the blocking pool has none that is sure.
    fn lines(&self) -> Option<RangeInclusive<usize>> {
        let (mark, end) = match self.kind.as_str() {
            "blocking" => return None,
            "block" => (format!("// block: {}", self.name), "};"),
            _ => (format!("async fn {}(", self.name), "}"),
        };
        let mut lines = SAMPLE.lines().enumerate();
        let (first, opening) = lines.find(|(_, line)| line.contains(&mark))?;
        let indent = opening.len() - opening.trim_start().len();
        let (last, _) = lines.find(|(_, line)| {
            line.trim_start() == end && line.len() - line.trim_start().len() == indent
        })?;
        Some(first + 1..=last + 1)
    }
}

/// Right ones of all, and wrong ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Score {
    right: usize,
    all: usize,
    wrong: Vec<String>,
    /// For what there was nothing.
    nothing: Vec<String>,
}

impl Score {
    /// Counts one; `found` says whether it was right, if there was anything.
    fn count(&mut self, found: Option<bool>, what: impl FnOnce() -> String) {
        self.all += 1;
        match found {
            Some(true) => self.right += 1,
            Some(false) => self.wrong.push(what()),
            None => {}
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.right, self.all)?;
        if !self.nothing.is_empty() {
            write!(f, " (not {})", self.nothing.join(", "))?;
        }
        for wrong in self.wrong.iter().take(3) {
            write!(f, " WRONG: {wrong}")?;
        }
        Ok(())
    }
}

/// One build's outcome.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    /// Why there was no table.
    refused: Option<String>,
    ids: Score,
    /// Of the kinds of tasks, not of the tasks.
    names: Score,
    lines: Score,
    /// Of the tasks that are suspended.
    awaits: Score,
    task_id: String,
    /// Kinds of tasks whose blocks carry the right ids.
    allocated: Score,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(refused) = &self.refused {
            return write!(f, "refused: {refused} | | | | | ");
        }
        let Self {
            ids,
            names,
            lines,
            awaits,
            task_id,
            allocated,
            ..
        } = self;
        write!(
            f,
            "{ids} | {names} | {lines} | {awaits} | {task_id} | {allocated}"
        )
    }
}

impl Comparison {
    /// Compares; `code` is lingerscope's exit code.
    pub(crate) fn of(
        build: &Build,
        printed: &[Printed],
        document: &Value,
        code: Option<i32>,
    ) -> Result<Self> {
        let mut comparison = Self::default();
        if let Some(why) = document["why_not"].as_str() {
            if code != Some(4) {
                bail!("exit code {code:?} without a table");
            }
            // The path differs from place to place.
            let why = why.split_once(" has ").map_or(why, |(_, rest)| rest);
            comparison.refused = Some(why.to_owned());
            return Ok(comparison);
        }
        if code != Some(0) {
            bail!("exit code {code:?} with a table");
        }
        let mut found = by_id(document)?;
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for task in printed {
            let entry = found.remove(&task.id);
            let right = entry.as_ref().map_or(Some(false), |(kind, entry)| {
                Some(state_is_right(task, kind, entry))
            });
            comparison
                .ids
                .count(right, || format!("{} {}: {entry:?}", task.name, task.id));
            let Some((kind, entry)) = entry else { continue };
            let suspended = ["idle", "scheduled"].contains(&entry["state"].as_str().unwrap_or(""));
            let told = entry["waits_at"].as_str();
            if build.has_types() && suspended {
                if let Some(line) = task.awaits() {
                    let right = told.map(|told| line_of(told) == Some(line));
                    let what = || format!("{told:?} for {} at {line}", task.name);
                    comparison.awaits.count(right, what);
                }
            } else if told.is_some() {
                let wrong = format!("{told:?} for {} from nowhere", task.name);
                comparison.awaits.wrong.push(wrong);
            }
            if !seen.insert(&task.name) {
                continue;
            }
            if build.has_symbols() {
                let future = kind["future"].as_str();
                let right = future.map(|future| name_is_right(task, future));
                comparison
                    .names
                    .count(right, || format!("{future:?} for {}", task.name));
            }
            if let Some(lines) = task.lines() {
                let location = kind["location"].as_str();
                let right =
                    location.map(|text| line_of(text).is_some_and(|at| lines.contains(&at)));
                comparison.lines.count(right, || {
                    format!("{location:?} for {} at {lines:?}", task.name)
                });
            }
        }
        // What is left was never spawned.
        for (id, (kind, _)) in found {
            let name = &kind["future"];
            comparison.ids.wrong.push(format!("{id} {name} is none"));
        }
        let module = &document["modules"][0];
        comparison.task_id = match (
            module["task_id"].as_str(),
            module["task_id_source"].as_str(),
        ) {
            (Some("confirmed"), Some(source)) => format!("confirmed ({source})"),
            (Some(other), _) => format!("{other}: {}", module["why_not"]),
            _ => "nothing said".to_owned(),
        };
        Ok(comparison)
    }

    /// Compares the ids that blocks got when they were allocated; `document`
    /// is lingerscope's about the program that has printed this.
    pub(crate) fn enter_allocations(
        &mut self,
        printed: &[Printed],
        document: &Value,
    ) -> Result<()> {
        let sites = document["processes"][0]["sites"]
            .as_array()
            .context("no sites")?;
        let mut kinds: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        for task in printed {
            kinds.entry(&task.name).or_default().insert(task.id);
        }
        for task in printed {
            let Some((mark, ids)) = task.mark().zip(kinds.remove(task.name.as_str())) else {
                continue;
            };
            let of_mark = |site: &&Value| {
                let number = |name: &str| site[name]["value"].as_f64();
                number("live_bytes")
                    .zip(number("live_blocks"))
                    .is_some_and(|(bytes, blocks)| (bytes - blocks * mark as f64).abs() < 0.5)
            };
            let read: Vec<Option<u64>> = sites
                .iter()
                .filter(of_mark)
                .flat_map(|site| site["tasks"].as_array().into_iter().flatten())
                .map(|task| task["id"].as_u64())
                .collect();
            let of_kind = |id: &Option<u64>| id.is_some_and(|id| ids.contains(&id));
            let right = (!read.is_empty()).then(|| read.iter().all(of_kind));
            let what = || format!("{read:?} for {} of {ids:?}", task.name);
            self.allocated.count(right, what);
            if right.is_none() {
                self.allocated.nothing.push(task.name.clone());
            }
        }
        Ok(())
    }

    /// Whether all is as it must be for this build.
    pub(crate) fn is_right(&self, build: &Build) -> bool {
        if !build.is_readable() {
            return self
                .refused
                .as_ref()
                .is_some_and(|why| why.contains(build.tokio));
        }
        let scores = [
            &self.ids,
            &self.names,
            &self.lines,
            &self.awaits,
            &self.allocated,
        ];
        let nothing_wrong = scores.iter().all(|score| score.wrong.is_empty());
        // Merged functions leave alternatives instead of names; a boxed future
        // and one whose panic was outlined may have no line.
        self.refused.is_none()
            && nothing_wrong
            && self.ids.right == self.ids.all
            && (self.allocated.all > 0 || build.hides_its_allocator())
            && self.allocated.right == self.allocated.all
            // Some may have run on while the table was read.
            && self.awaits.right + 2 >= self.awaits.all
            && self.lines.right + 3 >= self.lines.all
            && self.task_id.starts_with("confirmed")
    }
}

/// All tasks but Tokio's own: id to type and task.
fn by_id(document: &Value) -> Result<BTreeMap<u64, (Value, Value)>> {
    let mut found = BTreeMap::new();
    for kind in document["types"].as_array().context("no types")? {
        // Without symbols Tokio's own workers cannot be told from other work
        // of the blocking pool.
        let nameless = kind["kind"] == "blocking" && kind["future"].is_null();
        for task in kind["tasks"].as_array().context("no tasks")? {
            let id = task["id"].as_u64().context("no id")?;
            let is_worker = nameless && task["state"] == "running" && task["join_handle"] == false;
            if kind["kind"] == "runtime" || is_worker {
                continue;
            }
            if found.insert(id, (kind.clone(), task.clone())).is_some() {
                bail!("task {id} is listed twice");
            }
        }
    }
    Ok(found)
}

/// The line in `…main.rs:LINE:COLUMN`.
fn line_of(location: &str) -> Option<usize> {
    let (_, rest) = location.split_once("main.rs:")?;
    rest.split(':').next()?.parse().ok()
}

fn state_is_right(task: &Printed, kind: &Value, entry: &Value) -> bool {
    let state = entry["state"].as_str().unwrap_or_default();
    match task.kind.as_str() {
        "complete" => state == "complete",
        "blocking" => state == "running" && kind["kind"] == "blocking",
        _ if ["ticking", "busy"].contains(&task.name.as_str()) => state != "complete",
        _ => state == "idle",
    }
}

fn name_is_right(task: &Printed, future: &str) -> bool {
    match task.kind.as_str() {
        // Named by the function around.
        "block" | "blocking" => future.contains("main"),
        _ => future.ends_with(&format!("::{}", task.name)),
    }
}
