//! From an account to the document's view of a process.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use super::{account::Account, governed::Cost};
use crate::{
    analysis::{self, Context, Identity, MemoryLimit, Outcome, Settings, waits},
    capture::{Capture, address_space::AddressSpace, ring, target::Target},
    finding::{self, Allocator, Finding, Frame, Process, Role, Task, TaskCounts, Text, Tokio},
    host::{self, process},
    ledger::StackId,
    reader,
    symbols::Symbols,
    tokio_rt::{
        boundary::{self, Polled},
        confirmation::Belief,
        current_task::TaskIds,
    },
};
use agent_ebpf::abi::{heap::TaskIdRecipe, stack::StackEnd};

/// Judges an account.
pub(super) fn describe(
    capture: &Capture,
    account: &Account,
    cost: Cost,
    settings: &Settings,
    symbols: &mut Symbols,
) -> Process {
    let who = &account.process;
    let target = capture.target(account.id);
    let empty = AddressSpace::default();
    let space = target.map_or(&empty, |target| &target.space);
    let surveyed = account.surveyed();
    let exe = process::exe_path(who);
    let identity = identity(who, &exe);
    let context = Context {
        sampling_mean: surveyed.map_or(account.coarsest, |survey| survey.coarsest),
        limit: process::memory_limit(who).map(|(used_bytes, limit_bytes)| MemoryLimit {
            limit_bytes,
            used_bytes,
        }),
    };
    let residence = account
        .growth
        .residence(who, space, account.knows_its_allocators());
    let of_faults = residence.stacks.iter().map(|faults| faults.stack);
    let of_blocks = surveyed.map_or_else(
        || account.ledger.stacks(),
        |survey| survey.survivors.stacks(),
    );
    let ids = of_blocks.into_iter().chain(of_faults);
    let stacks = resolved(ids, capture, space, symbols);
    let ledger = &account.ledger;
    let mut outcome = surveyed.map_or_else(
        || analysis::findings(ledger, &residence, &stacks, &identity, &context, settings),
        |survey| {
            let survivors = &survey.survivors;
            analysis::survey::findings(
                survivors, &residence, &stacks, &identity, &context, settings,
            )
        },
    );
    let ids_agree =
        target.is_some_and(|target| are_task_ids(&target.tasks.belief, account, &stacks));
    let task_counts = tell_tasks(
        &mut outcome,
        account,
        ids_agree,
        &stacks,
        &identity,
        &context,
        settings,
    );
    let (mut findings, not_leaks) = (outcome.findings, outcome.not_leaks);
    let waits = account.waits.waits().map(|waits| {
        let stacks = resolved(waits.stacks(), capture, space, symbols);
        let places = waits::places(&waits, &stacks);
        waits::blame(&mut findings, &places, account.observed, &identity);
        waits::describe(&waits, &places)
    });
    let (detection_limit_bytes_per_s, why_not) =
        match blind(capture, account).map_or(outcome.detection_limit, Err) {
            Ok(limit) => (Some(limit), None),
            Err(why) => (None, Some(Text::sentence(why))),
        };
    Process {
        command: account.command.clone(),
        ended: account.ended_as.clone(),
        allocators: target
            .map(|target| target.allocators.iter().map(allocator).collect())
            .unwrap_or_default(),
        capture: measured(capture, account, cost, symbols),
        detection_limit_bytes_per_s,
        why_not,
        rss: outcome.rss,
        explained_share: outcome.explained_share,
        tokio: target
            .filter(|target| target.tasks.tokio)
            .map(|target| Tokio {
                tasks: task_counts,
                runtimes: task_counts.map(|_| account.tasks.ledger.runtimes()),
                ..tokio(
                    &target.tasks,
                    ids_agree,
                    account.tasks.why_not(),
                    findings.iter().chain(&not_leaks),
                )
            }),
        waits,
        findings,
        not_leaks,
        sites: outcome.sites,
        ..self::who(who, space.build_id(&exe).map(str::to_owned))
    }
}

/// Who a process is, without what it did.
pub(super) fn who(who: &host::process::Process, build_id: Option<String>) -> Process {
    let exe = process::exe_path(who);
    Process {
        pid: who.pid,
        ns_pid: (who.ns_pid != who.pid).then_some(who.ns_pid),
        start_time: who.start_time,
        uid: Some(who.uid),
        comm: Text::name(&who.comm),
        build_id,
        exe: (!exe.as_os_str().is_empty()).then(|| Text::name(exe.as_os_str().as_encoded_bytes())),
        cgroup: (!who.cgroup.is_empty()).then(|| Text::name(&who.cgroup)),
        unit: who.unit().map(Text::name),
        container_id: who.container_id().map(Text::name),
        ..Process::default()
    }
}

