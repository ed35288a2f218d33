//! Files of our own that save work between runs, in a directory that only we
//! can write: below `$CACHE_DIRECTORY`, which systemd sets, or
//! `/var/cache/lingerscope`. An empty variable turns it off.
//!
//! A cache is never needed: where the directory cannot be used there is none,
//! and a file that is damaged, or not ours, is counted and left alone.

use std::{
    cell::Cell,
    env,
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Files in the directory; the oldest leave.
const MAX_FILES: usize = 512;
/// Bytes of all of them.
const MAX_BYTES: u64 = 64 << 20;
/// Bytes of one.
pub const MAX_FILE: u64 = 8 << 20;
/// Entries of the directory that are looked at.
const MAX_LISTED: usize = 16_384;
/// What our files are called at the end, and those that are being written.
const FINISHED: &str = "cache";
const DRAFT: &str = "draft";

/// An open directory of such files.
#[derive(Debug)]
pub struct Cache {
    directory: File,
    max_files: usize,
    max_bytes: u64,
    ignored: Cell<u64>,
}

impl Cache {
    /// Opens the directory; `None`, with a message for developers, where it
    /// cannot be used.
    pub fn open() -> Option<Self> {
        let place = env::var_os("CACHE_DIRECTORY")
            .map_or_else(|| PathBuf::from("/var/cache/lingerscope"), PathBuf::from);
        if place.as_os_str().is_empty() {
            return None;
        }
        match Self::at(&place) {
            Ok(cache) => Some(cache),
            Err(error) => {
                tracing::debug!(directory = %place.display(), %error, "no cache on disk");
                None
            }
        }
    }

    /// Opens a directory, which is made if only its last part is missing.
    ///
    /// # Errors
    /// When it cannot be opened, or others can write it.
    pub fn at(place: &Path) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(place)?;
        let metadata = directory.metadata()?;
        if !metadata.is_dir() || !is_ours(&metadata) {
            let why = "it is not ours alone: another user owns it or may write it";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(Self {
            directory,
            max_files: MAX_FILES,
            max_bytes: MAX_BYTES,
            ignored: Cell::new(0),
        })
    }

    /// A file's content; `None` when there is none that can be trusted.
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(self.path(name, FINISHED)?);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => {
                self.ignore();
                return None;
            }
        };
        let content = read_ours(file);
        if content.is_none() {
            self.ignore();
        }
        content
    }

    /// Counts a file that was not believed.
    pub fn ignore(&self) {
        self.ignored.set(self.ignored.get() + 1);
    }

    /// Files that were not believed.
    pub fn ignored(&self) -> u64 {
        self.ignored.get()
    }

    /// Puts a file in place as a whole, and takes the oldest away where there
    /// are too many.
    ///
    /// # Errors
    /// When it is too large or cannot be written.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let finished = self.path(name, FINISHED);
        let draft = self.path(&format!("{name}.{}", std::process::id()), DRAFT);
        let (Some(finished), Some(draft)) = (finished, draft) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if content.len() as u64 > MAX_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&draft)?;
            file.write_all(content)?;
            fs::rename(&draft, finished)
        };
        let written = write();
        if written.is_err() {
            drop(fs::remove_file(&draft));
        }
        self.evict();
        written
    }

    /// Keeps the bounds: the oldest files leave.
    fn evict(&self) {
        let Ok(entries) = fs::read_dir(self.root()) else {
            return;
        };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .take(MAX_LISTED)
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let kind = path.extension().and_then(OsStr::to_str)?;
                let metadata = fs::symlink_metadata(&path).ok()?;
                ([FINISHED, DRAFT].contains(&kind) && !metadata.is_dir()).then(|| {
                    (
                        metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                        metadata.len(),
                        path,
                    )
                })
            })
            .collect();
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, size, _)| size).sum();
        let mut count = files.len();
        for (_, size, path) in files {
            if count <= self.max_files && bytes <= self.max_bytes {
                break;
            }
            drop(fs::remove_file(path));
            count -= 1;
            bytes = bytes.saturating_sub(size);
        }
    }

    /// The directory itself, wherever its name leads by now.
    fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }

    fn path(&self, name: &str, kind: &str) -> Option<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        let sound = (1..=200).contains(&name.len()) && name.bytes().all(plain);
        (sound && !name.starts_with('.')).then(|| self.root().join(format!("{name}.{kind}")))
    }
}

