//! What was found out about a file, remembered across runs by build id: to
//! read the code of a large program takes up to seconds.
//!
//! A build id is chosen by whoever builds the file, so it alone is believed by
//! nobody: the record is of one file of one size, inode and time of change,
//! which only the kernel sets. What is read back is held to the bounds that a
//! fresh analysis keeps to; a record that breaks one is ignored.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use serde::{Deserialize, Serialize};

use super::{
    await_point::AwaitPoints,
    cell::STAGE_WORDS,
    file::{self, Answers, Questions, TaskFile},
    future_name::FutureName,
    source_location::SourceLocation,
    tls::Recipe,
    vtable::{self, Vtable},
};
use crate::host::{
    cache::Cache,
    module::{Module, Stamp},
};

/// Counts up with every change of what the analysis finds or how it is kept.
const FORMAT: u32 = 2;
/// Bytes of a seal.
const SEAL: usize = 17;
/// Names of each kind that are kept.
const MAX_NAMES: usize = 1 << 14;
/// Pieces of data and recipes that are believed.
const MAX_PIECES: usize = 4096;
const MAX_RECIPES: usize = 64;
/// Longest build id, in hexadecimal digits.
const MAX_BUILD_ID: usize = 64;

/// What is remembered of one file in one role.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(PartialEq))]
pub struct Record {
    format: u32,
    /// Version of the program that made it.
    lingerscope: String,
    build_id: String,
    stamp: Stamp,
    is_main_executable: bool,
    found: Option<Found>,
    /// By the address of the vtable.
    names: BTreeMap<u64, FutureName>,
    /// By the address of a word that may be a trait object's vtable.
    objects: BTreeMap<u64, Option<FutureName>>,
    spawn_locations: BTreeMap<u64, Option<SourceLocation>>,
    /// By the address of the vtable, as far as there are any.
    await_points: BTreeMap<u64, AwaitPoints>,
}

/// The Tokio in a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(PartialEq))]
struct Found {
    vtables: Vec<Vtable>,
    version: Option<String>,
    recipes: Vec<Recipe>,
    data: Vec<Range<u64>>,
}

impl Record {
    /// Of a fresh analysis; `None` for files that are not remembered: those
    /// without a build id, and those whose recipe is missing.
    pub fn new(module: &Module, is_main_executable: bool, file: Option<&TaskFile>) -> Option<Self> {
        let found = match file {
            None => None,
            Some(file) => Some(Found {
                vtables: file.vtables.clone(),
                version: file.version.clone(),
                recipes: file.recipes.clone().ok()?,
                data: file.data.clone(),
            }),
        };
        Some(Self {
            format: FORMAT,
            lingerscope: env!("CARGO_PKG_VERSION").to_owned(),
            build_id: build_id(module)?.to_owned(),
            stamp: module.stamp()?,
            is_main_executable,
            found,
            names: BTreeMap::new(),
            objects: BTreeMap::new(),
            spawn_locations: BTreeMap::new(),
            await_points: BTreeMap::new(),
        })
    }

    /// What is remembered of a file.
    pub fn read(cache: &Cache, module: &Module, is_main_executable: bool) -> Option<Self> {
        let (build_id, stamp) = (build_id(module)?, module.stamp()?);
        let content = cache.read(&name(build_id, &stamp, is_main_executable))?;
        let record = Self::parse(&content).filter(|record| {
            record.build_id == build_id
                && record.stamp == stamp
                && record.is_main_executable == is_main_executable
        });
        if record.is_none() {
            cache.ignore();
        }
        record
    }

    /// Puts the record into the cache, if it fits.
    pub fn write(&self, cache: &Cache) {
        let name = name(&self.build_id, &self.stamp, self.is_main_executable);
        let written = self
            .content()
            .map_err(std::io::Error::from)
            .and_then(|content| cache.write(&name, &content));
        if let Err(error) = written {
            tracing::debug!(%error, "an analysis is not remembered");
        }
    }

    /// A checksum in hexadecimal digits, a line feed, JSON.
    fn content(&self) -> serde_json::Result<Vec<u8>> {
        let text = serde_json::to_vec(self)?;
        let mut content = seal(&text).into_bytes();
        content.extend(text);
        Ok(content)
    }

