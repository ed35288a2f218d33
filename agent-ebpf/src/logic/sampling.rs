//! Poisson sampling by bytes.
//!
//! Sample points lie on the stream of allocated bytes with a mean distance
//! `mean`; a block is sampled when at least one point falls into it, so with
//! probability `1 − e^(−size/mean)`. Distances are kept in units of the mean,
//! so that targets with different means can share one generator.

/// Fixed point: one mean distance.
pub const UNIT: u64 = 1 << 20;

/// log2 of the fixed point of [`scale`].
const SCALE_SHIFT: u32 = 32;

/// No gap is as long as this: 33·ln 2 means are the longest.
const FAR: u64 = 64 * UNIT;

/// What a mean makes of a byte, so that [`distance`] needs no division.
#[inline]
pub const fn scale(mean: u64) -> u64 {
    (UNIT << SCALE_SHIFT) / if mean == 0 { 1 } else { mean }
}

/// How far a block of `size` bytes moves along the stream, in 1/[`UNIT`]
/// means; `scale` is that of the mean. An empty block counts as one byte.
#[inline]
pub const fn distance(size: u64, mean: u64, scale: u64) -> u64 {
    if size >> 6 >= mean {
        return FAR;
    }
    // Below 2^59.
    let d = (size * scale) >> SCALE_SHIFT;
    if d == 0 { 1 } else { d }
}

/// −log2(1 − i/64) in 1/2^20, for the mantissa steps of [`gap`].
const LOG2: [u32; 65] = log2_table();

/// log2(1 + i/64) · 2^20, computed at build time by repeated squaring.
const fn log2_table() -> [u32; 65] {
    let mut table = [0u32; 65];
    let mut i = 0;
    while i <= 64 {
        // x in [1, 2] as 32.32 fixed point
        let mut x: u128 = ((64 + i as u128) << 32) / 64;
        let mut result: u64 = 0;
        if i == 64 {
            table[i] = 1 << 20;
            break;
        }
        let mut bit = 0;
        while bit < 24 {
            x = (x * x) >> 32;
            result <<= 1;
            if x >= 2 << 32 {
                result |= 1;
                x >>= 1;
            }
            bit += 1;
        }
        table[i] = ((result + 8) >> 4) as u32;
        i += 1;
    }
    table
}

/// Draws the distance to the next sample point, exponential with mean
/// [`UNIT`], from a uniform 32-bit number.
#[inline]
pub fn gap(random: u32) -> u64 {
    // u = (2·random + 1) / 2^33 lies strictly inside (0, 1).
    let u = (u64::from(random) << 1) | 1;
    let mut exponent: u64 = 0;
    let mut x = u;
    if x >= 1 << 32 {
        exponent += 32;
        x >>= 32;
    }
    if x >= 1 << 16 {
        exponent += 16;
        x >>= 16;
    }
    if x >= 1 << 8 {
        exponent += 8;
        x >>= 8;
    }
    if x >= 1 << 4 {
        exponent += 4;
        x >>= 4;
    }
    if x >= 1 << 2 {
        exponent += 2;
        x >>= 2;
    }
    if x >= 2 {
        exponent += 1;
    }
    // mantissa of u in [0, 1) with 20 bits: 6 for the table, 14 between steps
    let mantissa = if exponent >= 20 {
        (u >> (exponent - 20)) & 0xf_ffff
    } else {
        (u << (20 - exponent)) & 0xf_ffff
    };
    let step = ((mantissa >> 14) & 63) as usize;
    let rest = mantissa & 0x3fff;
    let low = u64::from(LOG2[step]);
    let high = u64::from(LOG2[step + 1]);
    let log2 = exponent * UNIT + low + (((high - low) * rest) >> 14);
    let minus_log2_u = 33 * UNIT - log2;
    // · ln 2, as 2^-32 fixed point
    ((minus_log2_u * 2_977_044_472) >> 32) + 1
}

/// How many blocks of this size one sample stands for:
/// 1 / (1 − e^(−size/mean)); 1 where every allocation is taken.
#[cfg(not(target_arch = "bpf"))]
pub fn weight(size: u64, mean: u64) -> f64 {
    if mean <= 1 {
        return 1.0;
    }
    1.0 / -(-(size.max(1) as f64) / mean as f64).exp_m1()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gap_is_exponential() {
        // Mean and quantiles over an even grid of the 32-bit numbers.
        let steps = 1u32 << 20;
        let draws: Vec<f64> = (0..steps)
            .map(|i| gap(i.wrapping_mul(4096) + 2048) as f64 / UNIT as f64)
            .collect();
        let mean = draws.iter().sum::<f64>() / f64::from(steps);
        assert!((mean - 1.0).abs() < 1e-3, "mean {mean}");
        for q in [0.01, 0.1, 0.5, 0.9, 0.99, 0.999] {
            let limit = -(1.0f64 - q).ln();
            let share = draws.iter().filter(|d| **d <= limit).count() as f64 / f64::from(steps);
            assert!((share - q).abs() < 1e-3, "quantile {q}: {share}");
        }
    }

    #[test]
    fn distance_is_the_share_of_the_mean() {
        for mean in [1u64, 2, 3, 4096, 65_537, 512 << 10, 1 << 40] {
            for size in [0u64, 1, 16, 4095, 1 << 20, 1 << 33, 1 << 45, u64::MAX] {
                let exact = (u128::from(size) * u128::from(UNIT) / u128::from(mean)).max(1);
                let d = u128::from(distance(size, mean, scale(mean)));
                if exact >= u128::from(FAR) {
                    assert_eq!(d, u128::from(FAR), "{size} of {mean}");
                } else {
                    assert!(
                        exact.abs_diff(d) <= 1 + (exact >> 12),
                        "{size} of {mean}: {d}"
                    );
                }
            }
        }
        assert!(FAR > gap(0));
    }

    #[test]
    fn weights_add_up_to_the_truth() {
        let mut state = 1u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u32
        };
        for (size, mean) in [(64u64, 4096u64), (1000, 1024), (100_000, 65_536), (16, 8)] {
            let blocks = 2_000_000;
            let mut left = gap(random());
            let mut estimate = 0.0;
            for _ in 0..blocks {
                let d = distance(size, mean, scale(mean));
                if d < left {
                    left -= d;
                    continue;
                }
                left = gap(random());
                estimate += weight(size, mean);
            }
            let ratio = estimate / f64::from(blocks);
            assert!(
                (ratio - 1.0).abs() < 0.03,
                "size {size} mean {mean}: {ratio}"
            );
        }
    }
}
