//! The asking side: keeps one reader, restarts it when it has failed, and
//! remembers the files at which it did.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    process::{Deadline, Failure, Process},
    question::{Answer, Question},
};
use crate::host::module::Stamp;

/// Files that are remembered; with more, all are forgotten, which costs no
/// more than the bound on failures allows.
const MAX_REFUSED: usize = 4096;
/// Failures are counted over this time …
const SPAN: Duration = Duration::from_mins(1);
/// … and after so many, or so much time lost, no more is asked until it has
/// passed: a host full of bad files must not keep us from our work.
const MAX_FAILURES: usize = 20;
const MAX_LOST: Duration = Duration::from_secs(15);

/// An unoptimised build is so many times slower.
const SLOWER: u64 = if cfg!(debug_assertions) { 10 } else { 1 };
/// A file's code is read in a second, the compiler's own of 150 MB included.
const USUAL: Deadline = Deadline {
    processor: Duration::from_secs(4 * SLOWER),
    wall: Duration::from_secs(12 * SLOWER),
};
/// To name the futures of a large program takes seconds; its own limit is 10.
const LONG: Deadline = Deadline {
    processor: Duration::from_secs(12 * SLOWER),
    wall: Duration::from_secs(25 * SLOWER),
};

/// Why a file was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It is not such a file, or too large: what the reader says.
    #[error("{0}")]
    Unfit(String),
    /// The reader failed at it, now or before.
    #[error("{0}")]
    Failed(String),
    /// Not now; it may be asked for again.
    #[error("{0}")]
    Later(String),
}

impl Unread {
    /// Whether it makes no sense to ask again.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Self::Later(_))
    }
}

/// A reader and what is known of its failures.
#[derive(Debug)]
pub struct Reader {
    program: PathBuf,
    arguments: &'static [&'static str],
    process: Option<Process>,
    /// As long as an answer may take, whatever the question.
    limit: Option<Duration>,
    /// Files at which it failed, by the kind of the question, and how.
    refused: HashMap<(Stamp, &'static str), String>,
    /// When it failed lately, and what time that took.
    failures: VecDeque<(Instant, Duration)>,
    lost: BTreeMap<&'static str, u64>,
}

impl Reader {
    /// One that runs `program` with these arguments when it is needed.
    pub fn new(program: impl Into<PathBuf>, arguments: &'static [&'static str]) -> Self {
        Self {
            program: program.into(),
            arguments,
            process: None,
            limit: None,
            refused: HashMap::new(),
            failures: VecDeque::new(),
            lost: BTreeMap::new(),
        }
    }

    /// The same, that waits no longer than this for an answer.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    /// Process id of the reader, if one runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Bytes of its memory.
    pub fn memory(&self) -> u64 {
        self.process.as_ref().map_or(0, Process::memory)
    }

    /// What was not read, by cause.
    pub fn lost(&self) -> &BTreeMap<&'static str, u64> {
        &self.lost
    }

    /// Starts it, if it does not run.
    ///
    /// # Errors
    /// Why it cannot be started now.
    pub fn start(&mut self) -> Result<(), Unread> {
        if self.process.as_mut().is_some_and(Process::has_ended) {
            // Whoever ended it, it was no file's fault.
            self.process = None;
        }
        if self.process.is_none() {
            self.rest()?;
            let began = Instant::now();
            let deadline = self.deadline(USUAL);
            let process = Process::start(&self.program, self.arguments, deadline);
            let process = process.map_err(|why| {
                self.failures.push_back((Instant::now(), began.elapsed()));
                Unread::Later(format!("the reader cannot be started: {why}"))
            })?;
            self.process = Some(process);
        }
        Ok(())
    }

    /// Ends it; the next question starts another one.
    pub fn end(&mut self) {
        self.process = None;
    }

    /// Asks about files, of which the first is the one in question.
    ///
    /// # Errors
    /// Why there is no answer; it is counted.
    pub fn ask(
        &mut self,
        question: &Question,
        files: &[&File],
    ) -> Result<(Answer, Vec<u8>), Unread> {
        let stamp = files.first().and_then(|file| Stamp::of(file));
        let Some(stamp) = stamp else {
            return Err(Unread::Later("its state cannot be told".to_owned()));
        };
        let case = (stamp, question.kind());
        if let Some(why) = self.refused.get(&case) {
            let why = why.clone();
            self.count("questions_not_asked_again");
            return Err(Unread::Failed(why));
        }
        let began = Instant::now();
        let outcome = self.try_to_ask(question, files, stamp.size);
        if let Err(Unread::Later(_)) = &outcome {
            self.count("files_unread_without_reader");
        }
        let Err(Unread::Failed(why)) = &outcome else {
            return outcome;
        };
        self.process = None;
        self.failures.push_back((Instant::now(), began.elapsed()));
        if self.refused.len() >= MAX_REFUSED {
            self.refused.clear();
        }
        self.refused.insert(case, why.clone());
        outcome
    }

    fn try_to_ask(
        &mut self,
        question: &Question,
        files: &[&File],
        size: u64,
    ) -> Result<(Answer, Vec<u8>), Unread> {
        let body = postcard::to_allocvec(question)
            .map_err(|error| Unread::Unfit(format!("the question cannot be put: {error}")))?;
        self.start()?;
        let usual = match question {
            Question::Tasks { .. } | Question::TaskNames(_) => LONG,
            _ => USUAL,
        };
        let deadline = self.deadline(usual);
        let Some(process) = &mut self.process else {
            return Err(Unread::Later("there is no reader".to_owned()));
        };
        let answer = process
            .ask(body, files, question.limits(), deadline)
            .and_then(|message| {
                let answer = postcard::from_bytes::<Answer>(&message.body).ok();
                let sound = answer.filter(|answer| answer.fits(question, size));
                let answer = sound.ok_or(Failure::Unsound)?;
                Ok((answer, message.payload))
            });
        match answer {
            Ok((Answer::Nothing(why), _)) => Err(Unread::Unfit(why)),
            Ok(answer) => Ok(answer),
            Err(failure) => {
                self.count(match &failure {
                    Failure::Ended(_) => "files_unread_reader_ended",
                    Failure::Late(_) => "files_unread_reader_late",
                    Failure::Unsound => "files_unread_answer_unsound",
                });
                Err(Unread::Failed(failure.to_string()))
            }
        }
    }

    fn deadline(&self, usual: Deadline) -> Deadline {
        self.limit.map_or(usual, |limit| Deadline {
            processor: limit,
            wall: limit,
        })
    }

    /// Whether there were too many failures lately.
    fn rest(&mut self) -> Result<(), Unread> {
        let now = Instant::now();
        while self
            .failures
            .front()
            .is_some_and(|(when, _)| now.saturating_duration_since(*when) > SPAN)
        {
            self.failures.pop_front();
        }
        let lost: Duration = self.failures.iter().map(|(_, took)| *took).sum();
        if self.failures.len() >= MAX_FAILURES || lost >= MAX_LOST {
            let sentence = format!(
                "the reader has failed {} times within a minute and rests",
                self.failures.len()
            );
            return Err(Unread::Later(sentence));
        }
        Ok(())
    }

    fn count(&mut self, cause: &'static str) {
        *self.lost.entry(cause).or_default() += 1;
    }
}
