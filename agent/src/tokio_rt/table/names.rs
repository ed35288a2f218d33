//! Names of one file's futures, asked for once and kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{
    FutureType, Table, Task,
    modules::OpenModule,
    types::{Own, unnamed},
};
use crate::host::cache::Cache;
use crate::tokio_rt::{
    file::{self, Questions},
    future_name::{FutureName, Kind},
    sighting::Sighting,
};

/// Boxed futures of a file that are asked about.
const MAX_ASKED: usize = 1 << 14;

/// What is known of one file's futures. Addresses are as linked.
#[derive(Default)]
pub(super) struct Names {
    /// By the vtable's index in the file.
    futures: HashMap<usize, FutureName>,
    /// Boxed futures by the address of their trait object's vtable.
    objects: BTreeMap<u64, FutureName>,
    asked: HashSet<u64>,
}

impl Names {
    /// Adds the types and tasks of the module that was added last.
    pub(super) fn add_tasks(&mut self, table: &mut Table, own: &Own<'_>, cache: Option<&Cache>) {
        let module = own.module;
        self.learn(module, own.cells, cache);
        let shown = table.modules.len().saturating_sub(1);
        let mut kinds: BTreeMap<(usize, Option<u64>), usize> = BTreeMap::new();
        for seen in own.cells {
            let (index, object) = (seen.vtable.vtable, self.object(module, seen));
            let kind = *kinds.entry((index, object)).or_insert_with(|| {
                let vtable = module.file.vtables.get(index);
                let mut kind = FutureType {
                    name: self.futures.get(&index).cloned().unwrap_or_default(),
                    boxed: object.and_then(|object| self.objects.get(&object).cloned()),
                    ..unnamed((shown, own.aligned, module), vtable, object)
                };
                // A future is in its owner's list from the moment it is
                // spawned; work of the blocking pool never is.
                if kind.name.is_unknown() && seen.cell.owner == 0 {
                    kind.name.kind = Kind::Blocking;
                }
                table.types.push(kind);
                table.types.len() - 1
            });
            table.tasks.push(Task {
                kind,
                id: seen.cell.id,
                state: seen.cell.state,
                owner: seen.cell.owner,
                address: seen.address,
                print: seen.cell.print,
                thread: None,
                spawned_at: None,
                waits_at: None,
            });
        }
    }

    /// Asks the file about what is new in these cells.
    fn learn(&mut self, module: &OpenModule, cells: &[&Sighting], cache: Option<&Cache>) {
        let mut stages = BTreeMap::new();
        for seen in cells {
            let index = seen.vtable.vtable;
            let linked = module.linked(seen);
            if self.futures.contains_key(&index) && !self.has_news(module, index, &linked) {
                continue;
            }
            let asked: &mut BTreeSet<_> = stages.entry(index).or_default();
            if asked.len() < file::MAX_STAGES {
                asked.insert(linked);
            }
        }
        if self.asked.len() >= MAX_ASKED || stages.is_empty() {
            return;
        }
        let mut questions = Questions {
            all: module.file.vtables.clone(),
            ..Questions::default()
        };
        let mut order = Vec::new();
        for (index, stages) in stages {
            if let Some(vtable) = module.file.vtables.get(index) {
                self.asked.extend(stages.iter().flat_map(file::objects));
                questions.vtables.push(vtable.clone());
                questions.stages.push(stages);
                order.push(index);
            }
        }
        let answers = module.name(cache, &questions);
        self.futures.extend(order.into_iter().zip(answers.names));
        self.objects.extend(answers.objects);
    }

    /// Whether a boxed future is met that was not asked about.
    fn has_news(
        &self,
        module: &OpenModule,
        index: usize,
        stage: &[u64; super::cell::STAGE_WORDS],
    ) -> bool {
        let known = self.futures.get(&index).zip(module.file.vtables.get(index));
        known.is_some_and(|(name, vtable)| file::may_be_boxed(name, vtable))
            && file::objects(stage).any(|object| !self.asked.contains(&object))
    }

    /// The trait object that a cell holds, if its future is a boxed one with
    /// a name.
    fn object(&self, module: &OpenModule, seen: &Sighting) -> Option<u64> {
        let index = seen.vtable.vtable;
        let (name, vtable) = (self.futures.get(&index)?, module.file.vtables.get(index)?);
        if !file::may_be_boxed(name, vtable) || seen.cell.state.is_complete() {
            return None;
        }
        file::objects(&module.linked(seen)).find(|object| self.objects.contains_key(object))
    }
}
