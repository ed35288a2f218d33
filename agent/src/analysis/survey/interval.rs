//! Intervals of rates that were seen through few windows.

/// Two-sided 95 % quantile of Student's distribution (tables; between them
/// the next lower number of degrees of freedom, which is wider).
pub(super) fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 11] = [
        12.71, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23,
    ];
    match freedom {
        0..=10 => TABLE.get(freedom).copied().unwrap_or(12.71),
        11..=14 => 2.20,
        15..=19 => 2.13,
        20..=29 => 2.09,
        30..=59 => 2.04,
        _ => 2.00,
    }
}

/// 95 % bounds of the mean of a Poisson variable of which `count` was drawn,
/// by Byar's approximation (Breslow and Day 1987, equation 2.13), with a
/// quantile `t` that may be wider than the normal one.
pub(super) fn count_bounds(count: f64, t: f64) -> (f64, f64) {
    let low = if count <= 0.0 {
        0.0
    } else {
        count
            * (1.0 - 1.0 / (9.0 * count) - t / (3.0 * count.sqrt()))
                .max(0.0)
                .powi(3)
    };
    let above = count.max(0.0) + 1.0;
    let high = above * (1.0 - 1.0 / (9.0 * above) + t / (3.0 * above.sqrt())).powi(3);
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_windows_are_wide() {
        let mut last = f64::INFINITY;
        for freedom in 0..100 {
            assert!(student(freedom) <= last);
            last = student(freedom);
        }
        for count in [0.0, 0.3, 1.0, 14.0, 1e6] {
            let (low, high) = count_bounds(count, 1.96);
            let (lower, higher) = count_bounds(count, student(2));
            assert!(lower <= low && low <= count && count <= high && high < higher);
        }
    }
}
