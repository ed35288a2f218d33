//! Memory pressure: how much time tasks lose to waiting for memory
//! (Documentation/accounting/psi.rst).

use std::{fs, io, path::Path};

/// File for the whole host.
pub const HOST: &str = "/proc/pressure/memory";

/// Share of time in which at least one task waited for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Percent of the last 10 s.
    pub some_avg10: f64,
    /// Percent of the last 60 s.
    pub some_avg60: f64,
    /// Percent of the last 10 s in which all tasks waited at once.
    pub full_avg10: f64,
    /// Microseconds lost since boot, or since the control group was made.
    pub some_total_us: u64,
}

impl Pressure {
    /// Pressure on the whole host.
    ///
    /// # Errors
    /// `NotFound` on a kernel without PSI, `EOPNOTSUPP` where it is switched
    /// off (`psi=0`): then it is unknown, not zero.
    pub fn of_host() -> io::Result<Self> {
        Self::read(Path::new(HOST))
    }

    /// Pressure from a `memory.pressure` file of a control group, or [`HOST`].
    ///
    /// # Errors
    /// As for [`Self::of_host`].
    pub fn read(file: &Path) -> io::Result<Self> {
        Self::parse(&fs::read_to_string(file)?).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} has an unexpected form", file.display()),
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
        // Before 5.13 not all files have the second line.
        let full = text
            .lines()
            .find_map(|line| line.strip_prefix("full "))
            .unwrap_or("");
        Some(Self {
            some_avg10: field(some, "avg10")?,
            some_avg60: field(some, "avg60")?,
            full_avg10: field(full, "avg10").unwrap_or(0.0),
            some_total_us: field(some, "total")?,
        })
    }
}

fn field<N: std::str::FromStr>(line: &str, key: &str) -> Option<N> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_lines() {
        let text = "some avg10=1.53 avg60=0.87 avg300=0.20 total=42\nfull avg10=0.31 avg60=0.10 avg300=0.02 total=7\n";
        assert_eq!(
            Pressure::parse(text),
            Some(Pressure {
                some_avg10: 1.53,
                some_avg60: 0.87,
                full_avg10: 0.31,
                some_total_us: 42
            })
        );
        assert!(Pressure::parse("some avg10=1.53 avg60=0.87 total=42").is_some());
        assert_eq!(Pressure::parse("full avg10=1.53 avg60=0.87 total=42"), None);
        assert_eq!(Pressure::parse("some avg10= avg60=0 total=1"), None);
    }

    #[test]
    fn this_host_answers_or_says_that_it_cannot() {
        match Pressure::of_host() {
            Ok(pressure) => assert!((0.0..=100.0).contains(&pressure.some_avg10)),
            Err(error) => assert!(
                error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::EOPNOTSUPP),
                "{error}"
            ),
        }
    }
}
