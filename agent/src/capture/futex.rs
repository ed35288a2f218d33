//! Futex waits of targets: who waits where, for how long, and who waits still.
//!
//! The scheduler tells each time that a thread leaves its processor, so this
//! needs neither tracefs nor a breakpoint, and sees only waits that really
//! wait. It is asked only while some target's waits are followed, since each
//! switch of the host takes a little longer then ([`Capture::switches`]).

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use agent_ebpf::abi::futex::{Place, Wait, WaitCounts, WaitTotals};
use anyhow::{Context as _, Result};
use aya::maps::PerCpuArray;

use super::{
    Capture, MAX_STACKS, TargetId, array_of_counts, bpf,
    earlier_waits::{self, Earlier},
    events::Reason,
};
use crate::host::{kernel, thread};

/// Younger waits are not told one by one: most of them end soon.
pub const LONG: Duration = Duration::from_secs(1);
/// Waits of one target that are told one by one, the oldest ones.
const MAX_OPEN: usize = 256;

/// Whose waits are followed.
#[derive(Default)]
pub(super) struct Following {
    pub(super) targets: HashMap<TargetId, Follow>,
}

/// A target whose waits are followed, or were.
pub(super) struct Follow {
    /// Not during a pause.
    is_followed: bool,
    /// The slot's counters when it began.
    before: WaitCounts,
    /// Waits that began before the last pause and went on then.
    kept: Vec<(u32, Wait)>,
    /// Waits that were there when it began.
    earlier: Vec<Earlier>,
    /// Their stacks were looked at.
    looked: bool,
    since: Instant,
    followed: Duration,
}

/// What is known of a target's waits.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    /// Ended waits by place.
    pub totals: Vec<(Place, WaitTotals)>,
    /// Threads that wait, for at least [`LONG`], the longest first; their ids
    /// as the host sees them.
    pub open: Vec<(u32, Wait)>,
    /// Those that wait since before they were followed; their start is when
    /// that began.
    pub earlier: Vec<(u32, Wait)>,
    /// Totals since they are followed.
    pub counts: WaitCounts,
    /// For how long they were followed; pauses do not count.
    pub followed: Duration,
    /// Whether they are followed now.
    pub is_followed: bool,
}

impl Follow {
    /// Enters the waits that began during a pause, which nobody saw begin.
    fn look_back(&mut self, id: TargetId, epoch: u32) {
        self.earlier
            .retain(|earlier| goes_on(id, earlier.thread, &earlier.wait));
        let mut found = earlier_waits::find(id, epoch);
        found.retain(|found| {
            let known = self.earlier.iter().map(|earlier| earlier.thread);
            let mut known = known.chain(self.kept.iter().map(|(thread, _)| *thread));
            !known.any(|thread| thread == found.thread)
        });
        self.looked &= found.is_empty();
        self.earlier.append(&mut found);
    }
}

impl Capture {
    /// Starts to follow the waits of a target, or goes on after a pause.
    ///
    /// # Errors
    /// When it is no target, has ended, or the kernel refuses.
    pub fn follow_waits(&mut self, id: TargetId) -> Result<()> {
        let target = self.targets.get(&id).context("no such target")?;
        let slot = target.slot;
        let follow = self.waits.targets.get(&id);
        if follow.is_some_and(|follow| follow.is_followed) {
            return Ok(());
        }
        let before = self.wait_counts(slot)?;
        self.events.need(&mut self.object, Reason::Waits(id))?;
        // SAFETY: the map's own types.
        if let Err(error) = unsafe { bpf::update(self.object.map("WAITERS")?, &id, &slot) } {
            self.events.release(&mut self.object, Reason::Waits(id));
            return Err(error).context("cannot ask for the waits of a process");
        }
        let epoch = self.epoch(id);
        if let Some(follow) = self.waits.targets.get_mut(&id) {
            follow.look_back(id, epoch);
        }
        let follow = self.waits.targets.entry(id).or_insert_with(|| Follow {
            is_followed: true,
            before,
            kept: Vec::new(),
            // No wait begins unseen any more.
            earlier: earlier_waits::find(id, epoch),
            looked: false,
            since: Instant::now(),
            followed: Duration::ZERO,
        });
        follow.since = Instant::now();
        follow.is_followed = true;
        Ok(())
    }

