//! Times as people write them: 90s, 30m, 1h.

use std::time::Duration;

/// Reads a time of at least a second.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time: write it like 90s, 30m or 1h");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let Ok(number) = digits.parse::<u64>() else {
        return Err(wrong());
    };
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let seconds = number.checked_mul(unit).filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

/// A time with minutes or seconds as its unit.
pub(crate) fn show(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds >= 120 && seconds.is_multiple_of(60) {
        format!("{} min", seconds / 60)
    } else {
        format!("{seconds} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(parse("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("30m"), Ok(Duration::from_mins(30)));
        assert_eq!(parse("1h"), Ok(Duration::from_hours(1)));
        for wrong in [
            "",
            "5",
            "m",
            "0s",
            "-1s",
            "1d",
            "99999999999999999999h",
            "1é",
        ] {
            assert!(parse(wrong).unwrap_err().contains("90s"), "{wrong}");
        }
        assert_eq!(show(Duration::from_mins(30)), "30 min");
        assert_eq!(show(Duration::from_secs(210)), "210 s");
    }
}
