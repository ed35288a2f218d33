//! Whether a recipe really reads the current task's id: on a thread that polls
//! a task, it must be the id of a cell whose state says it is running.
//!
//! Outside of polls, a worker's own id is that of Tokio's worker task on the
//! blocking pool, which always runs; so a multi-threaded runtime answers at
//! once.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread::sleep,
    time::Duration,
};

use super::{
    cell::State,
    thread::Thread,
    tls::{Block, Recipe},
};
use crate::host::heap::Heap;

/// How often all threads are looked at, and the time between.
const ROUNDS: usize = 60;
const PAUSE: Duration = Duration::from_millis(3);
/// Rounds that are enough when nothing contradicts.
const ENOUGH: usize = 6;
/// Threads that are looked at.
const MAX_THREADS: usize = 64;
/// Tasks that may have been spawned since the table was read.
const MAX_NEWER: u64 = 1 << 24;

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Believed.
    Confirmed {
        /// What is believed.
        recipe: Recipe,
        /// Running task by thread, as last seen.
        running: BTreeMap<u32, u64>,
    },
    /// Read something else than ids of running tasks.
    Refuted,
    /// Several recipes read ids of running tasks.
    Ambiguous,
    /// No thread had a task while it was watched.
    Silent,
}

/// A task's cell as the trial needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Address of the cell.
    pub cell: u64,
    /// Address of its id.
    pub id: u64,
}

/// How often a recipe was right and wrong.
#[derive(Clone, Debug, Default)]
struct Score {
    right: u32,
    wrong: u32,
    ids: BTreeSet<u64>,
    running: BTreeMap<u32, u64>,
}

impl Score {
    fn is_good(&self) -> bool {
        self.right > 10 * self.wrong
    }
}

/// Tries recipes of one file. `module_id` is the dynamic linker's, for
/// libraries; `tasks` are the known cells by id.
pub fn accept(
    heap: &Heap,
    threads: &[Thread],
    recipes: &[Recipe],
    module_id: Option<u64>,
    tasks: &BTreeMap<u64, Known>,
) -> Outcome {
    let mut scores = vec![Score::default(); recipes.len()];
    let newest = tasks.keys().next_back().copied().unwrap_or(0);
    for round in 0..ROUNDS {
        for thread in threads.iter().take(MAX_THREADS) {
            for (recipe, score) in recipes.iter().zip(&mut scores) {
                let Some(id) = current(heap, *thread, recipe, module_id) else {
                    continue;
                };
                let seen = look(heap, tasks.get(&id.0), id.0, newest);
                // Only what holds before and after counts.
                if current(heap, *thread, recipe, module_id) != Some(id) {
                    continue;
                }
                match seen {
                    Seen::Running => {
                        score.right += 1;
                        score.ids.insert(id.0);
                        score.running.insert(thread.id, id.0);
                    }
                    Seen::Nonsense => score.wrong += 1,
                    Seen::Unclear => {}
                }
            }
        }
        let any = scores.iter().any(Score::is_good);
        let clear = scores.len() == 1 && any;
        if clear && round >= ENOUGH {
            break;
        }
        sleep(PAUSE);
    }
    judged(recipes, &scores)
}

fn judged(recipes: &[Recipe], scores: &[Score]) -> Outcome {
    let most = |score: &Score| (score.ids.len(), score.running.len());
    let good: Vec<(&Recipe, &Score)> = recipes
        .iter()
        .zip(scores)
        .filter(|(_, score)| score.is_good())
        .collect();
    let Some(best) = good.iter().max_by_key(|(_, score)| most(score)) else {
        return if scores.iter().any(|score| score.wrong > 0) {
            Outcome::Refuted
        } else {
            Outcome::Silent
        };
    };
    let mut rivals = good.iter().filter(|(_, score)| most(score) == most(best.1));
    let (first, second, third) = (rivals.next(), rivals.next(), rivals.next());
    let chosen = match (first, second, third) {
        (Some(only), None, _) => only,
        // The same word with and without regard to the tag before it: the tag
        // has been right every time.
        (Some(one), Some(other), None) if one.0.slot == other.0.slot => {
            if one.0.has_tag {
                one
            } else {
                other
            }
        }
        _ => return Outcome::Ambiguous,
    };
    Outcome::Confirmed {
        recipe: chosen.0.clone(),
        running: chosen.1.running.clone(),
    }
}

