//! Memory of the host: `/proc/meminfo`.

use std::{fs, io};

/// Memory of the host, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meminfo {
    /// Usable memory.
    pub total: u64,
    /// What the kernel thinks can be given out without swapping, reclaimable
    /// caches included.
    pub available: u64,
    /// Swap space.
    pub swap_total: u64,
    /// Swap space that is not in use.
    pub swap_free: u64,
}

impl Meminfo {
    /// Reads it.
    ///
    /// # Errors
    /// When `/proc/meminfo` cannot be read or does not tell `MemTotal` and
    /// `MemAvailable`.
    pub fn read() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo")?).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "/proc/meminfo does not tell MemTotal and MemAvailable",
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()?
                .checked_mul(1024)
        };
        Some(Self {
            total: field("MemTotal")?,
            available: field("MemAvailable")?,
            swap_total: field("SwapTotal").unwrap_or(0),
            swap_free: field("SwapFree").unwrap_or(0),
        })
    }

    /// Bytes until anonymous memory has nowhere to go: memory and swap.
    pub fn headroom(&self) -> u64 {
        self.available.saturating_add(self.swap_free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_host() {
        let host = Meminfo::read().unwrap();
        assert!(host.total > 0 && host.available <= host.total);
        assert!(host.swap_free <= host.swap_total);
    }

    #[test]
    fn a_name_that_only_begins_alike_is_another() {
        let text = "MemTotalX: 1 kB\nMemTotal: 2 kB\nMemAvailable:  1 kB\n";
        let host = Meminfo::parse(text).unwrap();
        assert_eq!(
            (host.total, host.available, host.swap_total),
            (2048, 1024, 0)
        );
        assert_eq!(Meminfo::parse("MemTotal: 2 kB\n"), None);
        assert_eq!(Meminfo::parse("MemTotal: x kB\nMemAvailable: 1 kB\n"), None);
    }
}
