//! Lets blocks go at random when there are too many; others stand for them.

use std::collections::{BTreeMap, HashMap};

use super::thinning::{fair_cap, threshold};
use super::{BlockId, StackId, SurveyBlock, Survivors, weighted};

impl Survivors {
    /// With which probability each block of a window is kept, so that no stack
    /// brings more than it has room for; 0 for the earlier one of two at the
    /// same address, whose free was missed.
    pub(super) fn shares(&mut self, survivors: &[SurveyBlock]) -> Vec<f64> {
        let latest = latest(survivors);
        let mut bytes_of: HashMap<StackId, Vec<f64>> = HashMap::new();
        for survivor in survivors {
            bytes_of
                .entry(survivor.block.stack)
                .or_default()
                .push(weighted(survivor).1);
        }
        let thresholds: HashMap<StackId, f64> = bytes_of
            .into_iter()
            .filter(|(_, bytes)| bytes.len() > Self::MAX_BLOCKS_PER_SITE)
            .filter_map(|(stack, bytes)| {
                Some((stack, threshold(&bytes, Self::MAX_BLOCKS_PER_SITE * 3 / 4)?))
            })
            .collect();
        let mut shares = Vec::with_capacity(survivors.len());
        for (at, survivor) in survivors.iter().enumerate() {
            let block = &survivor.block;
            if latest.get(&block.address) != Some(&at) {
                self.losses.duplicates += 1;
                shares.push(0.0);
                continue;
            }
            let threshold = thresholds.get(&block.stack);
            shares.push(threshold.map_or(1.0, |limit| (weighted(survivor).1 / limit).min(1.0)));
        }
        shares
    }

    pub(super) fn make_room(&mut self) {
        let counts: Vec<usize> = self.sites.values().map(|site| site.followed).collect();
        // Three quarters, so that not every window has to thin again.
        let cap = if self.followed.len() > Self::MAX_BLOCKS {
            fair_cap(&counts, Self::MAX_BLOCKS * 3 / 4)
        } else {
            usize::MAX
        };
        let crowded: Vec<StackId> = self
            .sites
            .iter()
            .filter(|(_, site)| site.followed > cap.min(Self::MAX_BLOCKS_PER_SITE))
            .map(|(stack, _)| *stack)
            .collect();
        if crowded.is_empty() {
            return;
        }
        let mut members: BTreeMap<StackId, BTreeMap<usize, Vec<(BlockId, f64)>>> = crowded
            .iter()
            .map(|stack| (*stack, BTreeMap::new()))
            .collect();
        for (id, followed) in &self.followed {
            if let Some(steps) = members.get_mut(&followed.block.block.stack) {
                let list = steps.entry(followed.step).or_default();
                list.push((*id, followed.bytes()));
            }
        }
        let keep = cap.min(Self::MAX_BLOCKS_PER_SITE * 3 / 4);
        // Each step keeps its part, so that the old, which stand for many,
        // do not crowd out the new, which tell whether the site still grows.
        for steps in members.values() {
            let counts: Vec<usize> = steps.values().map(Vec::len).collect();
            let each = fair_cap(&counts, keep);
            for list in steps.values() {
                self.thin(list, each);
            }
        }
    }

    /// Lets blocks go until about `keep` are left; these stand for them.
    fn thin(&mut self, list: &[(BlockId, f64)], keep: usize) {
        let all: Vec<f64> = list.iter().map(|(_, bytes)| *bytes).collect();
        let Some(threshold) = threshold(&all, keep) else {
            return;
        };
        for (id, bytes) in list {
            if *bytes >= threshold {
                continue;
            }
            let stays = *bytes / threshold;
            if self.random.unit() < stays {
                if let Some(followed) = self.followed.get_mut(id) {
                    followed.weight /= stays;
                }
            } else {
                self.take(*id);
                self.losses.thinned += 1;
            }
        }
    }
}

/// Where the latest block of each address stands in the list: of two at the
/// same address, the earlier one's free was missed.
fn latest(survivors: &[SurveyBlock]) -> HashMap<u64, usize> {
    let mut latest: HashMap<u64, usize> = HashMap::with_capacity(survivors.len());
    for (at, survivor) in survivors.iter().enumerate() {
        let kept = latest.entry(survivor.block.address).or_insert(at);
        if survivors
            .get(*kept)
            .is_some_and(|other| survivor.block.born > other.block.born)
        {
            *kept = at;
        }
    }
    latest
}

/// Four classes per doubling, as allocators have them.
pub(super) fn size_class(usable: u64) -> u32 {
    ((usable.max(1) as f64).log2() * 4.0).round() as u32
}
