//! The list as a file: read with bounds, replaced as a whole, by one writer at
//! a time.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::Entry;

/// A longer file is not ours: 256 entries with paths as long as they may be
/// take a third of it.
const MAX_BYTES: u64 = 1 << 20;
/// Counts up with every change that an earlier version cannot read.
const FORMAT: u32 = 2;
/// How long another writer is waited for; each takes some milliseconds, on a
/// busy disk some tens.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is in the file. The first format was a bare list, whose entries told
/// neither file nor user.
#[derive(Serialize, Deserialize)]
struct Contents {
    format: u32,
    entries: Vec<Entry>,
}

/// Tells one state of the file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl State {
    /// `None` when there is no file.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::symlink_metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// Why there are no entries.
enum Fault {
    Absent,
    /// It may be good another time.
    Unreadable(io::Error),
    /// It was written by another version.
    Other(&'static str),
    Damaged(String),
}

fn read(path: &Path) -> Result<Vec<Entry>, Fault> {
    // Not to wait where somebody has put a pipe.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Fault::Absent,
            io::ErrorKind::PermissionDenied => Fault::Unreadable(error),
            _ => Fault::Damaged(error.to_string()),
        })?;
    let metadata = file.metadata().map_err(Fault::Unreadable)?;
    if !metadata.is_file() {
        return Err(Fault::Damaged("it is no regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(Fault::Unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        let why = format!("it is longer than {MAX_BYTES} bytes");
        return Err(Fault::Damaged(why));
    }
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Vec<Entry>, Fault> {
    let damaged = |error: serde_json::Error| Fault::Damaged(error.to_string());
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(damaged)?;
    if value.is_array() {
        return Err(Fault::Other(
            "its entries, made by an earlier version, tell neither file nor user",
        ));
    }
    if value["format"]
        .as_u64()
        .is_some_and(|format| format > u64::from(FORMAT))
    {
        return Err(Fault::Other("it was written by a later version"));
    }
    let contents: Contents = serde_json::from_value(value).map_err(damaged)?;
    Ok(contents.entries)
}

/// The entries. What cannot be understood is set aside and kept.
pub(super) fn load(path: &Path) -> Vec<Entry> {
    match read(path) {
        Ok(entries) => entries,
        Err(Fault::Absent) => Vec::new(),
        Err(Fault::Unreadable(error)) => {
            tracing::warn!(
                "{} cannot be read ({error}): no build counts as quarantined",
                path.display()
            );
            Vec::new()
        }
        Err(Fault::Other(_) | Fault::Damaged(_)) => {
            // Another writer may have set it aside and begun anew meanwhile.
            let locked = Lock::take(path).map(|_lock| load_locked(path));
            locked.unwrap_or_else(|error| {
                tracing::warn!(error = %format_args!("{error:#}"), "{} cannot be understood, and not be set aside", path.display());
                Vec::new()
            })
        }
    }
}

/// As [`load`], by the only writer.
fn load_locked(path: &Path) -> Vec<Entry> {
    let (suffix, why) = match read(path) {
        Ok(entries) => return entries,
        Err(Fault::Absent) => return Vec::new(),
        Err(Fault::Unreadable(error)) => ("damaged", error.to_string()),
        Err(Fault::Other(why)) => ("old", why.to_owned()),
        Err(Fault::Damaged(why)) => ("damaged", why),
    };
    let aside = beside(path, suffix);
    match fs::rename(path, &aside) {
        Ok(()) => tracing::warn!(
            "{} cannot be used ({why}): it is kept as {}, and the quarantine begins anew",
            path.display(),
            aside.display()
        ),
        Err(error) => tracing::warn!(
            "{} cannot be used ({why}), and not be set aside ({error}): no build counts as quarantined",
            path.display()
        ),
    }
    Vec::new()
}

/// Changes the entries; nobody else does meanwhile, and a crash leaves the old
/// list or the new one.
pub(super) fn change(path: &Path, change: impl FnOnce(&mut Vec<Entry>)) -> Result<()> {
    let _lock = Lock::take(path)?;
    let mut entries = load_locked(path);
    change(&mut entries);
    let mut bytes = serde_json::to_vec_pretty(&Contents {
        format: FORMAT,
        entries,
    })?;
    bytes.push(b'\n');
    let draft = beside(path, "new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&draft)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(folder(path))?.sync_all()?;
    Ok(())
}

/// Held by the only writer. A file of its own, because the list is replaced
/// and its directory may be opened by others.
struct Lock(#[expect(dead_code, reason = "closing it unlocks")] File);

impl Lock {
    fn take(path: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder(path))?;
        let place = beside(path, "lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&place)
            .with_context(|| format!("cannot open {}", place.display()))?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(error)) => return Err(error.into()),
                Err(TryLockError::WouldBlock) if began.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => {
                    bail!("another process holds {} for too long", place.display())
                }
            }
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// `quarantine.json` and a suffix.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// Times as RFC 3339.
pub(super) mod time {
    use jiff::Timestamp;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(in super::super) fn serialize<S: Serializer>(
        time: &Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}
