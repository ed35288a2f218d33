//! The types of a file's tasks, all that the file tells of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    ALIGN, FIRST_WITH_HOOKS, FutureType, Table, Task, modules::OpenModule, suspension::Suspensions,
};
use crate::{
    host::{cache::Cache, heap::Heap},
    tokio_rt::{
        file::{self, Answers, Questions},
        future_name::{FutureName, Kind},
        sighting::Sighting,
        vtable::Vtable,
    },
};

/// A module's own cells.
#[derive(Clone, Copy)]
pub(super) struct Own<'a> {
    pub(super) heap: &'a Heap,
    pub(super) module: &'a OpenModule,
    /// Its cells are aligned as those of later versions are.
    pub(super) aligned: bool,
    pub(super) cells: &'a [&'a Sighting],
}

/// Adds the types and tasks of the module that was added last. `running` tells
/// which thread polls which task.
pub(super) fn add_tasks(
    table: &mut Table,
    own: &Own<'_>,
    running: &BTreeMap<u32, u64>,
    cache: Option<&Cache>,
) {
    let Own {
        heap,
        module,
        aligned,
        cells,
    } = *own;
    let polled_by: HashMap<u64, u32> = running
        .iter()
        .map(|(thread, task)| (*task, *thread))
        .collect();
    let (questions, order) = questions(module, cells);
    let answers = module.name(cache, &questions);
    let shown = table.modules.len().saturating_sub(1);
    let mut suspensions = Suspensions::of(&questions, &answers);
    let mut kinds: BTreeMap<(usize, Option<u64>), usize> = BTreeMap::new();
    for seen in cells {
        let Some(place) = order.get(&seen.vtable.vtable).copied() else {
            continue;
        };
        let object = object(module, &answers, place, &questions, seen);
        let kind = *kinds.entry((place, object)).or_insert_with(|| {
            let mut kind = future_type(
                (shown, aligned, module),
                &questions,
                &answers,
                (place, object),
            );
            // A future is in its owner's list from the moment it is spawned;
            // work of the blocking pool never is.
            if kind.name.is_unknown() && seen.cell.owner == 0 {
                kind.name.kind = Kind::Blocking;
            }
            table.types.push(kind);
            table.types.len() - 1
        });
        let spawned_at = seen.cell.spawn_location.and_then(|address| {
            let linked = address.wrapping_sub(module.bias);
            answers.spawn_locations.get(&linked).cloned()
        });
        table.tasks.push(Task {
            kind,
            id: seen.cell.id,
            state: seen.cell.state,
            owner: seen.cell.owner,
            address: seen.address,
            print: seen.cell.print,
            thread: polled_by.get(&seen.cell.id).copied(),
            spawned_at,
            waits_at: suspensions.at(heap, place, seen),
        });
    }
}

/// What to ask the file, and where in the questions each vtable is.
fn questions(module: &OpenModule, cells: &[&Sighting]) -> (Questions, HashMap<usize, usize>) {
    let mut questions = Questions {
        all: module.file.vtables.clone(),
        ..Questions::default()
    };
    let mut order: HashMap<usize, usize> = HashMap::new();
    let used: BTreeSet<usize> = cells.iter().map(|seen| seen.vtable.vtable).collect();
    for index in used {
        if let Some(vtable) = module.file.vtables.get(index) {
            order.insert(index, questions.vtables.len());
            questions.vtables.push(vtable.clone());
            questions.stages.push(BTreeSet::new());
        }
    }
    for seen in cells {
        let place = order.get(&seen.vtable.vtable);
        let stages = place.and_then(|place| questions.stages.get_mut(*place));
        if let Some(stages) = stages.filter(|stages| stages.len() < file::MAX_STAGES) {
            stages.insert(module.linked(seen));
        }
        let spawned = seen.cell.spawn_location;
        questions
            .spawn_locations
            .extend(spawned.map(|address| address.wrapping_sub(module.bias)));
    }
    (questions, order)
}

/// The trait object that a cell holds, if its future is a boxed one with a
/// name.
fn object(
    module: &OpenModule,
    answers: &Answers,
    place: usize,
    questions: &Questions,
    seen: &Sighting,
) -> Option<u64> {
    let (name, vtable) = (answers.names.get(place)?, questions.vtables.get(place)?);
    if !file::may_be_boxed(name, vtable) || seen.cell.state.is_complete() {
        return None;
    }
    file::objects(&module.linked(seen)).find(|object| answers.objects.contains_key(object))
}

fn future_type(
    (shown, aligned, module): (usize, bool, &OpenModule),
    questions: &Questions,
    answers: &Answers,
    (place, object): (usize, Option<u64>),
) -> FutureType {
    let name = answers.names.get(place).cloned().unwrap_or_default();
    let boxed = object.and_then(|object| answers.objects.get(&object).cloned());
    FutureType {
        name,
        boxed,
        ..unnamed(
            (shown, aligned, module),
            questions.vtables.get(place),
            object,
        )
    }
}

/// A type of which only the layout is known.
pub(super) fn unnamed(
    (shown, aligned, module): (usize, bool, &OpenModule),
    vtable: Option<&Vtable>,
    object: Option<u64>,
) -> FutureType {
    let address = |linked: u64| module.bias.wrapping_add(linked);
    FutureType {
        module: shown,
        name: FutureName::default(),
        boxed: None,
        cell_bytes: vtable.map_or(0, |vtable| cell_bytes(vtable, module.minor(), aligned)),
        future_bytes: vtable.map_or(0, |vtable| vtable.trailer.saturating_sub(vtable.stage())),
        key: (
            vtable.map_or(0, |vtable| address(vtable.address)),
            object.map(address),
        ),
    }
}

/// Bytes of a cell.
fn cell_bytes(vtable: &Vtable, minor: Option<u32>, aligned: bool) -> u64 {
    let trailer = if minor.is_none_or(|minor| minor >= FIRST_WITH_HOOKS) {
        48
    } else {
        32
    };
    let align = if aligned { ALIGN } else { 8 };
    (vtable.trailer + trailer).next_multiple_of(align)
}
