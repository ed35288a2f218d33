//! The ledger against a small model of a process and of the kernel's books.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;

/// What happens in a process, or fails to be recorded.
#[derive(Clone, Debug)]
enum Event {
    Alloc {
        stack: u64,
        size: u64,
        task: Option<u64>,
    },
    /// Nothing is recorded of it.
    LostAlloc {
        size: u64,
    },
    /// Frees some live block.
    Free {
        pick: usize,
    },
    /// Likewise, unseen.
    LostFree {
        pick: usize,
    },
    /// Time passes, and somebody looks.
    Tick {
        millis: u64,
    },
    Exec,
}

fn event(losses: bool) -> impl Strategy<Value = Event> {
    let rare = u32::from(losses);
    prop_oneof![
        8 => (0..4u64, prop_oneof![Just(0u64), 1..200u64, 1..1_000_000u64], proptest::option::of(0..3u64)).prop_map(|(stack, size, task)| Event::Alloc { stack, size, task }),
        6 => any::<usize>().prop_map(|pick| Event::Free { pick }),
        3 => (1..5000u64).prop_map(|millis| Event::Tick { millis }),
        rare => (0..4u64, 1..200u64).prop_map(|(_, size)| Event::LostAlloc { size }),
        rare => any::<usize>().prop_map(|pick| Event::LostFree { pick }),
        rare => Just(Event::Exec),
    ]
}

/// A process, and what the kernel's maps say about it.
#[derive(Default)]
struct Model {
    now: Duration,
    /// Address, size and whether it was recorded, of what is truly live.
    truth: Vec<(u64, u64, u64)>,
    books: HashMap<u64, LiveBlock>,
    totals: BTreeMap<u64, SiteTotals>,
    vanished: u64,
    ledger: Ledger,
}

const UNRECORDED: u64 = u64::MAX;

impl Model {
    /// The lowest address that is free: addresses come back soon.
    fn address(&self) -> u64 {
        (0..100_000)
            .map(|slot| 0x1000 + slot * 16)
            .find(|address| self.truth.iter().all(|block| block.0 != *address))
            .expect("an address")
    }

    fn apply(&mut self, event: &Event) -> bool {
        match *event {
            Event::Alloc { stack, size, task } => {
                let address = self.address();
                self.truth.push((address, size, stack));
                let block = LiveBlock {
                    address,
                    size,
                    stack: StackId(stack),
                    task,
                    born: self.now,
                    mean: 1,
                };
                self.vanished += u64::from(self.books.insert(address, block).is_some());
                self.site(stack).allocated += 1;
            }
            Event::LostAlloc { size } => {
                let address = self.address();
                self.truth.push((address, size, UNRECORDED));
            }
            Event::Free { pick } if !self.truth.is_empty() => {
                let (address, ..) = self.truth.swap_remove(pick % self.truth.len());
                if let Some(block) = self.books.remove(&address) {
                    let life = self.now.saturating_sub(block.born);
                    let site = self.site(block.stack.0);
                    site.freed += 1;
                    site.lives += life;
                    site.longest_life = site.longest_life.max(life);
                }
            }
            Event::LostFree { pick } if !self.truth.is_empty() => {
                self.truth.swap_remove(pick % self.truth.len());
            }
            Event::Tick { millis } => {
                self.now += Duration::from_millis(millis);
                self.ledger.observe(Observation {
                    at: self.now,
                    sites: self.totals.values().cloned().collect(),
                    live: self.books.values().cloned().collect(),
                    ..Observation::default()
                });
                return true;
            }
            Event::Exec => {
                *self = Self {
                    now: self.now,
                    ledger: std::mem::take(&mut self.ledger),
                    ..Self::default()
                };
                self.ledger.restart();
            }
            Event::Free { .. } | Event::LostFree { .. } => {}
        }
        false
    }

    fn site(&mut self, stack: u64) -> &mut SiteTotals {
        self.totals.entry(stack).or_insert(SiteTotals {
            stack: StackId(stack),
            allocated: 0,
            freed: 0,
            longest_life: Duration::ZERO,
            lives: Duration::ZERO,
        })
    }
}

