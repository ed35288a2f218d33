//! Far quantiles of Student's t distribution.

/// The t that a variable of `freedom` degrees exceeds with probability
/// `tail`, for tails from 1e-30 to 0.5.
pub(super) fn quantile(tail: f64, freedom: f64) -> f64 {
    let tail = tail.clamp(1e-30, 0.5);
    let (mut low, mut high) = (0.0, 1.0);
    while upper_tail(high, freedom) > tail && high < 1e30 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if upper_tail(middle, freedom) > tail {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// P(T > t): half the regularised incomplete beta function at
/// freedom / (freedom + t²) (DLMF 8.17, Abramowitz and Stegun 26.7.1).
fn upper_tail(t: f64, freedom: f64) -> f64 {
    0.5 * incomplete_beta(freedom / (freedom + t * t), freedom / 2.0, 0.5)
}

fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    let front =
        (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp();
    // The fraction converges fast on this side only.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * fraction(x, a, b) / a
    } else {
        1.0 - front * fraction(1.0 - x, b, a) / b
    }
}

/// Continued fraction DLMF 8.17.22, by Lentz's method.
#[expect(clippy::many_single_char_names, reason = "the names of the formula")]
fn fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let not_zero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / not_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut product = d;
    for m in 1..300 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / not_zero(1.0 + term * d);
            c = not_zero(1.0 + term / c);
            change = c * d;
            product *= change;
        }
        if (change - 1.0).abs() < 1e-14 {
            break;
        }
    }
    product
}

/// Of multiples of one half: from Γ(1) = 1 and Γ(½) = √π upwards.
fn ln_gamma(x: f64) -> f64 {
    let mut argument = if (x.fract() - 0.5).abs() < 0.25 {
        0.5
    } else {
        1.0
    };
    let mut sum = if argument < 1.0 {
        0.5 * std::f64::consts::PI.ln()
    } else {
        0.0
    };
    while argument < x - 0.25 {
        sum += f64::ln(argument);
        argument += 1.0;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_match_the_tables() {
        for (tail, freedom, t) in [
            (0.025, 1.0, 12.706),
            (0.025, 10.0, 2.228),
            (0.0005, 5.0, 6.869),
            (0.0005, 30.0, 3.646),
            (0.005, 60.0, 2.660),
            // 1 ÷ (π × tail) for one degree of freedom
            (1e-9, 1.0, 318_309_886.2),
        ] {
            let found = quantile(tail, freedom);
            assert!((found / t - 1.0).abs() < 5e-4, "{found} for {t}");
        }
    }

    #[test]
    fn fewer_degrees_have_longer_tails() {
        let mut before = f64::INFINITY;
        for freedom in 1..64 {
            let t = quantile(1e-9, f64::from(freedom));
            assert!(t < before && t > 5.9, "{freedom}: {t}");
            before = t;
        }
    }
}
