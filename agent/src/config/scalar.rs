//! Words, numbers and names as values.

use std::{fmt, net::SocketAddr, path::PathBuf};

use super::{problem::nearest, section::Scalar};
use crate::finding::{Confidence, Verdict};

/// What the daemon may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Look at memory growth only; no breakpoint is ever set.
    Watch,
    /// Sample the allocations of suspects in short windows.
    Survey,
    /// As survey, and follow every allocation where that is affordable.
    Full,
}

/// Least importance of what is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what needs attention.
    Error,
    /// And what may need it.
    Warn,
    /// And what the daemon does.
    Info,
    /// And why.
    Debug,
    /// And everything else.
    Trace,
}

/// The last day of something, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(jiff::civil::Date);

impl Day {
    /// Reads a day such as 2027-03-31; the error says what is wrong.
    pub fn read(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }

    /// Whether the day is over at this time, in seconds since 1970.
    pub fn is_over(self, unix_s: i64) -> bool {
        self.end() <= unix_s
    }

    /// The end of the day, in seconds since 1970.
    pub fn end(self) -> i64 {
        let start = self.0.duration_since(jiff::civil::date(1970, 1, 1));
        start.as_secs() + 86_400
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Scalar for Day {
    fn parse(word: &str) -> Result<Self, String> {
        word.parse()
            .map(Self)
            .ok()
            .ok_or_else(|| format!("{word:?} is no day; write one as 2027-03-31"))
    }

    fn word(&self) -> String {
        self.to_string()
    }
}

/// A name out of a fixed set.
fn one_of<T: Copy>(word: &str, names: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = names.iter().find(|(name, _)| *name == word) {
        return Ok(*value);
    }
    let all: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    let hint = nearest(word, all.iter().copied())
        .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    Err(format!("{word:?} is none of {}{hint}", all.join(", ")))
}

fn name_of<T: Copy + PartialEq>(value: T, names: &[(&'static str, T)]) -> String {
    names
        .iter()
        .find(|(_, named)| *named == value)
        .map_or("", |(name, _)| name)
        .to_owned()
}

macro_rules! named {
    ($type:ty, $($name:literal = $value:expr),+) => {
        impl Scalar for $type {
            fn parse(word: &str) -> Result<Self, String> {
                one_of(word, &[$(($name, $value)),+])
            }

            fn word(&self) -> String {
                name_of(*self, &[$(($name, $value)),+])
            }
        }
    };
}

named!(
    Mode,
    "watch" = Mode::Watch,
    "survey" = Mode::Survey,
    "full" = Mode::Full
);
named!(
    LogLevel,
    "error" = LogLevel::Error,
    "warn" = LogLevel::Warn,
    "info" = LogLevel::Info,
    "debug" = LogLevel::Debug,
    "trace" = LogLevel::Trace
);
named!(
    Confidence,
    "suspected" = Confidence::Suspected,
    "strong" = Confidence::Strong,
    "proven" = Confidence::Proven
);

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.word())
    }
}

/// The name, as `tracing` knows it too.
impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.word())
    }
}

impl Scalar for Verdict {
    fn parse(word: &str) -> Result<Self, String> {
        one_of(word, &Self::ALL.map(|verdict| (verdict.id(), verdict)))
    }

    fn word(&self) -> String {
        self.id().to_owned()
    }
}

impl Scalar for f64 {
    fn parse(word: &str) -> Result<Self, String> {
        match word.parse::<Self>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ if word.ends_with('%') => {
                Err(format!("write the number without the sign: not {word}"))
            }
            _ => Err(format!("{word:?} is no number")),
        }
    }

    fn word(&self) -> String {
        self.to_string()
    }
}

impl Scalar for u32 {
    fn parse(word: &str) -> Result<Self, String> {
        word.parse()
            .ok()
            .ok_or_else(|| format!("{word:?} is no whole number from 0 to {}", Self::MAX))
    }

    fn word(&self) -> String {
        self.to_string()
    }
}

impl Scalar for String {
    fn parse(word: &str) -> Result<Self, String> {
        if word.len() > 512 {
            return Err("is longer than 512 bytes".to_owned());
        }
        Ok(word.to_owned())
    }

    fn word(&self) -> String {
        self.clone()
    }
}

impl Scalar for PathBuf {
    fn parse(word: &str) -> Result<Self, String> {
        let path = Self::from(word);
        if path.is_absolute() {
            Ok(path)
        } else {
            Err(format!("{word:?} is no path from the root; begin with `/`"))
        }
    }

    fn word(&self) -> String {
        self.to_string_lossy().into_owned()
    }
}

impl Scalar for SocketAddr {
    fn parse(word: &str) -> Result<Self, String> {
        match word.parse::<Self>() {
            Ok(address) if address.port() == 0 => Err(format!("{word} has no port")),
            Ok(address) => Ok(address),
            Err(_) => Err(format!(
                "{word:?} is no address with port; write 127.0.0.1:9464 or [::1]:9464, not a name"
            )),
        }
    }

    fn word(&self) -> String {
        self.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_end_at_midnight() {
        let day = Day::parse("1970-01-02").unwrap();
        assert_eq!(day.end(), 172_800);
        assert!(!day.is_over(172_799) && day.is_over(172_800));
        assert_eq!(Day::parse("2027-03-31").unwrap().end(), 1_806_537_600);
        for bad in ["", "2027", "31.3.2027", "2027-02-30", "tomorrow"] {
            assert!(Day::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_have_a_nearest() {
        assert_eq!(Mode::parse("full"), Ok(Mode::Full));
        let error = Mode::parse("everything").unwrap_err();
        assert_eq!(error, "\"everything\" is none of watch, survey, full");
        let error = Mode::parse("survy").unwrap_err();
        assert!(error.ends_with("did you mean `survey`?"), "{error}");
        for verdict in Verdict::ALL {
            assert_eq!(Verdict::parse(&verdict.word()), Ok(verdict));
        }
    }

    #[test]
    fn numbers_and_addresses() {
        assert_eq!(f64::parse("1"), Ok(1.0));
        for bad in ["", ".nan", "inf", "1%", "one"] {
            assert!(f64::parse(bad).is_err(), "{bad}");
        }
        assert!(u32::parse("-1").is_err() && u32::parse("1.5").is_err());
        assert!(SocketAddr::parse("[::1]:9464").is_ok());
        for bad in ["localhost:9464", "127.0.0.1", "127.0.0.1:0", ":9464"] {
            assert!(SocketAddr::parse(bad).is_err(), "{bad}");
        }
    }
}
