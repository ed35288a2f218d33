//! The trial of a followed process's recipe, beside other work: is what it
//! reads the ids of running tasks?
//!
//! A recipe is a claim of the file. [`super::acceptance`] holds it against the
//! process, which needs the cells of all tasks and so one look through its
//! memory; that takes about a second per gigabyte. So it is done on a thread
//! of its own, for one process at a time, and again only where nothing polled
//! meanwhile.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use agent_ebpf::abi::heap::TaskIdRecipe;

use super::table::{self, Module, TaskIds};
use crate::host::process::{self, Process};

/// Trials of one process.
const MAX_TRIALS: u32 = 8;
/// The pause after the first trial; it doubles with every other.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The pause is this much longer than the trial took, at least.
const SHARE: u32 = 50;

/// A trial is going on.
static BUSY: AtomicBool = AtomicBool::new(false);

/// What is known about a recipe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Belief {
    /// Not tried yet, or nothing has shown anything; then why.
    #[default]
    Open,
    /// Tried, and nothing has shown anything.
    Unsettled(String),
    /// It reads ids of running tasks.
    Confirmed,
    /// It reads something else.
    Refuted(String),
}

/// What a trial has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This recipe reads ids of running tasks.
    Confirmed(TaskIdRecipe),
    /// Nothing that the files allow does.
    Refuted(String),
    /// No thread showed anything.
    Unsettled(String),
}

/// The trials of one process.
#[derive(Debug)]
pub struct Confirmation {
    trials: u32,
    due: Instant,
    began: Instant,
    answer: Option<Receiver<Verdict>>,
}

impl Default for Confirmation {
    fn default() -> Self {
        Self {
            trials: 0,
            due: Instant::now(),
            began: Instant::now(),
            answer: None,
        }
    }
}

impl Confirmation {
    /// Begins a trial if one is due, and gives the verdict of one that is
    /// over. To be called every now and then until something is confirmed or
    /// refuted.
    pub fn tend(&mut self, process: &Process) -> Option<Verdict> {
        let Some(answer) = &self.answer else {
            self.begin(process);
            return None;
        };
        let verdict = match answer.try_recv() {
            Ok(verdict) => Some(verdict),
            Err(TryRecvError::Empty) => return None,
            // A fault of ours; the next trial may do better.
            Err(TryRecvError::Disconnected) => None,
        };
        self.answer = None;
        let pause = FIRST_PAUSE * (1 << self.trials.min(MAX_TRIALS));
        self.due = Instant::now() + pause.max(self.began.elapsed() * SHARE);
        verdict
    }

    fn begin(&mut self, process: &Process) {
        let now = Instant::now();
        if self.trials >= MAX_TRIALS || now < self.due || BUSY.swap(true, Ordering::Acquire) {
            return;
        }
        let free = Free;
        self.trials += 1;
        self.began = now;
        let (sender, answer) = mpsc::sync_channel(1);
        let process = process.clone();
        let started = thread::Builder::new()
            .name("task-id-trial".into())
            .spawn(move || {
                let verdict = verdict(&process);
                drop(free);
                // Nobody waits for a process that is followed no more.
                drop(sender.send(verdict));
            });
        if let Err(error) = started {
            tracing::debug!(%error, "no thread for the trial of task ids");
            return;
        }
        self.answer = Some(answer);
    }
}

/// Lets the next trial begin when it goes.
struct Free;

impl Drop for Free {
    fn drop(&mut self) {
        BUSY.store(false, Ordering::Release);
    }
}

fn verdict(process: &Process) -> Verdict {
    match table::modules(process) {
        Ok(mut modules) => {
            let exe = process::exe_path(process);
            modules.sort_by_key(|module| module.path != exe);
            judged(&modules)
        }
        Err(why) => Verdict::Unsettled(why.to_string()),
    }
}

/// One recipe serves a whole process: the first that is confirmed.
fn judged(modules: &[Module]) -> Verdict {
    let (mut unsettled, mut refuted) = (None, None);
    for module in modules {
        match &module.task_ids {
            TaskIds::Confirmed { recipe, .. } => return Verdict::Confirmed(*recipe),
            TaskIds::Unconfirmed(why) => unsettled = unsettled.or(Some((*why).to_owned())),
            TaskIds::Unknown(why) => refuted = refuted.or_else(|| Some(why.clone())),
        }
    }
    match (unsettled, refuted) {
        (Some(why), _) => Verdict::Unsettled(why),
        (None, Some(why)) => Verdict::Refuted(why),
        (None, None) => Verdict::Unsettled("no task was found".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::tokio_rt::tls::Source;

    fn module(task_ids: TaskIds) -> Module {
        Module {
            path: "/usr/bin/server".into(),
            build_id: None,
            version: None,
            bias: 0,
            task_ids,
        }
    }

    #[test]
    fn what_is_confirmed_counts_and_what_may_be_is_not_refuted() {
        let recipe = TaskIdRecipe {
            slot: 8,
            ..TaskIdRecipe::default()
        };
        let confirmed = module(TaskIds::Confirmed {
            source: Source::Trial,
            threads: 1,
            recipe,
        });
        let silent = module(TaskIds::Unconfirmed("nobody polled"));
        let wrong = module(TaskIds::Unknown("no ids".to_owned()));
        assert_eq!(
            judged(&[wrong.clone(), silent.clone(), confirmed]),
            Verdict::Confirmed(recipe)
        );
        assert_eq!(
            judged(&[wrong.clone(), silent]),
            Verdict::Unsettled("nobody polled".to_owned())
        );
        assert_eq!(judged(&[wrong]), Verdict::Refuted("no ids".to_owned()));
        assert!(matches!(judged(&[]), Verdict::Unsettled(_)));
    }

    #[test]
    fn a_process_without_tasks_settles_nothing_and_is_not_tried_for_ever() {
        let mut sleep = Command::new("sleep").arg("30").spawn().unwrap();
        let process = Process::of(sleep.id()).unwrap();
        let mut trials = Confirmation::default();
        let mut verdicts = Vec::new();
        for _ in 0..2000 {
            verdicts.extend(trials.tend(&process));
            if verdicts.len() == 1 {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        assert!(
            matches!(verdicts.as_slice(), [Verdict::Unsettled(_)]),
            "{verdicts:?}"
        );
        assert!(trials.due > Instant::now() && trials.trials == 1);
        trials.trials = MAX_TRIALS;
        trials.due = Instant::now();
        assert_eq!(trials.tend(&process), None);
        assert!(trials.answer.is_none());
        sleep.kill().unwrap();
        sleep.wait().unwrap();
    }
}
