//! What one file tells of the Tokio in it: its task vtables, how to read the
//! current task's id, and the names of its futures.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use object::read::ReadRef;
use serde::{Deserialize, Serialize};

use super::{
    await_point::{self, AwaitPoints},
    cell::STAGE_WORDS,
    future_name::{self, FutureName, Namer},
    source_location::SourceLocation,
    task_code::TaskCode,
    tls::{self, Recipe, WhyNot},
    vtable::{self, Vtable},
};
use crate::elf::{Elf, functions::Functions, image::Image};

/// Different beginnings of one type's futures that are looked at.
pub const MAX_STAGES: usize = 256;
/// Types of futures of one file that are named.
const MAX_NAMED: usize = 1 << 14;
/// Boxed futures of one file that are named.
const MAX_OBJECTS: usize = 4096;
/// Places that tasks of one file were spawned at.
const MAX_SPAWN_LOCATIONS: usize = 4096;

/// The Tokio in one file. Addresses are as linked.
#[derive(Clone, Debug)]
pub struct TaskFile {
    /// Possible vtables; those in the wrong order of words have no cells.
    pub vtables: Vec<Vtable>,
    /// Tokio's version, if source paths in the file tell it.
    pub version: Option<String>,
    /// Recipes for the current task's id, which a trial must confirm.
    pub recipes: Result<Vec<Recipe>, WhyNot>,
    /// Where constants are.
    pub data: Vec<Range<u64>>,
}

/// Looks for Tokio in a file; `None` where there is none.
///
/// # Errors
/// When the file is too large to be read.
pub fn analyse<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    is_main_executable: bool,
) -> Result<Option<TaskFile>, &'static str> {
    let image = Image::of(elf).ok_or("it has too much data or too many relocations")?;
    let vtables = vtable::find(&image.code_pointers(), |place| image.number(place));
    let version = tls::tokio_version(elf);
    if vtables.is_empty() {
        // Without a version in it there is no sign of Tokio at all.
        return Ok(version.map(|version| TaskFile {
            vtables,
            version: Some(version),
            recipes: Ok(Vec::new()),
            data: image.data_spans().to_vec(),
        }));
    }
    let recipes = if let Ok(recipe) = tls::recipe(elf, is_main_executable) {
        Ok(vec![recipe])
    } else {
        let functions = Functions::of(elf);
        let mut code = TaskCode::new(&image, &functions);
        let minor = version.as_deref().and_then(tls::minor);
        tls::candidates(elf, &mut code, &vtables, is_main_executable, minor)
    };
    Ok(Some(TaskFile {
        vtables,
        version,
        recipes,
        data: image.data_spans().to_vec(),
    }))
}

/// What is asked of a file once it is known which vtables are in use.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Questions {
    /// All vtables of the file.
    pub all: Vec<Vtable>,
    /// Vtables with cells.
    pub vtables: Vec<Vtable>,
    /// First words of their futures, by vtable; words that point into the
    /// file are as linked, others are 0.
    pub stages: Vec<BTreeSet<[u64; STAGE_WORDS]>>,
    /// Locations that tasks were spawned at.
    pub spawn_locations: BTreeSet<u64>,
}

/// The answers.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// By vtable, in the order of the questions.
    pub names: Vec<FutureName>,
    /// Boxed futures by the address of their trait object's vtable.
    pub objects: BTreeMap<u64, FutureName>,
    /// By address.
    pub spawn_locations: BTreeMap<u64, SourceLocation>,
    /// Where futures may be suspended, by the addresses of their vtables; with
    /// debug information.
    pub await_points: BTreeMap<u64, AwaitPoints>,
}

/// Names futures.
pub fn name<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, questions: &Questions) -> Answers {
    let mut answers = Answers {
        await_points: await_point::find(elf, &questions.vtables, &questions.all),
        ..Answers::default()
    };
    let Some(image) = Image::of(elf) else {
        answers
            .names
            .resize(questions.vtables.len(), FutureName::default());
        return answers;
    };
    let functions = Functions::of(elf);
    let mut code = TaskCode::new(&image, &functions);
    let mut namer = Namer::new(&mut code, &questions.all);
    for (index, vtable) in questions.vtables.iter().take(MAX_NAMED).enumerate() {
        let name = namer.name(&mut code, vtable);
        let stages = questions.stages.get(index).into_iter().flatten();
        if may_be_boxed(&name, vtable) {
            for object in stages.flat_map(objects) {
                if answers.objects.len() < MAX_OBJECTS
                    && !answers.objects.contains_key(&object)
                    && let Some(name) = future_name::of_trait_object(&mut code, object)
                {
                    answers.objects.insert(object, name);
                }
            }
        }
        answers.names.push(name);
    }
    answers
        .names
        .resize(questions.vtables.len(), FutureName::default());
    for address in questions.spawn_locations.iter().take(MAX_SPAWN_LOCATIONS) {
        if let Some(location) = SourceLocation::at(&image, *address) {
            answers.spawn_locations.insert(*address, location);
        }
    }
    answers
}

/// Whether the future may be a boxed trait object: its type says so, or it
/// has no type, no location and little more than the room for a box.
pub fn may_be_boxed(name: &FutureName, vtable: &Vtable) -> bool {
    let room = vtable.trailer.saturating_sub(vtable.stage());
    match name.full {
        Some(_) => name.is_boxed(),
        None => name.location.is_none() && room <= 8 * (STAGE_WORDS as u64 + 2),
    }
}

/// Words of a stage that may be a trait object's vtable: a box is a pointer
/// to the value and one to the vtable, at the start or behind a tag.
pub fn objects(stage: &[u64; STAGE_WORDS]) -> impl Iterator<Item = u64> + use<> {
    let [_, second, third] = *stage;
    [second, third].into_iter().filter(|word| *word != 0)
}
