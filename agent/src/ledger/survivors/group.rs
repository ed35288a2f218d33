//! The survivors of one group of stacks: one allocation site as people see
//! it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{Followed, STEPS, StackId, Survivors, WindowAccount};
use crate::ledger::{LiveBlock, TaskShare, group::by_bytes};

/// A block that is still followed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// When it was allocated.
    pub born: Duration,
    /// Requested size in bytes.
    pub size: u64,
    /// Bytes that the allocator gave.
    pub usable: u64,
    /// Blocks it stands for.
    pub weight: f64,
    /// Step at which it was last known to live.
    pub step: usize,
    /// Index of its window.
    pub window: usize,
}

/// The account of one group of stacks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SurveyGroup {
    /// Its stacks, those with most surviving bytes first.
    pub stacks: Vec<StackId>,
    /// Its survivors by window, as [`Survivors::windows`] lists them.
    pub windows: Vec<WindowAccount>,
    /// Blocks that are still followed, in the order of their births.
    pub kept: Vec<Kept>,
    /// Sampled blocks.
    pub sampled: u64,
    /// Those of them that were freed within their window.
    pub freed: u64,
    /// Longest life of a block that is no more; where its end was found by
    /// reading, the longest that is possible.
    pub longest_ended: Duration,
    /// Who allocated what still lives, most bytes first, at most
    /// [`crate::ledger::Group::MAX_TASKS`]; the rest is in `other_tasks`.
    pub tasks: Vec<TaskShare>,
    /// What further tasks hold together.
    pub other_tasks: Option<TaskShare>,
}

#[derive(Default)]
struct Building {
    group: SurveyGroup,
    stacks: HashMap<StackId, f64>,
    tasks: HashMap<Option<u64>, (f64, f64)>,
}

impl Building {
    fn keep(&mut self, followed: &Followed) {
        let block = &followed.block.block;
        self.group.kept.push(Kept {
            born: block.born,
            size: block.size,
            usable: followed.block.usable,
            weight: followed.weight,
            step: followed.step,
            window: followed.window,
        });
        if followed.step > 0 {
            let task = self.tasks.entry(block.task).or_insert((0.0, 0.0));
            task.0 += followed.weight;
            task.1 += followed.bytes();
        }
    }

    fn close(self) -> SurveyGroup {
        let mut group = self.group;
        let died: Vec<f64> = (0..STEPS)
            .map(|step| group.windows.iter().map(|w| w.step(step).died).sum())
            .collect();
        for window in &mut group.windows {
            window.place(&died);
        }
        group.kept.sort_by_key(|kept| kept.born);
        group.stacks = by_bytes(self.stacks.into_iter());
        (group.tasks, group.other_tasks) = TaskShare::ranked(self.tasks.into_iter());
        group
    }
}

impl Survivors {
    /// The blocks that are still followed, each with the number of blocks it
    /// stands for.
    pub fn blocks(&self) -> impl Iterator<Item = (&LiveBlock, f64)> {
        self.followed
            .values()
            .map(|followed| (&followed.block.block, followed.weight))
    }

    /// The account per group of stacks. `group_of` names the group of a
    /// stack; stacks with equal names are added up.
    pub fn groups<K: Ord>(&self, group_of: impl Fn(StackId) -> K) -> BTreeMap<K, SurveyGroup> {
        let mut groups: BTreeMap<K, Building> = BTreeMap::new();
        for (stack, totals) in &self.totals {
            let building = groups.entry(group_of(*stack)).or_default();
            building.stacks.entry(*stack).or_insert(0.0);
            let group = &mut building.group;
            group.sampled = group.sampled.saturating_add(totals.sampled);
            group.freed = group.freed.saturating_add(totals.freed);
            group.longest_ended = group.longest_ended.max(totals.longest_ended);
        }
        for (stack, site) in &self.sites {
            let building = groups.entry(group_of(*stack)).or_default();
            let born: f64 = site.windows.values().map(|window| window.born.bytes).sum();
            *building.stacks.entry(*stack).or_insert(0.0) += born;
            building
                .group
                .windows
                .resize(self.windows.len(), WindowAccount::default());
            for (index, account) in &site.windows {
                if let Some(window) = building.group.windows.get_mut(*index) {
                    window.merge(account);
                }
            }
        }
        for followed in self.followed.values() {
            groups
                .entry(group_of(followed.block.block.stack))
                .or_default()
                .keep(followed);
        }
        groups
            .into_iter()
            .map(|(key, building)| (key, building.close()))
            .collect()
    }
}