fn check(model: &Model) -> Result<(), TestCaseError> {
    // two groups: even and odd stacks
    let groups = model.ledger.groups(|stack| stack.0 % 2);
    let (mut live, mut allocated, mut freed, mut vanished) = (0, 0, 0, 0);
    for group in groups.values() {
        let last = group.series.last().expect("an observation");
        prop_assert!(
            group
                .series
                .iter()
                .all(|s| s.bytes >= 0.0 && s.blocks >= 0.0 && s.bytes_variance == 0.0)
        );
        prop_assert!(last.blocks as u64 <= group.allocated);
        prop_assert_eq!(last.blocks as usize, group.survivors.len());
        prop_assert_eq!(
            group.allocated,
            group.freed + group.survivors.len() as u64 + group.vanished
        );
        prop_assert!(group.survivors.is_sorted_by_key(|survivor| survivor.born));
        prop_assert!(group.deaths.total() <= group.freed + group.vanished);
        prop_assert!(group.mean_life().unwrap_or_default() <= group.longest_life);
        let tasks: f64 = group.tasks.iter().map(|share| share.bytes).sum();
        prop_assert!((tasks - last.bytes).abs() < 1e-6);
        live += group.survivors.len();
        allocated += group.allocated;
        freed += group.freed;
        vanished += group.vanished;
    }
    prop_assert_eq!(live, model.books.len());
    prop_assert_eq!(
        allocated,
        model
            .totals
            .values()
            .map(|site| site.allocated)
            .sum::<u64>()
    );
    prop_assert_eq!(
        freed,
        model.totals.values().map(|site| site.freed).sum::<u64>()
    );
    prop_assert_eq!(vanished, model.vanished);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn books_stay_balanced_whatever_is_lost(events in proptest::collection::vec(event(true), 1..400)) {
        let mut model = Model::default();
        for event in &events {
            if model.apply(event) {
                check(&model)?;
            }
        }
    }

    #[test]
    fn without_loss_the_account_is_the_truth(events in proptest::collection::vec(event(false), 1..400)) {
        let mut model = Model::default();
        for event in &events {
            if !model.apply(event) {
                continue;
            }
            check(&model)?;
            let groups = model.ledger.groups(|stack| stack.0);
            for (stack, group) in &groups {
                let truth: u64 = model.truth.iter().filter(|block| block.2 == *stack).map(|block| block.1).sum();
                let estimate = group.series.last().expect("an observation").bytes;
                prop_assert!((estimate - truth as f64).abs() < 1e-6);
                prop_assert_eq!(group.survivors.iter().map(|survivor| survivor.size).sum::<u64>(), truth);
                prop_assert_eq!(group.vanished, 0);
            }
        }
    }

    #[test]
    fn any_observation_is_survived(
        observations in proptest::collection::vec(
            (any::<u64>(), proptest::collection::vec((any::<u64>(), any::<u64>(), 0..9u64, any::<u64>(), any::<u64>()), 0..30)),
            1..30,
        ),
    ) {
        let mut ledger = Ledger::default();
        for (at, rows) in observations {
            let time = |n: u64| Duration::from_nanos(n);
            ledger.observe(Observation {
                at: time(at),
                sites: rows.iter().map(|(a, b, stack, d, e)| SiteTotals {
                    stack: StackId(*stack), allocated: *a, freed: *b, longest_life: time(*d), lives: Duration::new(*e, 0),
                }).collect(),
                live: rows.iter().map(|(a, b, stack, d, e)| LiveBlock {
                    address: *a % 16, size: *b, stack: StackId(*stack), task: None, born: time(*d), mean: *e,
                }).collect(),
                anonymous_bytes: Some(at),
                calls: None,
            });
            for group in ledger.groups(|stack| stack).values() {
                prop_assert!(group.survivors.len() as u64 <= group.allocated);
                prop_assert!(group.series.iter().all(|sample| sample.bytes >= 0.0 && sample.bytes_variance >= 0.0));
            }
        }
    }
}

fn steady(at: u64, blocks: u64, stacks: u64) -> Observation {
    let born = |i: u64| Duration::from_secs(i);
    Observation {
        at: Duration::from_secs(at),
        sites: (0..stacks)
            .map(|stack| SiteTotals {
                stack: StackId(stack),
                allocated: blocks,
                freed: 0,
                longest_life: Duration::ZERO,
                lives: Duration::ZERO,
            })
            .collect(),
        live: (0..blocks)
            .map(|i| LiveBlock {
                address: i * 16,
                size: 100,
                stack: StackId(i % stacks),
                task: Some(i % 50),
                born: born(i),
                mean: 1,
            })
            .collect(),
        ..Observation::default()
    }
}

