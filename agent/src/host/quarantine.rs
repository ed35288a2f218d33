//! Builds that died of a fault while they were probed, or shortly after: for
//! the user whose process it was, the same file is not probed again for a
//! while, or until someone who has looked at it takes it off the list.
//!
//! An entry holds for one user and one file, so that nobody can have a program
//! refused to others. The list is a file that several writers share.

mod file;

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::module::Module;
use file::State;

/// How long an entry holds, unless the settings say otherwise.
pub const PERIOD: Duration = Duration::from_hours(7 * 24);
/// Most entries; whoever has most of them loses his oldest.
const MAX_ENTRIES: usize = 256;

/// A file as entries know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Build id, hexadecimal, where it has one.
    pub build_id: Option<String>,
    /// Device number, as `stat` tells it.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// When the file was last changed, in seconds and nanoseconds since the
    /// epoch; the kernel sets it.
    pub changed: (i64, i64),
}

impl Build {
    /// What tells a file from others; `None` when its state cannot be read.
    pub fn of(module: &Module) -> Option<Self> {
        let stamp = module.stamp()?;
        Some(Self {
            build_id: module.build_id.clone(),
            device: stamp.device,
            inode: stamp.inode,
            changed: stamp.changed,
        })
    }

    /// Whether it is the same file with the same contents. With a build id,
    /// device and time do not count: a container's root gets another device
    /// at each start, and a disk another one at a boot.
    fn is(&self, other: &Self) -> bool {
        let same_contents = match (&self.build_id, &other.build_id) {
            (Some(id), Some(other)) => id == other,
            (None, None) => self.device == other.device && self.changed == other.changed,
            _ => false,
        };
        same_contents && self.inode == other.inode
    }
}

/// One death.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The executable.
    #[serde(flatten)]
    pub build: Build,
    /// Its path, escaped.
    pub exe: String,
    /// The user that ran it.
    pub uid: u32,
    /// The signal that ended it.
    pub signal: i32,
    /// When.
    #[serde(with = "file::time")]
    pub when: Timestamp,
    /// The entry holds until then.
    #[serde(with = "file::time")]
    pub until: Timestamp,
}

impl Entry {
    fn is_of(&self, build: &Build, uid: u32) -> bool {
        self.uid == uid && self.build.is(build)
    }

    /// What names it in `lingerscope quarantine clear`.
    pub fn name(&self) -> &str {
        self.build.build_id.as_deref().unwrap_or(&self.exe)
    }

    /// The command that takes it off the list.
    pub fn mend(&self) -> String {
        let name = self.name();
        // Quotes are escaped in it.
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
        let quote = if name.chars().all(plain) { "" } else { "'" };
        format!("lingerscope quarantine clear {quote}{name}{quote}")
    }
}

/// Which entries are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// All of them.
    All,
    /// Those with this build id, or this path.
    Named(&'a str),
}

impl Which<'_> {
    fn means(self, entry: &Entry) -> bool {
        match self {
            Self::All => true,
            Self::Named(name) => entry.exe == name || entry.build.build_id.as_deref() == Some(name),
        }
    }
}

/// The list.
#[derive(Debug)]
pub struct Quarantine {
    path: PathBuf,
    period: Duration,
    entries: Vec<Entry>,
    /// The file when it was read.
    state: Option<State>,
    /// Entries that could not be written; they hold for this run.
    unsaved: Vec<Entry>,
}

impl Quarantine {
    /// Where the list is kept: below `$STATE_DIRECTORY`, which systemd sets,
    /// or `/var/lib/lingerscope`.
    pub fn place() -> PathBuf {
        env::var_os("STATE_DIRECTORY")
            .map_or_else(|| PathBuf::from("/var/lib/lingerscope"), PathBuf::from)
            .join("quarantine.json")
    }

    /// Reads the list; an absent one is empty. One that cannot be understood
    /// is set aside with a warning.
    pub fn open(path: &Path) -> Self {
        let mut list = Self {
            path: path.to_owned(),
            period: PERIOD,
            entries: Vec::new(),
            state: None,
            unsaved: Vec::new(),
        };
        list.read();
        list
    }

    /// How long entries hold that are made from now on.
    pub fn set_period(&mut self, period: Duration) {
        self.period = period;
    }

    /// Reads the list again if somebody has changed it.
    pub fn refresh(&mut self) {
        if State::of(&self.path) != self.state {
            self.read();
        }
    }

    fn read(&mut self) {
        self.entries = file::load(&self.path);
        self.state = State::of(&self.path);
    }

    /// The entries that hold now.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let now = Timestamp::now();
        let all = self.entries.iter().chain(&self.unsaved);
        all.filter(move |entry| now < entry.until)
    }

    /// The entry of a file that a user runs, if there is one.
    pub fn find(&self, build: &Build, uid: u32) -> Option<&Entry> {
        self.entries().find(|entry| entry.is_of(build, uid))
    }

    /// Adds a death, in place of an earlier one of the same file and user.
    ///
    /// # Errors
    /// When the list cannot be written; the entry then holds for this run.
    pub fn add(&mut self, build: Build, exe: String, uid: u32, signal: i32) -> Result<Entry> {
        let when = Timestamp::now();
        let entry = Entry {
            build,
            exe,
            uid,
            signal,
            when,
            until: when.saturating_add(self.period).unwrap_or(Timestamp::MAX),
        };
        let added = file::change(&self.path, |entries| {
            entries.retain(|old| when < old.until && !old.is_of(&entry.build, uid));
            entries.push(entry.clone());
            while entries.len() > MAX_ENTRIES {
                remove_one(entries);
            }
        });
        match added {
            Ok(()) => {
                self.read();
                Ok(entry)
            }
            Err(error) => {
                if self.unsaved.len() < MAX_ENTRIES {
                    self.unsaved.push(entry);
                }
                Err(error).with_context(|| format!("cannot write {}", self.path.display()))
            }
        }
    }

    /// Takes entries off the list, and returns them.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn clear(&mut self, which: Which<'_>) -> Result<Vec<Entry>> {
        let mut cleared = Vec::new();
        // Nothing is written, or made, where nothing is meant.
        if self.entries.iter().any(|entry| which.means(entry)) {
            file::change(&self.path, |entries| {
                cleared.extend(entries.extract_if(.., |entry| which.means(entry)));
            })
            .with_context(|| format!("cannot write {}", self.path.display()))?;
            self.read();
        }
        let now = Timestamp::now();
        cleared.retain(|entry| now < entry.until);
        Ok(cleared)
    }
}

/// Removes the oldest entry of the user who has most: nobody can push out
/// what is remembered of others.
fn remove_one(entries: &mut Vec<Entry>) {
    let of = |uid: u32| entries.iter().filter(|entry| entry.uid == uid).count();
    let most = entries
        .iter()
        .map(|entry| entry.uid)
        .max_by_key(|uid| of(*uid));
    if let Some(at) = entries.iter().position(|entry| Some(entry.uid) == most) {
        entries.remove(at);
    }
}

#[cfg(test)]
mod tests;
