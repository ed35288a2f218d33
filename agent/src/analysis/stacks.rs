//! A second look at sites that consist of several stacks: what leaks may come
//! from one line of a function, and what is released from the next.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    finding::Estimate,
    ledger::{Group, Ledger, StackId},
};

use super::{
    Settings,
    growth::{Growth, Steady, growth},
    process::Process,
};

/// Stacks that are looked at one by one.
const MAX_STACKS: usize = 256;

/// Judges the single stacks of every site that was not found to grow by
/// blocks that stay, and takes the growth of those that were. Slowing growth
/// remains what it is: one stack of a cache that fills may look steady.
pub(super) fn sharpen<K>(
    ledger: &Ledger,
    sites: &mut [(K, Group, Growth)],
    process: &Process,
    settings: &Settings,
) {
    let unclear = |group: &Group, growth: &Growth| {
        group.stacks.len() > 1
            && match growth {
                Growth::Steady(steady) => steady.age.is_none(),
                Growth::Slowing { .. } => false,
                Growth::None | Growth::Ceased { .. } | Growth::Level | Growth::Sawtooth { .. } => {
                    true
                }
            }
    };
    let wanted: BTreeSet<StackId> = sites
        .iter()
        .filter(|(_, group, growth)| unclear(group, growth))
        // those with most live bytes come first
        .flat_map(|(_, group, _)| group.stacks.iter().take(16))
        .copied()
        .take(MAX_STACKS)
        .collect();
    if wanted.is_empty() {
        return;
    }
    let mut steady: BTreeMap<StackId, Steady> = BTreeMap::new();
    for (stack, group) in ledger.groups(|stack| wanted.contains(&stack).then_some(stack)) {
        let (Some(stack), Growth::Steady(found)) = (stack, growth(&group, process, settings))
        else {
            continue;
        };
        // Twice as many as otherwise, because several stacks had the chance.
        if found.age.is_some() && found.members >= 2 * settings.least_members as usize {
            steady.insert(stack, found);
        }
    }
    for (_, group, growth) in sites
        .iter_mut()
        .filter(|(_, group, growth)| unclear(group, growth))
    {
        let found = group
            .stacks
            .iter()
            .filter_map(|stack| steady.get(stack))
            .cloned()
            .reduce(|a, b| sum(&a, &b));
        if let Some(found) = found {
            *growth = Growth::Steady(found);
        }
    }
}

/// Both together.
fn sum(a: &Steady, b: &Steady) -> Steady {
    Steady {
        rate: Estimate {
            value: a.rate.value + b.rate.value,
            low: a.rate.low + b.rate.low,
            high: a.rate.high + b.rate.high,
        },
        blocks: a.blocks + b.blocks,
        blocks_low: a.blocks_low + b.blocks_low,
        members: a.members + b.members,
        growing: a.growing.max(b.growing),
        ratio: a.ratio.min(b.ratio),
        age: a.age.zip(b.age).map(|(a, b)| a.max(b)),
    }
}
