//! Files that a process has mapped: opened so that nothing the target does can
//! harm us, and known by identity, never by name.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{MetadataExt as _, OpenOptionsExt as _},
        },
    },
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{
    fcntl::{FcntlArg, OFlag, OpenHow, ResolveFlag, SealFlag, fcntl, openat2},
    sys::memfd::{MFdFlags, memfd_create},
};

use serde::{Deserialize, Serialize};

use super::mapping::Mapping;

/// Larger files are not read: nothing sane maps them as code.
const MAX_BYTES: u64 = 8 << 30;
/// A file system that does not answer by then is given up.
const DEADLINE: Duration = Duration::from_secs(2);

/// Identity of a mapped file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId {
    /// Device as in `/proc/PID/maps`.
    pub device: (u32, u32),
    /// Inode.
    pub inode: u64,
}

impl ModuleId {
    /// Of the file that a mapping shows.
    pub const fn of(mapping: &Mapping) -> Self {
        Self {
            device: mapping.device,
            inode: mapping.inode,
        }
    }
}

/// What tells one state of one file from every other: the kernel sets the
/// time of change whenever a file is written, and nobody else can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// Device, as `stat` tells it.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Seconds and nanoseconds since the epoch.
    pub changed: (i64, i64),
}

impl Stamp {
    /// A file's present one; `None` when it cannot be told.
    pub fn of(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        Some(Self {
            size: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// The same as numbers.
    pub fn words(&self) -> [u64; 5] {
        let (seconds, nanoseconds) = self.changed;
        [
            self.size,
            self.device,
            self.inode,
            seconds as u64,
            nanoseconds as u64,
        ]
    }
}

/// An opened file of a process.
#[derive(Debug)]
pub struct Module {
    /// Its identity.
    pub id: ModuleId,
    /// Path as the target sees it; raw.
    pub path: PathBuf,
    /// Hexadecimal build id; `None` when the file has none, or was not read
    /// yet.
    pub build_id: Option<String>,
    /// The file itself; only the reader looks into it.
    pub file: File,
}

impl Module {
    /// Opens the file behind a mapping.
    ///
    /// # Errors
    /// When it cannot be opened, is not the mapped file any more, is no
    /// regular file, is too large, or its file system does not answer.
    pub fn open(pid: u32, mapping: &Mapping) -> Result<Self> {
        let (wanted, id) = (
            mapping.clone(),
            ModuleId {
                device: mapping.device,
                inode: mapping.inode,
            },
        );
        let shown = PathBuf::from(OsStr::from_bytes(
            mapping
                .path
                .strip_suffix(b" (deleted)")
                .unwrap_or(&mapping.path),
        ));
        let file = with_deadline(move || open_mapped(pid, &wanted))
            .and_then(|result| result)
            .with_context(|| format!("cannot open {}", shown.display()))?;
        Ok(Self::of_file(id, shown, file))
    }

    /// Opens a file of our own namespace.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_path(path: &Path) -> Result<Self> {
        let wanted = path.to_owned();
        let file = with_deadline(move || open_regular(&wanted))
            .and_then(|result| result)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let metadata = file.metadata()?;
        let device = nix::sys::stat::major(metadata.dev()) as u32;
        let device = (device, nix::sys::stat::minor(metadata.dev()) as u32);
        Ok(Self::of_file(
            ModuleId {
                device,
                inode: metadata.ino(),
            },
            path.to_owned(),
            file,
        ))
    }

    fn of_file(id: ModuleId, path: PathBuf, file: File) -> Self {
        Self {
            id,
            path,
            build_id: None,
            file,
        }
    }

    /// The file's present state; `None` when it cannot be told.
    pub fn stamp(&self) -> Option<Stamp> {
        Stamp::of(&self.file)
    }

    /// The opened file, for reads at given places.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn opened(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// A path to exactly this file, whatever has become of its name; valid in
    /// this process while the module lives.
    pub fn descriptor_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// Opens a regular file without blocking on devices and pipes.
pub fn open_regular(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "not a regular file");
    ensure!(metadata.len() <= MAX_BYTES, "larger than {MAX_BYTES} bytes");
    Ok(file)
}

fn open_mapped(pid: u32, mapping: &Mapping) -> Result<File> {
    let by_range = format!(
        "/proc/{pid}/map_files/{:x}-{:x}",
        mapping.start, mapping.end
    );
    // The range names the mapped file itself, also a replaced or deleted one.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(by_range)
        .or_else(|_| open_by_path(pid, mapping))?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "not a regular file");
    ensure!(metadata.len() <= MAX_BYTES, "larger than {MAX_BYTES} bytes");
    ensure!(
        metadata.ino() == mapping.inode,
        "the file was replaced since the process started"
    );
    Ok(file)
}

/// Below the target's root, so that its symbolic links cannot lead outside.
fn open_by_path(pid: u32, mapping: &Mapping) -> io::Result<File> {
    let root = File::open(format!("/proc/{pid}/root"))?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = OsStr::from_bytes(&mapping.path);
    Ok(openat2(&root, path, how)?.into())
}

/// Bytes as a file that nobody can change.
///
/// # Errors
/// What the kernel answers.
pub fn sealed(bytes: &[u8]) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("image", flags)?);
    file.write_all(bytes)?;
    fcntl(
        &file,
        FcntlArg::F_ADD_SEALS(
            SealFlag::F_SEAL_SHRINK
                | SealFlag::F_SEAL_GROW
                | SealFlag::F_SEAL_WRITE
                | SealFlag::F_SEAL_SEAL,
        ),
    )?;
    Ok(file)
}

/// Runs `work` on a thread of its own and leaves it behind when it hangs.
fn with_deadline<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("file-reader".into())
        .spawn(move || {
            // The receiver is gone when the deadline has passed.
            drop(sender.send(work()));
        })?;
    match receiver.recv_timeout(DEADLINE) {
        Ok(value) => Ok(value),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            bail!("its file system did not answer within {DEADLINE:?}")
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(anyhow!("the reading thread ended early")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mapping;

    #[test]
    fn opens_mapped_files_by_identity() {
        let pid = std::process::id();
        let mappings = mapping::of(pid).unwrap();
        let code = mappings
            .iter()
            .find(|m| m.executable && m.is_file())
            .unwrap();
        let module = Module::open(pid, code).unwrap();
        assert_eq!(Stamp::of(&module.file).unwrap().inode, code.inode);
        assert!(module.descriptor_path().exists());
        let replaced = Mapping {
            inode: code.inode + 1,
            ..code.clone()
        };
        assert!(Module::open(pid, &replaced).is_err());
    }
}