fn identity(who: &host::process::Process, exe: &Path) -> Identity {
    Identity {
        pid: who.pid,
        start_time: who.start_time,
        exe_basename: exe
            .file_name()
            .map(|name| Text::name(name.as_encoded_bytes()).as_str().to_owned())
            .unwrap_or_default(),
    }
}

/// Enters what is known of tasks into findings; the numbers of all tasks,
/// unless their table could not be read.
fn tell_tasks(
    outcome: &mut Outcome,
    account: &Account,
    ids_agree: bool,
    stacks: &BTreeMap<StackId, analysis::Stack>,
    identity: &Identity,
    context: &Context,
    settings: &Settings,
) -> Option<TaskCounts> {
    let tasks = &account.tasks;
    let module = tasks.module.filter(|_| ids_agree);
    if tasks.ledger.now().is_some() {
        let blocks = account.blocks(module);
        analysis::tasks::explain(
            outcome,
            &tasks.ledger,
            &blocks,
            stacks,
            identity,
            context,
            settings,
        );
    }
    let Outcome {
        findings,
        not_leaks,
        sites,
        ..
    } = outcome;
    if !ids_agree {
        for finding in findings.iter_mut().chain(&mut *not_leaks) {
            finding.tasks.retain(|task| task.role == Role::Holds);
        }
        for site in sites {
            site.tasks.clear();
        }
    }
    let all = findings.iter_mut().chain(&mut *not_leaks);
    let counts = analysis::tasks::describe(all, &tasks.ledger, module);
    findings.iter_mut().chain(not_leaks).for_each(name_tasks);
    counts
}

/// What was measured, and what was lost.
fn measured(
    capture: &Capture,
    account: &Account,
    cost: Cost,
    symbols: &Symbols,
) -> finding::Capture {
    let (mode, windows, open, mean) = match account.surveyed() {
        Some(survey) => ("survey", survey.windows, survey.open_time, survey.coarsest),
        None => ("trace", 1, account.observed, account.coarsest),
    };
    finding::Capture {
        mode,
        windows,
        open_s: open.as_secs_f64(),
        sampling_mean_bytes: mean,
        allocations: account.counts.allocations,
        sampled: account.counts.sampled,
        lost: lost(capture, account, symbols),
        target_slowdown_percent: cost.slowdown_percent,
        target_cpu: cost.cpu,
        agent_cpu_percent: None,
        decisions: account
            .survey
            .iter()
            .flat_map(|survey| &survey.decisions)
            .map(Text::sentence)
            .collect(),
    }
}

/// Why nothing can be said about leaks that were not seen.
fn blind(capture: &Capture, account: &Account) -> Option<String> {
    let refused = |target: &Target| target.refused.as_ref().map(ToString::to_string);
    if let Some(why) = capture.target(account.id).and_then(refused) {
        return Some(why);
    }
    match account.surveyed() {
        Some(survey) => survey.refused.clone(),
        None => account.blind(),
    }
}

/// Stacks with their functions, which the reader is asked for file by file.
fn resolved(
    ids: impl Iterator<Item = StackId>,
    capture: &Capture,
    space: &AddressSpace,
    symbols: &mut Symbols,
) -> BTreeMap<StackId, analysis::Stack> {
    let known = ids.filter_map(|id| Some((id, capture.stack(id.0)?)));
    let stacks: BTreeMap<StackId, &ring::Stack> = known.collect();
    let addresses = stacks.values().flat_map(|stack| &stack.frames).copied();
    symbols.learn(space, addresses);
    stacks
        .into_iter()
        .map(|(id, stack)| (id, resolve(stack, space, symbols)))
        .collect()
}

fn resolve(stack: &ring::Stack, space: &AddressSpace, symbols: &mut Symbols) -> analysis::Stack {
    let frames = stack
        .frames
        .iter()
        .flat_map(|(address, exact)| symbols.frames(space, *address, *exact))
        .collect();
    let truncated = match stack.end {
        StackEnd::Complete => None,
        StackEnd::UnknownMapping => Some("its code lay in no known mapping"),
        StackEnd::NoUnwindRule => Some("its code has no unwind rule that can be followed"),
        StackEnd::UnreadableStack => Some("the stack's memory could not be read"),
        StackEnd::TooDeep => Some("it has more frames than are kept"),
    };
    analysis::Stack {
        frames,
        truncated: truncated.map(Text::sentence),
    }
}

