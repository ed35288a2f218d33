//! What the governor is told of a target.

use std::time::Duration;

use agent_ebpf::abi::heap::TargetCounts;

/// A target's counters at one moment, from zero at its attach.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Calls of allocating functions.
    pub allocations: u64,
    /// Bytes they asked for.
    pub allocated_bytes: u64,
    /// Calls of freeing functions.
    pub frees: u64,
    /// Allocations recorded.
    pub sampled: u64,
    /// Hits of single-stepped probes.
    pub stepped: u64,
    /// Living children that inherited breakpoints and are not followed
    /// themselves.
    pub children: u32,
    /// Processor time of the target since its start, of all threads
    /// (`host::cpu_clock`); `None`: unknown.
    pub cpu: Option<Duration>,
    /// Threads that share the traps since the reading before, by [`lanes`];
    /// what is below 1 is taken for 1.
    pub lanes: f64,
}

impl Reading {
    /// From the kernel's counters.
    pub fn new(counts: &TargetCounts, children: u32, cpu: Option<Duration>, lanes: f64) -> Self {
        Self {
            allocations: counts.allocations,
            allocated_bytes: counts.allocated_bytes,
            frees: counts.frees,
            sampled: counts.sampled,
            stepped: counts.stepped,
            children,
            cpu,
            lanes,
        }
    }

    /// What was counted since another reading.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            allocations: self.allocations.saturating_sub(before.allocations),
            allocated_bytes: self.allocated_bytes.saturating_sub(before.allocated_bytes),
            frees: self.frees.saturating_sub(before.frees),
            sampled: self.sampled.saturating_sub(before.sampled),
            stepped: self.stepped.saturating_sub(before.stepped),
            ..*self
        }
    }
}

/// How many threads at least share the traps between two readings, from the
/// hits that each processor has counted: all of them, divided by those of the
/// processor that saw most. A thread stays on a processor for longer than
/// between two readings of a window; one that wanders looks like more.
pub fn lanes(before: &[u64], now: &[u64]) -> f64 {
    let hits = |(index, now): (usize, &u64)| {
        now.saturating_sub(before.get(index).copied().unwrap_or(0)) as f64
    };
    let all: f64 = now.iter().enumerate().map(hits).sum();
    let most = now.iter().enumerate().map(hits).fold(0.0, f64::max);
    if most > 0.0 { all / most } else { 1.0 }
}

/// What an observer wants of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Whatever tells most within the budget.
    #[default]
    Auto,
    /// Windows only.
    Survey,
    /// The user asks for permanent tracing and pays: the cost is told, not
    /// limited. Memory pressure and pause still end it.
    Trace,
}

/// What is known of a target beforehand.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// What is wanted of it.
    pub wish: Wish,
    /// Control group, for fairness.
    pub cgroup: String,
    /// Names of the files that are probed, by device and inode; targets with
    /// a file in common pay for one another's return probes.
    pub files: Vec<(u64, u64)>,
    /// Probes on allocating functions are single-stepped: what is assumed of
    /// calls that were not seen yet. Those that were are counted.
    pub stepped_allocations: bool,
    /// Those on freeing functions are.
    pub stepped_frees: bool,
    /// Frames of an average stack.
    pub frames: f64,
    /// Why no breakpoint may be set, a whole sentence.
    pub refusal: Option<String>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            wish: Wish::Auto,
            cgroup: String::new(),
            files: Vec::new(),
            stepped_allocations: false,
            stepped_frees: false,
            frames: 30.0,
            refusal: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::lanes;

    #[test]
    fn lanes_come_from_the_busiest_processor() {
        let close = |value: f64, wanted: f64| assert!((value - wanted).abs() < 1e-9, "{value}");
        close(lanes(&[0, 0], &[0, 0]), 1.0);
        close(lanes(&[5, 9], &[105, 9]), 1.0);
        close(lanes(&[5, 9], &[105, 59]), 1.5);
        close(lanes(&[], &[7, 7, 7, 7]), 4.0);
        // A counter that was cleared meanwhile.
        close(lanes(&[100], &[3]), 1.0);
    }
}