    /// Reads a record; `None` when it is damaged, of another version, or
    /// breaks a bound.
    pub fn parse(content: &[u8]) -> Option<Self> {
        let (found, text) = content.split_at_checked(SEAL)?;
        if found != seal(text).as_bytes() {
            return None;
        }
        let record: Self = serde_json::from_slice(text).ok()?;
        record.is_sound().then_some(record)
    }

    fn is_sound(&self) -> bool {
        let named = |name: &FutureName| name.is_bounded();
        let placed = |place: &SourceLocation| place.is_bounded();
        self.format == FORMAT
            && self.lingerscope == env!("CARGO_PKG_VERSION")
            && self.names.len() <= MAX_NAMES
            && self.objects.len() <= MAX_NAMES
            && self.spawn_locations.len() <= MAX_NAMES
            && self.names.values().all(named)
            && self.objects.values().flatten().all(named)
            && self.spawn_locations.values().flatten().all(placed)
            && self.await_points.len() <= MAX_NAMES
            && self.await_points.values().all(AwaitPoints::is_bounded)
            && self.found.as_ref().is_none_or(Found::is_sound)
    }

    /// The Tokio in the file.
    pub fn file(&self) -> Option<TaskFile> {
        let found = self.found.as_ref()?;
        Some(TaskFile {
            vtables: found.vtables.clone(),
            version: found.version.clone(),
            recipes: Ok(found.recipes.clone()),
            data: found.data.clone(),
        })
    }

    /// The answers, if all of them are known.
    pub fn answers(&self, questions: &Questions) -> Option<Answers> {
        let mut answers = Answers::default();
        for (index, vtable) in questions.vtables.iter().enumerate() {
            let name = self.names.get(&vtable.address)?;
            if file::may_be_boxed(name, vtable) {
                for object in boxed(questions, index) {
                    if let Some(name) = self.objects.get(&object)? {
                        answers.objects.insert(object, name.clone());
                    }
                }
            }
            answers.names.push(name.clone());
            if let Some(points) = self.await_points.get(&vtable.address) {
                answers.await_points.insert(vtable.address, points.clone());
            }
        }
        for address in &questions.spawn_locations {
            if let Some(location) = self.spawn_locations.get(address)? {
                answers.spawn_locations.insert(*address, location.clone());
            }
        }
        Some(answers)
    }

    /// Remembers answers.
    pub fn learn(&mut self, questions: &Questions, answers: &Answers) {
        for (index, (vtable, name)) in questions.vtables.iter().zip(&answers.names).enumerate() {
            if file::may_be_boxed(name, vtable) {
                for object in boxed(questions, index) {
                    let name = answers.objects.get(&object).cloned();
                    insert(&mut self.objects, object, name);
                }
            }
            insert(&mut self.names, vtable.address, name.clone());
            if let Some(points) = answers.await_points.get(&vtable.address) {
                insert(&mut self.await_points, vtable.address, points.clone());
            }
        }
        for address in &questions.spawn_locations {
            let location = answers.spawn_locations.get(address).cloned();
            insert(&mut self.spawn_locations, *address, location);
        }
    }
}

impl Found {
    fn is_sound(&self) -> bool {
        let version = self.version.as_ref();
        self.vtables.len() <= vtable::MAX_VTABLES
            && self.vtables.iter().all(Vtable::is_sound)
            && self.recipes.len() <= MAX_RECIPES
            && self.data.len() <= MAX_PIECES
            && version.is_none_or(|version| version.len() <= 32)
    }
}

fn insert<T>(known: &mut BTreeMap<u64, T>, address: u64, what: T) {
    if known.len() < MAX_NAMES || known.contains_key(&address) {
        known.insert(address, what);
    }
}

/// Words of a vtable's futures that may be trait objects' vtables.
fn boxed(questions: &Questions, vtable: usize) -> BTreeSet<u64> {
    let stages = questions.stages.get(vtable).into_iter().flatten();
    let words = |stage: &[u64; STAGE_WORDS]| file::objects(stage);
    stages.flat_map(words).collect()
}

fn build_id(module: &Module) -> Option<&str> {
    let id = module.build_id.as_deref()?;
    (1..=MAX_BUILD_ID).contains(&id.len()).then_some(id)
}

fn name(build_id: &str, stamp: &Stamp, is_main_executable: bool) -> String {
    let role = if is_main_executable {
        "program"
    } else {
        "library"
    };
    let state = format!("{stamp:?}");
    format!("{build_id}-{:016x}-{role}", checksum(state.as_bytes()))
}