    /// Ends it for now. Waits that go on then are known as long as they last.
    pub fn pause_waits(&mut self, id: TargetId) {
        let follow = self.waits.targets.get_mut(&id);
        let Some(follow) = follow.filter(|follow| follow.is_followed) else {
            return;
        };
        follow.is_followed = false;
        follow.followed += follow.since.elapsed();
        if let Err(error) = self.follow_no_more(id) {
            tracing::debug!(pid = id, error = %format_args!("{error:#}"), "the kernel goes on to follow its waits");
        }
        let open = self.open_waits().unwrap_or_default().remove(&id);
        // SAFETY: the map's own types.
        let cleared = self.object.map("WAITS").and_then(|map| unsafe {
            Ok(bpf::delete_where(map, |_: &u64, wait: &Wait| {
                wait.place.tgid == id
            })?)
        });
        if let Err(error) = cleared {
            tracing::debug!(pid = id, error = %format_args!("{error:#}"), "waits stay in the table");
        }
        if let Some(follow) = self.waits.targets.get_mut(&id) {
            follow
                .kept
                .retain(|(thread, wait)| goes_on(id, *thread, wait));
            follow.kept.extend(open.unwrap_or_default());
            trim(&mut follow.kept);
        }
    }

    /// Has the kernel look at a process's switches no more, and at nobody's when
    /// it was the last.
    fn follow_no_more(&mut self, id: TargetId) -> Result<()> {
        self.events.release(&mut self.object, Reason::Waits(id));
        // SAFETY: the map's own types.
        unsafe { bpf::delete(self.object.map("WAITERS")?, &id) }?;
        Ok(())
    }

    /// Switches of all threads of the host while any waits were followed: each
    /// took a little longer.
    ///
    /// # Errors
    /// When the kernel's counter cannot be read.
    pub fn switches(&self) -> Result<u64> {
        let map: PerCpuArray<_, u64> = array_of_counts(self.object.aya_map("SWITCHES")?)?;
        Ok(map.get(&0, 0)?.iter().sum())
    }

    /// Looks at the stacks of threads that have been waiting since before their
    /// target's waits were followed, once it is clear that they do so for long.
    pub(super) fn look_at_earlier_waits(&mut self) {
        let due = |follow: &Follow| !follow.looked && follow.since.elapsed() >= LONG;
        if !self.waits.targets.values().any(due) {
            return;
        }
        let registers = self.object.thread_registers().unwrap_or_else(|error| {
            tracing::debug!(error = %format_args!("{error:#}"), "some stacks of waiting threads will be cut");
            Vec::new()
        });
        for (id, follow) in self
            .waits
            .targets
            .iter_mut()
            .filter(|(_, follow)| due(follow))
        {
            let Some(target) = self.targets.get(id) else {
                continue;
            };
            follow.looked = true;
            let earlier = &mut follow.earlier;
            earlier.retain(|earlier| goes_on(*id, earlier.thread, &earlier.wait));
            for stack in earlier_waits::unwind(*id, &target.space, &registers, earlier) {
                if self.stacks.len() < MAX_STACKS {
                    self.stacks.insert(stack.hash, stack);
                }
            }
        }
    }

