//! Programs that died by a signal while they were probed: they are not probed
//! again until someone has looked at it.
//!
//! Kept as a JSON list, known by build id, so that a mended build is tried
//! anew.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Most programs in the list; the oldest leave.
const MAX_ENTRIES: usize = 256;
/// A longer file is not ours.
const MAX_BYTES: u64 = 1 << 20;

/// One program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Build id of the executable, hexadecimal.
    pub build_id: String,
    /// Its path, escaped.
    pub exe: String,
    /// The signal that ended it.
    pub signal: i32,
    /// When, RFC 3339.
    pub when: String,
}

/// The list, as it is on disk.
#[derive(Clone, Debug)]
pub struct Quarantine {
    file: PathBuf,
    entries: Vec<Entry>,
}

impl Quarantine {
    /// Where the list is kept: below `$STATE_DIRECTORY`, which systemd sets,
    /// or `/var/lib/lingerscope`.
    pub fn place() -> PathBuf {
        env::var_os("STATE_DIRECTORY")
            .map_or_else(|| PathBuf::from("/var/lib/lingerscope"), PathBuf::from)
            .join("quarantine.json")
    }

    /// Reads the list; an absent one is empty.
    ///
    /// # Errors
    /// When it exists and cannot be read: then nothing can be said about
    /// what must not be probed.
    pub fn open(file: &Path) -> Result<Self> {
        let entries = match fs::metadata(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            found => {
                let mend = || {
                    format!(
                        "{} cannot be read: mend it, or delete it to probe every program again",
                        file.display()
                    )
                };
                anyhow::ensure!(found.with_context(mend)?.len() <= MAX_BYTES, mend());
                serde_json::from_slice(&fs::read(file).with_context(mend)?).with_context(mend)?
            }
        };
        Ok(Self {
            file: file.to_owned(),
            entries,
        })
    }

    /// Builds in the list.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no build is in the list.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of a build, if it is in the list.
    pub fn find(&self, build_id: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.build_id == build_id)
    }

    /// The file of the list.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Adds a program, once; whether it is new.
    ///
    /// # Errors
    /// When the list cannot be written; the entry then holds for this run.
    pub fn add(&mut self, entry: Entry) -> Result<bool> {
        if self.find(&entry.build_id).is_some() {
            return Ok(false);
        }
        self.entries.push(entry);
        let surplus = self.entries.len().saturating_sub(MAX_ENTRIES);
        self.entries.drain(..surplus);
        let write = || -> io::Result<()> {
            if let Some(folder) = self.file.parent() {
                fs::create_dir_all(folder)?;
            }
            // Replaced as a whole: a crash leaves the old list.
            let draft = self.file.with_extension("new");
            fs::write(&draft, serde_json::to_vec_pretty(&self.entries)?)?;
            fs::rename(draft, &self.file)
        };
        write().with_context(|| format!("cannot write {}", self.file.display()))?;
        Ok(true)
    }
}

/// Whether a wait status tells of a death that probes could have caused:
/// an illegal instruction, a trap, a bus error, a wrong address, a refused
/// system call.
pub fn suspicious_signal(status: u32) -> Option<i32> {
    let signal = (status & 0x7f) as i32;
    [
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGBUS,
        libc::SIGSEGV,
        libc::SIGSYS,
    ]
    .contains(&signal)
    .then_some(signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: usize) -> Entry {
        Entry {
            build_id: format!("{number:x}"),
            exe: "/bin/x".into(),
            signal: 11,
            when: "2026-01-01T00:00:00Z".into(),
        }
    }

    #[test]
    fn outlives_the_run_and_stays_bounded() {
        let folder = env::temp_dir().join(format!("lingerscope-quarantine-{}", std::process::id()));
        let file = folder.join("quarantine.json");
        let mut list = Quarantine::open(&file).unwrap();
        for number in 0..MAX_ENTRIES + 5 {
            assert!(list.add(entry(number)).unwrap());
        }
        assert!(!list.add(entry(7)).unwrap());
        let again = Quarantine::open(&file).unwrap();
        assert_eq!(again.entries.len(), MAX_ENTRIES);
        assert!(again.find("0").is_none() && again.find("7").is_some());
        fs::write(&file, b"not a list").unwrap();
        assert!(format!("{:#}", Quarantine::open(&file).unwrap_err()).contains("delete it"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn ordinary_ends_are_not_suspicious() {
        assert_eq!(suspicious_signal(11), Some(11));
        assert_eq!(suspicious_signal(0x80 | 4), Some(4));
        for status in [0, 1 << 8, 15, 9, 2] {
            assert_eq!(suspicious_signal(status), None);
        }
    }
}
