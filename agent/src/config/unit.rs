//! Times, sizes and rates as people write them, always with a unit.

use std::{fmt, time::Duration};

use super::section::Scalar;

const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;
const DAY: f64 = 86_400.0;

/// Longest time that is accepted: ten years.
const LONGEST: f64 = 3650.0 * DAY;

/// A number of bytes, written `512B`, `64KiB`, `256MiB` or, by thousands,
/// `1MB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Bytes per second, written `256B/s`, `1MiB/h` or `20MB/day`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

impl Scalar for Duration {
    fn parse(word: &str) -> Result<Self, String> {
        let wrong = || format!("{word:?} is no time; write 500ms, 10s, 5min, 6h, 7d or 1h 30m");
        let mut rest = word.trim();
        let mut seconds = 0.0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let (number, after) = number(rest).ok_or_else(wrong)?;
            let end = after
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(after.len());
            let (unit, after) = after.split_at_checked(end).ok_or_else(wrong)?;
            if unit.is_empty() && after.is_empty() && seconds == 0.0 {
                return Err(format!("{word} of what? Write {word}s for seconds"));
            }
            seconds += number * second_in(unit).ok_or_else(wrong)?;
            rest = after.trim_start();
        }
        if seconds > LONGEST {
            return Err(format!("{word} is longer than ten years"));
        }
        Self::try_from_secs_f64(seconds).ok().ok_or_else(wrong)
    }

    fn word(&self) -> String {
        let millis = self.as_millis();
        for (unit, length) in [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("min", 60_000),
            ("s", 1000),
        ] {
            if millis >= length && millis.is_multiple_of(length) {
                return format!("{}{unit}", millis / length);
            }
        }
        format!("{millis}ms")
    }
}

impl Scalar for Bytes {
    fn parse(word: &str) -> Result<Self, String> {
        if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!(
                "{word} of what? Write {word}B, {word}KiB or {word}MiB"
            ));
        }
        size(word)
            .map(Self)
            .ok_or_else(|| format!("{word:?} is no size; write 512B, 64KiB, 256MiB or 1GiB"))
    }

    fn word(&self) -> String {
        let bytes = self.0;
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if bytes > 0 && bytes.trailing_zeros() >= shift {
                return format!("{}{unit}", bytes >> shift);
            }
        }
        format!("{bytes}B")
    }
}

impl Scalar for Rate {
    fn parse(word: &str) -> Result<Self, String> {
        let read = || {
            let (bytes, unit) = word.split_once('/')?;
            Some(size(bytes)? as f64 / second_in(unit.trim())?)
        };
        read()
            .map(Self)
            .ok_or_else(|| format!("{word:?} is no rate; write 256B/s, 1MiB/h or 20MiB/d"))
    }

    fn word(&self) -> String {
        for (unit, length) in [("s", 1.0), ("min", MINUTE), ("h", HOUR), ("d", DAY)] {
            let bytes = self.0 * length;
            if (bytes - bytes.round()).abs() < 1e-6 {
                return format!("{}/{unit}", Bytes(bytes.round() as u64).word());
            }
        }
        format!("{}B/d", (self.0 * DAY).round())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.word())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.word())
    }
}

/// A size with its unit.
fn size(word: &str) -> Option<u64> {
    let word = word.trim();
    // The parser would also take a bare number for bytes.
    if !word.ends_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    Some(word.parse::<bytesize::ByteSize>().ok()?.as_u64())
}

/// The decimal number at the start, and what follows it.
fn number(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest.trim_start()))
}

fn second_in(unit: &str) -> Option<f64> {
    Some(match unit {
        "ms" => 0.001,
        "s" | "sec" | "second" | "seconds" => 1.0,
        "m" | "min" | "minute" | "minutes" => MINUTE,
        "h" | "hour" | "hours" => HOUR,
        "d" | "day" | "days" => DAY,
        "w" | "week" | "weeks" => 7.0 * DAY,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times() {
        for (word, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("1.5s", 1500),
            ("5min", 300_000),
            ("5m", 300_000),
            ("6h", 21_600_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("7 days", 604_800_000),
            ("0s", 0),
        ] {
            assert_eq!(
                Duration::parse(word),
                Ok(Duration::from_millis(millis)),
                "{word}"
            );
        }
        for bad in [
            "", "s", "10 x", "-5s", "1e9s", "10", "1.2.3s", "h1", "99999d", "10s,",
        ] {
            assert!(Duration::parse(bad).is_err(), "{bad}");
        }
        assert!(Duration::parse("10").unwrap_err().contains("10s"));
    }

    #[test]
    fn sizes_and_rates() {
        assert_eq!(Bytes::parse("256MiB"), Ok(Bytes(256 << 20)));
        assert_eq!(Bytes::parse("1 MB"), Ok(Bytes(1_000_000)));
        assert_eq!(Bytes::parse("512B"), Ok(Bytes(512)));
        for bad in ["", "256", "many", "-1KiB", "1XiB", "KiB"] {
            assert!(Bytes::parse(bad).is_err(), "{bad}");
        }
        assert!(Bytes::parse("256").unwrap_err().contains("256MiB"));
        assert_eq!(Rate::parse("256B/s"), Ok(Rate(256.0)));
        assert_eq!(Rate::parse("1MiB/h"), Ok(Rate(1_048_576.0 / 3600.0)));
        for bad in ["256B", "256/s", "1MiB/x", "/s", "1MiB/"] {
            assert!(Rate::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(millis in 0_u64..1_000_000_000, bytes in 0_u64..1 << 40) {
            let time = Duration::from_millis(millis);
            prop_assert_eq!(Duration::parse(&time.word()), Ok(time));
            prop_assert_eq!(Bytes::parse(&Bytes(bytes).word()), Ok(Bytes(bytes)));
            let rate = Rate(bytes as f64);
            prop_assert_eq!(Rate::parse(&rate.word()), Ok(rate));
        }

        #[test]
        fn any_word_is_answered(word in ".{0,20}") {
            let _ = (Duration::parse(&word), Bytes::parse(&word), Rate::parse(&word));
        }
    }
}
