//! Which blocks of a site stayed: the plateau of its survivor curve.

use std::time::Duration;

use crate::ledger::{Ages, Group, Survivor};

use super::estimate::Sum;

/// Share of the blocks of some age that may still be freed later for that age
/// to count as the plateau.
const MAY_FALL: f64 = 0.05;

/// The blocks that outlived the age after which hardly any is freed.
#[derive(Clone, Debug)]
pub(super) struct Plateau {
    /// That age, in seconds.
    pub(super) age: f64,
    /// Births that are judged: from the first observation to this time. What
    /// was born later is too young.
    pub(super) until: f64,
    /// Each block that stayed.
    pub(super) births: Vec<Birth>,
    /// Their bytes.
    pub(super) bytes: Sum,
    /// Their number.
    pub(super) blocks: Sum,
    /// Bytes of lone giants, which are in none of the above: the table of a
    /// map or the buffer of a vector, which grows by moving, is no member.
    pub(super) giants: f64,
    /// The largest of the others.
    pub(super) largest: f64,
}

/// A sampled block that stayed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Birth {
    /// Seconds.
    pub(super) at: f64,
    /// Bytes it stands for.
    pub(super) bytes: f64,
    /// Blocks it stands for.
    pub(super) blocks: f64,
}

/// Finds the plateau of a site observed from `start` to `end`, in seconds.
/// Only births up to `before` count as evidence. None when blocks of half the
/// run's length are still being freed: then nobody can tell who stays.
pub(super) fn plateau(group: &Group, start: f64, end: f64, before: f64) -> Option<Plateau> {
    let older_than = |age: f64| {
        group
            .survivors
            .partition_point(|survivor| seconds(survivor) <= end - age)
    };
    let half = (end - start) / 2.0;
    let settled = |age: f64| {
        // Short lives are counted by the totals only.
        let deaths = if age <= 0.0 {
            group.freed.max(group.deaths.total())
        } else {
            group.deaths.since(Duration::from_secs_f64(age))
        };
        deaths as f64 <= MAY_FALL * (deaths as f64 + older_than(age) as f64)
    };
    let age = Ages::starts()
        .take_while(|age| *age <= half)
        .find(|age| settled(*age))?;
    let until = before.min(end - age);
    let stayed: Vec<&Survivor> = group
        .survivors
        .iter()
        .filter(|survivor| (start..=until).contains(&seconds(survivor)))
        .collect();
    let giant = giant_size(&stayed);
    let mut plateau = Plateau {
        age,
        until,
        births: Vec::with_capacity(stayed.len()),
        bytes: Sum::default(),
        blocks: Sum::default(),
        giants: 0.0,
        largest: 0.0,
    };
    for survivor in stayed {
        let size = survivor.size as f64;
        if survivor.size >= giant {
            plateau.giants += size * survivor.weight;
            continue;
        }
        plateau.births.push(Birth {
            at: seconds(survivor),
            bytes: size * survivor.weight,
            blocks: survivor.weight,
        });
        plateau.bytes.add(size, survivor.weight);
        plateau.blocks.add(1.0, survivor.weight);
        plateau.largest = plateau.largest.max(size);
    }
    Some(plateau)
}

/// The size from which a block is a lone giant: 32 times the median, if at
/// most two blocks or one in twenty are so large.
fn giant_size(blocks: &[&Survivor]) -> u64 {
    let mut sizes: Vec<u64> = blocks.iter().map(|block| block.size).collect();
    sizes.sort_unstable();
    let giant = sizes
        .get(sizes.len() / 2)
        .copied()
        .unwrap_or(0)
        .max(1)
        .saturating_mul(32);
    let giants = sizes.len() - sizes.partition_point(|size| *size < giant);
    if giants <= (sizes.len() / 20).max(2) {
        giant
    } else {
        u64::MAX
    }
}

impl Plateau {
    /// Whether births of blocks that stay have ceased: the time since the
    /// last one is far longer than their rate and their gaps explain.
    pub(super) fn has_ceased(&self, start: f64) -> bool {
        let Some(Birth { at: last, .. }) = self.births.last() else {
            return true;
        };
        let since = self.until - last;
        let before = last - start;
        let widest = self
            .births
            .windows(2)
            .filter_map(|pair| Some(pair.get(1)?.at - pair.first()?.at))
            .fold(0.0, f64::max);
        // e^-6: one steady leak in four hundred
        let expected = self.births.len() as f64 / before.max(1e-3) * since;
        expected > 6.0 && since > 0.12 * (self.until - start) && since > 3.0 * widest
    }
}

pub(super) fn seconds(survivor: &Survivor) -> f64 {
    survivor.born.as_secs_f64()
}