/// How the tasks of a process's allocations were told.
fn tokio<'a>(
    ids: &TaskIds,
    ids_agree: bool,
    no_table: Option<String>,
    mut findings: impl Iterator<Item = &'a Finding>,
) -> Tokio {
    let read = ids.recipe.kind != TaskIdRecipe::KIND_NONE;
    let named = findings.any(|finding| !finding.tasks.is_empty());
    let why_not = match &ids.belief {
        Belief::Unsettled(why) if read && !ids_agree => Some(format!("unconfirmed: {why}")),
        _ if read && !ids_agree => Some("nothing shows that what was read are task ids".to_owned()),
        Belief::Unsettled(why) => ids.why_not.as_ref().map(|file| format!("{file}: {why}")),
        _ => ids.why_not.clone(),
    };
    let why_not = match (why_not, no_table) {
        (Some(why), Some(no_table)) => Some(format!("{why}; {no_table}")),
        (why, no_table) => why.or(no_table),
    };
    Tokio {
        runtimes: None,
        tasks: None,
        task_id: match (read && ids_agree, named) {
            (true, _) => "tls",
            (false, true) => "stack",
            (false, false) => "none",
        },
        why_not: why_not.map(Text::sentence),
    }
}

/// Whether what was read as task ids is believed.
fn are_task_ids(
    belief: &Belief,
    account: &Account,
    stacks: &BTreeMap<StackId, analysis::Stack>,
) -> bool {
    match belief {
        Belief::Confirmed => true,
        Belief::Refuted(_) => false,
        // No thread polled while it was looked at: the stacks may tell.
        Belief::Open | Belief::Unsettled(_) => task_ids_agree(account, stacks),
    }
}

/// Whether the stacks show that what was read are task ids: what is allocated
/// while a task is polled has one.
fn task_ids_agree(account: &Account, stacks: &BTreeMap<StackId, analysis::Stack>) -> bool {
    let polled: HashSet<StackId> = stacks
        .iter()
        .filter(|(_, stack)| {
            matches!(
                polled(&stack.frames),
                Some(Polled::Future(_) | Polled::Unnamed)
            )
        })
        .map(|(id, _)| *id)
        .collect();
    let blocks = account
        .ledger
        .live()
        .iter()
        .filter(|block| polled.contains(&block.stack));
    let (with, without): (Vec<_>, Vec<_>) = blocks.partition(|block| block.task.is_some());
    !with.is_empty() && without.len() * 10 <= with.len() + without.len()
}

/// What a stack was polling, by the names of its functions; inlined ones have
/// no full names.
fn polled(frames: &[Frame]) -> Option<Polled> {
    let standing = frames.iter().filter(|frame| !frame.inlined);
    let names: Vec<&str> = standing
        .filter_map(|frame| Some(frame.function.as_ref()?.as_str()))
        .collect();
    boundary::polled(&names)
}

/// Names a finding's tasks by the future that its stack was polling.
fn name_tasks(finding: &mut Finding) {
    let frames = &finding.site.frames;
    let name = match polled(frames) {
        Some(Polled::Future(name)) => name,
        Some(Polled::Runtime) => "tokio's own work".to_owned(),
        Some(Polled::Unnamed) | None => return,
    };
    // The outermost of the user's frames is the future itself.
    let location = finding::user_frames(frames)
        .last()
        .and_then(|frame| frame.location());
    let mut allocated = finding.tasks.iter();
    if !allocated.any(|task| task.role == Role::Allocated) {
        let (blocks, bytes) = (
            finding.live_blocks.value as u64,
            finding.live_bytes.value as u64,
        );
        finding.tasks.push(Task {
            blocks,
            bytes,
            ..Task::default()
        });
    }
    let unnamed = |task: &&mut Task| task.role == Role::Allocated && task.name.is_none();
    for task in finding.tasks.iter_mut().filter(unnamed) {
        task.name = Some(Text::symbol(&name));
        task.location = location.as_ref().map(Text::sentence);
    }
}

fn allocator(allocator: &crate::capture::target::Allocator) -> Allocator {
    let uncovered = &allocator.uncovered;
    let why_not = allocator.why_not.clone().or_else(|| {
        (!uncovered.is_empty()).then(|| format!("cannot follow {}", uncovered.join(", ")))
    });
    Allocator {
        kind: Text::name(allocator.kind),
        module: Text::name(allocator.module.as_os_str().as_encoded_bytes()),
        attached: allocator.why_not.is_none(),
        why_not: why_not.map(Text::sentence),
    }
}

/// Losses of one process, with those of this program that concern them all.
fn lost(capture: &Capture, account: &Account, symbols: &Symbols) -> BTreeMap<String, u64> {
    let counted = capture.lost().iter().map(|(cause, count)| (*cause, *count));
    let ours = counted
        .chain(reader::lost())
        .chain(symbols.lost())
        .map(|(cause, count)| (cause.to_owned(), count));
    account.lost().into_iter().chain(ours).collect()
}