/// The content of a file that nobody else could have written.
fn read_ours(file: File) -> Option<Vec<u8>> {
    let metadata = file.metadata().ok()?;
    let sound = metadata.is_file()
        && metadata.nlink() == 1
        && is_ours(&metadata)
        && metadata.len() <= MAX_FILE;
    if !sound {
        return None;
    }
    let mut content = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut content).ok()?;
    (content.len() as u64 <= MAX_FILE).then_some(content)
}

/// Whether only we can write it.
fn is_ours(metadata: &fs::Metadata) -> bool {
    const OTHERS: u32 = 0o077;
    metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & OTHERS == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                env::temp_dir().join(format!("lingerscope-cache-{name}-{}", std::process::id()));
            drop(fs::remove_dir_all(&path));
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = Folder::new("again");
        let cache = Cache::at(&folder.0).unwrap();
        assert_eq!(cache.read("one"), None);
        cache.write("one", b"first").unwrap();
        cache.write("one", b"second").unwrap();
        let again = Cache::at(&folder.0).unwrap();
        assert_eq!(again.read("one").as_deref(), Some(&b"second"[..]));
        assert_eq!((cache.ignored(), again.ignored()), (0, 0));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.0), 0o700);
        assert_eq!(mode(&folder.0.join("one.cache")), 0o600);
        assert!(cache.write("../out", b"").is_err() && cache.write("", b"").is_err());
        assert!(cache.write("big", &vec![0; MAX_FILE as usize + 1]).is_err());
    }

    #[test]
    fn what_others_could_write_is_not_believed() {
        let folder = Folder::new("others");
        let cache = Cache::at(&folder.0).unwrap();
        let file = folder.0.join("one.cache");
        cache.write("one", b"x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(cache.read("one"), None);
        fs::rename(&file, folder.0.join("target")).unwrap();
        symlink("target", &file).unwrap();
        assert_eq!(cache.read("one"), None);
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(cache.read("one"), None);
        assert_eq!(cache.ignored(), 3);
        if nix::unistd::geteuid().is_root() {
            cache.write("two", b"x").unwrap();
            let two = folder.0.join("two.cache");
            std::os::unix::fs::chown(&two, Some(65534), None).unwrap();
            assert_eq!(cache.read("two"), None);
            std::os::unix::fs::chown(&folder.0, Some(65534), None).unwrap();
            assert!(Cache::at(&folder.0).is_err());
            std::os::unix::fs::chown(&folder.0, Some(0), None).unwrap();
        }
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Cache::at(&folder.0).is_err());
    }

    #[test]
    fn the_oldest_leave() {
        let folder = Folder::new("oldest");
        let mut cache = Cache::at(&folder.0).unwrap();
        (cache.max_files, cache.max_bytes) = (3, 100);
        let start = SystemTime::now() - std::time::Duration::from_secs(100);
        for (number, size) in [(0, 10), (1, 10), (2, 10), (3, 80)] {
            cache.write(&format!("n{number}"), &vec![7; size]).unwrap();
            let file = File::open(folder.0.join(format!("n{number}.cache"))).unwrap();
            file.set_modified(start + std::time::Duration::from_secs(number))
                .unwrap();
        }
        let left: Vec<bool> = (0..4)
            .map(|number| cache.read(&format!("n{number}")).is_some())
            .collect();
        assert_eq!(left, [false, true, true, true]);
        cache.write("n4", &[7; 15]).unwrap();
        assert!(cache.read("n1").is_none() && cache.read("n3").is_some());
    }
}