    /// The waits of every target so far.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub fn waits(&self) -> Result<HashMap<TargetId, Waits>> {
        if self.waits.targets.is_empty() {
            return Ok(HashMap::new());
        }
        let mut open = self.open_waits()?;
        let mut all: HashMap<TargetId, Waits> = HashMap::new();
        for (id, follow) in &self.waits.targets {
            let Some(target) = self.targets.get(id) else {
                continue;
            };
            let mut open = open.remove(id).unwrap_or_default();
            let epoch = self.epoch(*id);
            let kept = follow.kept.iter().filter(|(thread, wait)| {
                wait.place.epoch == epoch
                    && open.iter().all(|(other, _)| other != thread)
                    && goes_on(*id, *thread, wait)
            });
            let kept: Vec<(u32, Wait)> = kept.copied().collect();
            open.extend(kept);
            trim(&mut open);
            let earlier = follow.earlier.iter().filter(|earlier| {
                follow.looked
                    && earlier.wait.place.epoch == epoch
                    && goes_on(*id, earlier.thread, &earlier.wait)
            });
            let earlier = earlier.map(|earlier| (earlier.thread, earlier.wait));
            let running = if follow.is_followed {
                follow.since.elapsed()
            } else {
                Duration::ZERO
            };
            let waits = Waits {
                totals: Vec::new(),
                open,
                earlier: earlier.collect(),
                counts: less(&self.wait_counts(target.slot)?, &follow.before),
                followed: follow.followed + running,
                is_followed: follow.is_followed,
            };
            all.insert(*id, waits);
        }
        // SAFETY: the map's own types.
        unsafe {
            bpf::read_all(
                self.object.map("WAIT_TOTALS")?,
                |place: Place, totals: WaitTotals| {
                    if self.epoch(place.tgid) == place.epoch
                        && let Some(waits) = all.get_mut(&place.tgid)
                    {
                        waits.totals.push((place, totals));
                    }
                },
            )
        }
        .context("cannot read the table of waits")?;
        Ok(all)
    }

    /// Long waits that go on, as the kernel's table has them.
    fn open_waits(&self) -> Result<HashMap<TargetId, Vec<(u32, Wait)>>> {
        let now = kernel::monotonic_ns();
        let mut open: HashMap<TargetId, Vec<(u32, Wait)>> = HashMap::new();
        // SAFETY: the map's own types.
        unsafe {
            bpf::read_all(self.object.map("WAITS")?, |id: u64, wait: Wait| {
                let long = now.saturating_sub(wait.began_ns) >= LONG.as_nanos() as u64;
                if wait.open != 0 && long && self.epoch(wait.place.tgid) == wait.place.epoch {
                    let waits = open.entry(wait.place.tgid).or_default();
                    waits.push((id as u32, wait));
                }
            })
        }
        .context("cannot read the table of open waits")?;
        for (id, waits) in &mut open {
            trim(waits);
            waits.retain(|(thread, wait)| goes_on(*id, *thread, wait));
        }
        Ok(open)
    }

    fn wait_counts(&self, slot: u32) -> Result<WaitCounts> {
        let map: PerCpuArray<_, WaitCounts> = array_of_counts(self.object.aya_map("WAIT_COUNTS")?)?;
        let mut sum = WaitCounts::default();
        for counts in map.get(&slot, 0)?.iter() {
            sum.add(counts);
        }
        Ok(sum)
    }
}

/// Whether a thread has not run since a wait began.
fn goes_on(pid: u32, thread: u32, wait: &Wait) -> bool {
    thread::run_time_ns(pid, thread) == Some(wait.ran_ns)
}

/// Keeps the oldest.
fn trim(waits: &mut Vec<(u32, Wait)>) {
    waits.sort_by_key(|(_, wait)| wait.began_ns);
    waits.truncate(MAX_OPEN);
}

fn less(now: &WaitCounts, before: &WaitCounts) -> WaitCounts {
    WaitCounts {
        switches: now.switches.saturating_sub(before.switches),
        waits: now.waits.saturating_sub(before.waits),
        unwound: now.unwound.saturating_sub(before.unwound),
        without_stack: now.without_stack.saturating_sub(before.without_stack),
        unrecorded: now.unrecorded.saturating_sub(before.unrecorded),
        untold: now.untold.saturating_sub(before.untold),
    }
}
