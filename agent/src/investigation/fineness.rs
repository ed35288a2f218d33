//! How finely to sample: as fine as a number of records per second allows.
//! Pure; rates come from outside.

/// Records per second and process. One costs the target about 5 µs at 50
/// frames, so this is 2.5 % of one core.
const RECORDS_PER_SECOND: f64 = 5000.0;
/// A change by less than this factor is not worth a new mean.
const HYSTERESIS: f64 = 2.0;
/// Coarsest mean: 64 MiB.
const COARSEST: u64 = 64 << 20;

/// Calls since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Calls of allocating functions per second.
    pub(super) calls_per_s: f64,
    /// Bytes they asked for per second.
    pub(super) bytes_per_s: f64,
    /// Share of the table of live blocks that is in use, 0 to 1.
    pub(super) table_use: f64,
}

/// The next sampling mean in bytes.
///
/// Sampling takes a block of size s with probability 1 − e^(−s/mean); with the
/// mean size that is solved for the mean that gives the wanted rate. The table
/// of live blocks is kept half empty, because a leak fills it.
pub(super) fn next_mean(mean: u64, load: Load) -> u64 {
    let wanted = if load.calls_per_s <= RECORDS_PER_SECOND || load.bytes_per_s <= 0.0 {
        1.0
    } else {
        let size = load.bytes_per_s / load.calls_per_s;
        -size / (-RECORDS_PER_SECOND / load.calls_per_s).ln_1p()
    };
    let current = mean.max(1) as f64;
    if load.table_use > 0.5 {
        return ((current.max(512.0) * 4.0) as u64).min(COARSEST);
    }
    // Never finer again: blocks in the table would be counted with other
    // weights than those that come, and a finer phase gains little late.
    if wanted < current * HYSTERESIS {
        return mean.max(1);
    }
    (wanted as u64).clamp(1, COARSEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_ebpf::logic::sampling::weight;

    fn load(calls_per_s: f64, size: f64) -> Load {
        Load {
            calls_per_s,
            bytes_per_s: calls_per_s * size,
            table_use: 0.0,
        }
    }

    #[test]
    fn quiet_programs_are_followed_exactly() {
        assert_eq!(next_mean(1, load(0.0, 0.0)), 1);
        assert_eq!(next_mean(1, load(4000.0, 100.0)), 1);
    }

    #[test]
    fn busy_programs_give_the_wanted_rate() {
        for (calls, size) in [(20_000.0, 64.0), (200_000.0, 100.0), (1e6, 4096.0)] {
            let mean = next_mean(1, load(calls, size));
            let records = calls / weight(size as u64, mean);
            assert!(
                (RECORDS_PER_SECOND * 0.8..RECORDS_PER_SECOND * 1.2).contains(&records),
                "{calls} {size}: {records}"
            );
        }
    }

    #[test]
    fn a_filling_table_coarsens() {
        let full = Load {
            table_use: 0.6,
            ..load(100.0, 64.0)
        };
        assert!(next_mean(1, full) > 1000);
        assert!(next_mean(COARSEST, full) <= COARSEST);
    }
}