enum Seen {
    Running,
    Unclear,
    Nonsense,
}

fn look(heap: &Heap, known: Option<&Known>, id: u64, newest: u64) -> Seen {
    let Some(known) = known else {
        // A task that is younger than the table, or older and gone.
        return if id <= newest.saturating_add(MAX_NEWER) {
            Seen::Unclear
        } else {
            Seen::Nonsense
        };
    };
    match (heap.word(known.cell), heap.word(known.id)) {
        (Ok(state), Ok(now)) if now == id => {
            let state = State(state);
            if state.is_running() {
                Seen::Running
            } else if state.is_complete() {
                // Its future is being dropped.
                Seen::Unclear
            } else {
                Seen::Nonsense
            }
        }
        _ => Seen::Unclear,
    }
}

/// A task id that a recipe reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id(u64);

/// What a recipe reads on a thread; `None` for no task, or where it cannot be
/// read. A tag that is none gives an id that no task has.
fn current(heap: &Heap, thread: Thread, recipe: &Recipe, module_id: Option<u64>) -> Option<Id> {
    let block = match recipe.block {
        Block::BelowThreadPointer(below) => thread.pointer.checked_sub(below)?,
        Block::ModuleIdAt(_) => {
            let vector = heap.word(thread.pointer.checked_add(8)?).ok()?;
            let entry = vector.checked_add(module_id?.checked_mul(16)?)?;
            heap.word(entry).ok()?
        }
    };
    let place = block.checked_add(recipe.slot)?;
    let id = if recipe.has_tag {
        let mut words = [0; 16];
        heap.read(place.checked_sub(8)?, &mut words).ok()?;
        let (words, _) = words.as_chunks::<8>();
        match words {
            [tag, id] => match u64::from_le_bytes(*tag) {
                0 => 0,
                1 => u64::from_le_bytes(*id),
                _ => u64::MAX,
            },
            _ => 0,
        }
    } else {
        heap.word(place).ok()?
    };
    (id != 0).then_some(Id(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokio_rt::tls::Source;

    fn recipe(slot: u64, has_tag: bool) -> Recipe {
        Recipe {
            block: Block::BelowThreadPointer(64),
            slot,
            has_tag,
            source: Source::Trial,
        }
    }

    fn score(right: u32, wrong: u32, ids: &[u64]) -> Score {
        Score {
            right,
            wrong,
            ids: ids.iter().copied().collect(),
            running: BTreeMap::from([(1, ids.first().copied().unwrap_or(0))]),
        }
    }

    fn slot_of(outcome: &Outcome) -> Option<(u64, bool)> {
        match outcome {
            Outcome::Confirmed { recipe, .. } => Some((recipe.slot, recipe.has_tag)),
            _ => None,
        }
    }

    #[test]
    fn the_word_with_the_most_tasks_wins() {
        let recipes = [recipe(8, false), recipe(16, false), recipe(24, false)];
        let scores = [
            score(90, 0, &[1]),
            score(90, 0, &[1, 2]),
            score(9, 3, &[1, 2, 3]),
        ];
        assert_eq!(slot_of(&judged(&recipes, &scores)), Some((16, false)));
    }

    #[test]
    fn a_tie_is_no_answer_unless_it_is_about_the_tag() {
        let scores = [score(90, 0, &[1, 2]), score(90, 0, &[1, 2])];
        let twins = [recipe(8, false), recipe(16, false)];
        assert_eq!(judged(&twins, &scores), Outcome::Ambiguous);
        let tagged = [recipe(8, false), recipe(8, true)];
        assert_eq!(slot_of(&judged(&tagged, &scores)), Some((8, true)));
    }

    #[test]
    fn nothing_seen_is_not_confirmed() {
        let one = [recipe(8, false)];
        assert_eq!(judged(&one, &[score(0, 0, &[])]), Outcome::Silent);
        assert_eq!(judged(&one, &[score(5, 1, &[7])]), Outcome::Refuted);
        assert_eq!(judged(&[], &[]), Outcome::Silent);
    }
}