#[test]
fn long_runs_are_thinned_without_changing_what_is_kept() {
    let mut ledger = Ledger::default();
    for at in 0..3000 {
        ledger.observe(steady(at, at, 1));
        let moments = ledger.timeline().moments();
        assert!(moments.len() <= Ledger::MAX_POINTS);
    }
    let groups = ledger.groups(|_| ());
    let group = &groups[&()];
    assert_eq!(group.series.len(), ledger.timeline().moments().len());
    assert!(group.series.len() >= Ledger::MAX_POINTS / 2);
    // one block of 100 bytes a second, at every moment that is left
    for sample in &group.series {
        assert!(
            (sample.bytes - sample.at.as_secs_f64() * 100.0).abs() < 1e-6,
            "{sample:?}"
        );
    }
    assert_eq!(group.series.first().expect("a moment").at, Duration::ZERO);
    assert_eq!(
        group.series.last().expect("a moment").at,
        Duration::from_secs(2999)
    );
    // nobody died, however the cohorts were merged
    assert_eq!(group.deaths.total(), 0);
    assert_eq!(group.tasks.len(), Group::MAX_TASKS);
    let others = group.other_tasks.expect("further tasks");
    let all: f64 = group.tasks.iter().map(|share| share.blocks).sum::<f64>() + others.blocks;
    assert!((all - 2999.0).abs() < 1e-6);
}

#[test]
fn deaths_are_known_by_age() {
    let mut ledger = Ledger::default();
    // one block a second that lives for 20 s, over 600 s
    for at in 0..600u64 {
        let live = (at.saturating_sub(20)..at)
            .map(|i| LiveBlock {
                address: i * 16,
                size: 100,
                stack: StackId(1),
                task: None,
                born: Duration::from_secs(i),
                mean: 1,
            })
            .collect();
        ledger.observe(Observation {
            at: Duration::from_secs(at),
            live,
            ..Observation::default()
        });
    }
    let groups = ledger.groups(|_| ());
    let deaths = &groups[&()].deaths;
    assert!(deaths.total() > 500, "{}", deaths.total());
    assert_eq!(deaths.since(Duration::from_secs(16)), deaths.total());
    assert_eq!(deaths.since(Duration::from_secs(29)), 0);
}

#[test]
fn too_many_stacks_are_counted() {
    let mut ledger = Ledger::default();
    let many = Ledger::MAX_HISTORIES as u64 + 100;
    ledger.observe(steady(1, many, many));
    assert_eq!(ledger.losses().without_history, 100);
    let unfollowed: u64 = ledger
        .groups(|stack| stack)
        .values()
        .map(|group| group.unfollowed)
        .sum();
    assert_eq!(unfollowed, 100);
    // when the others are gone, there is room again
    ledger.observe(Observation {
        at: Duration::from_secs(2),
        ..Observation::default()
    });
    let live = vec![LiveBlock {
        address: 16,
        size: 1,
        stack: StackId(many + 1),
        task: None,
        born: Duration::from_secs(2),
        mean: 1,
    }];
    ledger.observe(Observation {
        at: Duration::from_secs(3),
        live,
        ..Observation::default()
    });
    assert_eq!(ledger.losses().without_history, 0);

    let mut ledger = Ledger::default();
    let site = |stack| SiteTotals {
        stack: StackId(stack),
        allocated: 1,
        freed: 1,
        longest_life: Duration::ZERO,
        lives: Duration::ZERO,
    };
    let sites = (0..Ledger::MAX_TOTALS as u64 + 7).map(site).collect();
    ledger.observe(Observation {
        at: Duration::from_secs(1),
        sites,
        ..Observation::default()
    });
    assert_eq!(ledger.losses().without_totals, 7);
}

#[test]
fn oddities_are_counted() {
    let mut ledger = Ledger::default();
    let mut twice = steady(5, 3, 1);
    twice.live.extend(twice.live.clone());
    ledger.observe(twice);
    assert_eq!(ledger.losses().duplicates, 3);
    assert_eq!(ledger.live().len(), 3);
    ledger.observe(steady(4, 3, 1));
    assert_eq!(ledger.losses().out_of_order, 1);
    // totals that go backwards belong to another program
    ledger.observe(steady(6, 1, 1));
    assert_eq!(
        ledger.losses(),
        Losses {
            restarts: 1,
            ..Losses::default()
        }
    );
    assert_eq!(ledger.timeline().moments().len(), 1);
    assert_eq!(ledger.sampling_mean(), 1);
    assert_eq!(ledger.stacks(), [StackId(0)]);
}
