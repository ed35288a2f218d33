//! Control groups of processes: unit, container, and the memory limits up the
//! tree, for the unified hierarchy and for the older memory controller.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::process;

/// Longest `/proc/PID/cgroup`: a dozen hierarchies, each with a long path.
const MAX_MEMBERSHIP: u64 = 64 << 10;
/// Most groups that are remembered.
const MAX_GROUPS: usize = 4096;
/// Deepest path that is followed up.
const MAX_DEPTH: usize = 32;
/// Longest file of a group that is read; `memory.stat` has some 2 KiB.
const MAX_FILE: u64 = 64 << 10;
/// The older controller prints the largest number of pages for "none".
const UNLIMITED_V1: u64 = 1 << 62;

/// Where a process stands. Strings are raw: chosen by whoever made the group.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Path, such as `/system.slice/x.service`.
    pub path: Vec<u8>,
    /// systemd unit that owns it.
    pub unit: Option<String>,
    /// Container id in the path.
    pub container_id: Option<String>,
    /// Directories that may limit memory, from the group itself upwards.
    levels: Vec<PathBuf>,
    older: bool,
}

/// What limits memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// `memory.max`: what is above is reclaimed or killed.
    GroupMax,
    /// `memory.high`: what is above is slowed down.
    GroupHigh,
    /// Memory and swap of the host.
    Host,
}

/// A limit and how much of it is used, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What limits.
    pub kind: LimitKind,
    /// The group's directory; none for the host.
    pub directory: Option<PathBuf>,
    /// In use, without file pages that can be dropped at once
    /// (`inactive_file`).
    pub used: u64,
    /// The limit.
    pub max: u64,
}

impl Limit {
    /// Bytes that are left.
    pub fn headroom(&self) -> u64 {
        self.max.saturating_sub(self.used)
    }
}

impl Group {
    /// The `memory.max` above this group that leaves least, if there is one.
    /// Read anew: limits change.
    pub fn nearest_max(&self) -> Option<Limit> {
        let name = if self.older {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        };
        self.nearest(name, LimitKind::GroupMax)
    }

    /// The `memory.high` above this group that leaves least, if there is one.
    /// The older controller has none.
    pub fn nearest_high(&self) -> Option<Limit> {
        if self.older {
            return None;
        }
        self.nearest("memory.high", LimitKind::GroupHigh)
    }

    fn nearest(&self, name: &str, kind: LimitKind) -> Option<Limit> {
        self.levels
            .iter()
            .filter_map(|directory| {
                let max = number(&directory.join(name)).filter(|max| *max < UNLIMITED_V1)?;
                Some(Limit {
                    kind,
                    used: self.used(directory)?,
                    max,
                    directory: Some(directory.clone()),
                })
            })
            .min_by_key(Limit::headroom)
    }

