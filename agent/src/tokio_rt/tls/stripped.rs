//! The id's place in a file without symbols: what the code behind the task
//! vtables exchanges in the thread-local block.
//!
//! Every poll puts its task's id there and the former one back, so a word
//! that is exchanged below every vtable is the id, or is treated just like
//! it. Which of them it is, the running process tells
//! ([`crate::tokio_rt::acceptance`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use object::read::ReadRef;

use super::{Recipe, Segment, Source, WhyNot, access, slot};
use crate::{
    elf::Elf,
    tokio_rt::{task_code::TaskCode, vtable::Vtable},
};

/// Vtables that vote.
const MAX_VOTERS: usize = 40;
/// Calls from a vtable's function to the exchange.
const DEPTH: u32 = 3;
/// Bytes of a function that are read.
const MAX_BODY: usize = 32 << 10;
/// Recipes that are worth a trial.
const MAX_CANDIDATES: usize = 16;
/// Tokio's first version without a tag before the id.
const FIRST_WITHOUT_TAG: u32 = 40;

/// Recipes that the code allows, for a trial in the running process. `minor`
/// is Tokio's version, if it is known.
///
/// # Errors
/// When the thread-local segment is damaged or no word is exchanged.
pub fn candidates<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    code: &mut TaskCode<'_, '_, 'data, R>,
    vtables: &[Vtable],
    is_main_executable: bool,
    minor: Option<u32>,
) -> Result<Vec<Recipe>, WhyNot> {
    let segment = Segment::of(elf, is_main_executable)?;
    let range = 0..segment.size as i64;
    let mut known: HashMap<u64, BTreeSet<i64>> = HashMap::new();
    let mut votes: BTreeMap<i64, usize> = BTreeMap::new();
    let step = vtables.len().div_ceil(MAX_VOTERS).max(1);
    for vtable in vtables.iter().step_by(step) {
        let mut words = BTreeSet::new();
        for reached in code.reachable(&vtable.functions, DEPTH, false) {
            let exchanged = known.entry(reached.function).or_insert_with(|| {
                let body = code.code(reached.function);
                let body = body.get(..MAX_BODY).unwrap_or(body);
                let accesses = access::accesses(elf, &segment.addressing, body, reached.function);
                slot::exchanged_words(&accesses, &range)
            });
            words.extend(exchanged.iter().copied());
        }
        for word in words {
            *votes.entry(word).or_default() += 1;
        }
    }
    let most = votes.values().copied().max().unwrap_or(0);
    let elected: BTreeSet<i64> = votes
        .into_iter()
        .filter(|(_, count)| count * 10 >= most * 9)
        .map(|(word, _)| word)
        .collect();
    let recipe = |word: i64, has_tag| Recipe {
        block: segment.block,
        slot: word as u64,
        has_tag,
        source: Source::Trial,
    };
    let mut recipes = Vec::new();
    for word in &elected {
        if minor.is_none_or(|minor| minor >= FIRST_WITHOUT_TAG) {
            recipes.push(recipe(*word, false));
        }
        let tagged = elected.contains(&(word - 8));
        if tagged && minor.is_none_or(|minor| minor < FIRST_WITHOUT_TAG) {
            recipes.push(recipe(*word, true));
        }
    }
    recipes.truncate(MAX_CANDIDATES);
    if recipes.is_empty() {
        return Err(WhyNot::NotFound(minor.map(|minor| format!("1.{minor}"))));
    }
    Ok(recipes)
}
