//! Numbers for people.

use std::time::Duration;

/// Bytes: `812 B`, `3.1 KiB`, `47 MiB`.
pub fn bytes(value: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = value;
    let mut unit = 0;
    // 1023.6 KiB would print as 1024 KiB
    while value.abs() >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("");
    if unit == 0 || value.abs() >= 99.95 {
        format!("{value:.0} {name}")
    } else {
        format!("{value:.1} {name}")
    }
}

/// Bytes per second.
pub fn rate(value: f64) -> String {
    format!("{}/s", bytes(value))
}

/// A count: `7`, `1,234`, `12.3 million`.
pub fn count(value: f64) -> String {
    if value.abs() >= 1e7 {
        return format!("{:.1} million", value / 1e6);
    }
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if value < 0.0 && digits != "0" {
        format!("-{out}")
    } else {
        out
    }
}

/// A length of time: `400 ms`, `4.2 s`, `48 s`, `12 min`, `3.5 h`, `4.2 days`.
pub fn time(value: Duration) -> String {
    let seconds = value.as_secs_f64();
    match seconds {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 3600.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{} h", short(s / 3600.0)),
        s => format!("{} days", short(s / 86400.0)),
    }
}

/// One decimal, unless it is zero.
fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (value, text) in [
            (0.0, "0 B"),
            (812.4, "812 B"),
            (1023.6, "1.0 KiB"),
            (3174.4, "3.1 KiB"),
            (1_048_571.0, "1.0 MiB"),
            (49_283_072.0, "47.0 MiB"),
            (4.2e9, "3.9 GiB"),
            (150.0 * 1024.0, "150 KiB"),
            (f64::INFINITY, "inf PiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        for (value, text) in [
            (0.0, "0"),
            (7.0, "7"),
            (999.6, "1,000"),
            (1234.0, "1,234"),
            (1_234_567.0, "1,234,567"),
            (32_000_000.0, "32.0 million"),
            (-1234.0, "-1,234"),
        ] {
            assert_eq!(count(value), text);
        }
        for (value, text) in [
            (0.000_012, "12 µs"),
            (0.4, "400 ms"),
            (4.25, "4.2 s"),
            (48.0, "48 s"),
            (720.0, "12 min"),
            (3600.0, "1 h"),
            (12_600.0, "3.5 h"),
            (362_880.0, "4.2 days"),
        ] {
            assert_eq!(time(Duration::from_secs_f64(value)), text);
        }
    }
}