    fn used(&self, directory: &Path) -> Option<u64> {
        let (current, inactive) = if self.older {
            ("memory.usage_in_bytes", "total_inactive_file ")
        } else {
            ("memory.current", "inactive_file ")
        };
        let current = number(&directory.join(current))?;
        let droppable = read(&directory.join("memory.stat"))
            .ok()
            .and_then(|text| {
                text.lines()
                    .find_map(|line| line.strip_prefix(inactive))?
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .unwrap_or(0);
        Some(current.saturating_sub(droppable))
    }
}

/// The hierarchies of this host, and the groups seen so far.
#[derive(Debug, Default)]
pub struct Groups {
    unified: Option<Mount>,
    older_memory: Option<Mount>,
    /// By the whole of `/proc/PID/cgroup`.
    known: HashMap<Vec<u8>, Arc<Group>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// The part of the hierarchy that is mounted.
    root: PathBuf,
    point: PathBuf,
}

impl Groups {
    /// Finds where hierarchies are mounted. None of them is no error: then
    /// there are paths and no limits.
    ///
    /// # Errors
    /// When `/proc/self/mountinfo` cannot be read.
    pub fn of_this_host() -> io::Result<Self> {
        Ok(Self::from_mounts(&fs::read("/proc/self/mountinfo")?))
    }

    fn from_mounts(text: &[u8]) -> Self {
        let mut groups = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            let Some(dash) = words.iter().position(|word| *word == b"-") else {
                continue;
            };
            let (Some(root), Some(point), Some(kind), Some(options)) = (
                words.get(3),
                words.get(4),
                words.get(dash + 1),
                words.get(dash + 3),
            ) else {
                continue;
            };
            let mount = || Mount {
                root: unescaped(root),
                point: unescaped(point),
            };
            let memory = options
                .split(|byte| *byte == b',')
                .any(|option| option == b"memory");
            if *kind == b"cgroup2" && groups.unified.is_none() {
                groups.unified = Some(mount());
            } else if *kind == b"cgroup" && memory && groups.older_memory.is_none() {
                groups.older_memory = Some(mount());
            }
        }
        groups
    }

    /// Group of a process. Bounded: when 4096 groups are in use at once,
    /// further ones are looked up every time.
    ///
    /// # Errors
    /// `NotFound` or `ESRCH` when the process is gone.
    pub fn of(&mut self, pid: u32) -> io::Result<Arc<Group>> {
        let mut membership = Vec::new();
        File::open(format!("/proc/{pid}/cgroup"))?
            .take(MAX_MEMBERSHIP)
            .read_to_end(&mut membership)?;
        if let Some(group) = self.known.get(&membership) {
            return Ok(Arc::clone(group));
        }
        let group = Arc::new(self.resolve(&membership));
        if self.known.len() >= MAX_GROUPS {
            self.known.retain(|_, group| Arc::strong_count(group) > 1);
        }
        if self.known.len() < MAX_GROUPS {
            self.known.insert(membership, Arc::clone(&group));
        }
        Ok(group)
    }

    fn resolve(&self, membership: &[u8]) -> Group {
        let path = process::cgroup_path(membership);
        // The controller is in one hierarchy only.
        let older = self
            .older_memory
            .as_ref()
            .zip(hierarchy(membership, |names| {
                names
                    .split(|byte| *byte == b',')
                    .any(|name| name == b"memory")
            }));
        let unified = self
            .unified
            .as_ref()
            .zip(hierarchy(membership, <[u8]>::is_empty));
        Group {
            unit: process::unit(&path),
            container_id: process::container_id(&path),
            path,
            older: older.is_some(),
            levels: older
                .or(unified)
                .map(|(mount, path)| levels(mount, path))
                .unwrap_or_default(),
        }
    }
}

/// Path in the hierarchy whose controllers are wanted.
fn hierarchy(membership: &[u8], wanted: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
    membership.split(|byte| *byte == b'\n').find_map(|line| {
        let mut parts = line.splitn(3, |byte| *byte == b':');
        let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        wanted(names).then_some(path)
    })
}

/// Directories of a group and those above it, without the root, which has no
/// limit. Empty for a group that is outside of what is mounted here.
fn levels(mount: &Mount, path: &[u8]) -> Vec<PathBuf> {
    let path = Path::new(OsStr::from_bytes(path));
    let Ok(inside) = path.strip_prefix(&mount.root) else {
        return Vec::new();
    };
    let plain = inside
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if !plain {
        return Vec::new();
    }
    inside
        .ancestors()
        .filter(|part| !part.as_os_str().is_empty())
        .take(MAX_DEPTH)
        .map(|part| mount.point.join(part))
        .collect()
}

/// `mountinfo` writes blanks and backslashes as octal numbers.
fn unescaped(word: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\')
            .then(|| std::str::from_utf8(after.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(code) = code {
            out.push(code);
            rest = after.get(3..).unwrap_or_default();
        } else {
            out.push(*first);
            rest = after;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

fn number(file: &Path) -> Option<u64> {
    read(file).ok()?.trim().parse().ok()
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        35 31 0:32 / /sys/fs/cgroup/mem\\040ory rw,relatime shared:4 - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_controller_decides_the_hierarchy() {
        let groups = Groups::from_mounts(MOUNTS);
        let group = groups.resolve(b"4:cpu,memory:/a/b\n0::/system.slice/x.service\n");
        assert_eq!(group.unit.as_deref(), Some("x.service"));
        assert!(group.older);
        assert_eq!(
            group.levels,
            [
                PathBuf::from("/sys/fs/cgroup/mem ory/a/b"),
                PathBuf::from("/sys/fs/cgroup/mem ory/a")
            ]
        );
        let group = groups.resolve(b"0::/u/v\n");
        assert!(!group.older);
        assert_eq!(
            group.levels.first(),
            Some(&PathBuf::from("/sys/fs/cgroup/unified/u/v"))
        );
    }

    #[test]
    fn what_is_not_mounted_here_has_no_limit() {
        let groups = Groups::from_mounts(b"41 31 0:38 /pod /c rw - cgroup2 cgroup2 rw\n");
        assert_eq!(
            groups.resolve(b"0::/pod/x\n").levels,
            [PathBuf::from("/c/x")]
        );
        for outside in [&b"0::/other\n"[..], b"0::/pod/../../etc\n", b"0::/\n", b""] {
            assert_eq!(groups.resolve(outside).levels, Vec::<PathBuf>::new());
        }
        let deep = format!("0::/pod{}\n", "/d".repeat(2000));
        assert_eq!(groups.resolve(deep.as_bytes()).levels.len(), MAX_DEPTH);
    }

    #[test]
    fn the_nearest_limit_leaves_least() {
        // Plain files stand for the kernel's: what is read is text.
        let root = std::env::temp_dir().join(format!("lingerscope-cgroup-{}", std::process::id()));
        let inner = root.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let put = |directory: &Path, name: &str, text: &str| {
            fs::write(directory.join(name), text).unwrap();
        };
        put(&inner, "memory.max", "1000\n");
        put(&inner, "memory.high", "max\n");
        put(&inner, "memory.current", "400\n");
        put(&inner, "memory.stat", "anon 1\ninactive_file 300\n");
        put(&root.join("a"), "memory.max", "900\n");
        put(&root.join("a"), "memory.high", "850\n");
        put(&root.join("a"), "memory.current", "700\n");
        let group = Group {
            levels: vec![inner, root.join("a")],
            ..Group::default()
        };
        let max = group.nearest_max().unwrap();
        assert_eq!((max.used, max.max, max.headroom()), (700, 900, 200));
        assert_eq!(group.nearest_high().unwrap().max, 850);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(group.nearest_max(), None);
    }

    #[test]
    fn groups_are_remembered() {
        let mut groups = Groups::of_this_host().unwrap();
        let first = groups.of(std::process::id()).unwrap();
        let second = groups.of(std::process::id()).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        // Limits may or may not exist here; asking must not fail.
        let _ = (first.nearest_max(), first.nearest_high());
    }
}