/// The line before the JSON of a record: its checksum. There is no other way
/// to write it.
fn seal(text: &[u8]) -> String {
    format!("{:016x}\n", checksum(text))
}

/// FNV-1a: tells damage, not malice; nobody else can write the cache.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokio_rt::{
        await_point::SourceLine,
        future_name::Kind,
        tls::{Block, Source},
    };
    use proptest::prelude::*;

    fn vtable(address: u64) -> Vtable {
        Vtable {
            address,
            functions: [0x1000; 7],
            trailer: 72,
            scheduler: 32,
            id: 40,
            spawn_location: None,
        }
    }

    fn record() -> Record {
        Record {
            format: FORMAT,
            lingerscope: env!("CARGO_PKG_VERSION").to_owned(),
            build_id: "abcd".to_owned(),
            stamp: Stamp::default(),
            is_main_executable: true,
            found: Some(Found {
                vtables: vec![vtable(0x5000)],
                version: Some("1.54.1".to_owned()),
                recipes: vec![Recipe {
                    block: Block::BelowThreadPointer(64),
                    slot: 48,
                    has_tag: false,
                    source: Source::Guard,
                }],
                data: std::iter::once(0x4000..0x6000).collect(),
            }),
            names: BTreeMap::new(),
            objects: BTreeMap::new(),
            spawn_locations: BTreeMap::new(),
            await_points: BTreeMap::new(),
        }
    }

    #[test]
    fn answers_come_back_when_all_are_known() {
        let name = |short: &str| FutureName {
            short: Some(short.to_owned()),
            full: Some(format!("Pin<Box<dyn {short}>>")),
            kind: Kind::Blocking,
            ..FutureName::default()
        };
        let questions = Questions {
            all: vec![vtable(0x5000)],
            vtables: vec![vtable(0x5000)],
            stages: vec![BTreeSet::from([[1, 0x4100, 0], [1, 0x4200, 0]])],
            spawn_locations: BTreeSet::from([0x4300]),
        };
        let answers = Answers {
            names: vec![name("outer")],
            objects: BTreeMap::from([(0x4100, name("inner"))]),
            spawn_locations: BTreeMap::new(),
            await_points: BTreeMap::from([(
                0x5000,
                AwaitPoints {
                    offset: 48,
                    size: 1,
                    points: BTreeMap::from([(
                        3,
                        SourceLine {
                            file: "src/main.rs".to_owned(),
                            line: 7,
                        },
                    )]),
                },
            )]),
        };
        let mut record = record();
        assert!(record.answers(&questions).is_none());
        record.learn(&questions, &answers);
        let content = record.content().unwrap();
        let again = Record::parse(&content).unwrap();
        assert_eq!(again, record);
        let told = again.answers(&questions).unwrap();
        assert_eq!(told.names, answers.names);
        assert_eq!(told.objects, answers.objects);
        assert_eq!(told.await_points, answers.await_points);
        let mut more = questions.clone();
        if let Some(stages) = more.stages.first_mut() {
            stages.insert([1, 0x4400, 0]);
        }
        assert!(again.answers(&more).is_none(), "an object that is new");
    }

    #[test]
    fn what_breaks_a_bound_is_ignored() {
        let damage: [fn(&mut Record); 4] = [
            |record| record.format += 1,
            |record| record.lingerscope.push('0'),
            |record| {
                let found = record.found.as_mut().unwrap();
                found.vtables.push(Vtable {
                    id: 1 << 40,
                    ..vtable(1)
                });
            },
            |record| {
                let long = FutureName {
                    short: Some("x".repeat(1 << 20)),
                    ..FutureName::default()
                };
                record.names.insert(1, long);
            },
        ];
        assert!(Record::parse(&record().content().unwrap()).is_some());
        for damage in damage {
            let mut record = record();
            damage(&mut record);
            assert!(Record::parse(&record.content().unwrap()).is_none());
        }
    }

    proptest! {
        #[test]
        fn damaged_records_are_ignored(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()) {
            let content = record().content().unwrap();
            let mut damaged = content.clone();
            damaged[at.index(content.len())] ^= 1 << bit;
            prop_assert!(Record::parse(&damaged).is_none());
            prop_assert!(Record::parse(&content[..cut.index(content.len())]).is_none());
        }

        #[test]
        fn arbitrary_content_is_no_trouble(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::parse(&text);
            let mut content = seal(&text).into_bytes();
            content.extend(&text);
            prop_assert!(Record::parse(&content).is_none());
        }
    }
}
