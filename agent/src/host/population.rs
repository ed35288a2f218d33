//! The memory of every process, cheaply: `/proc/PID/statm` through files that
//! stay open, and `/proc/PID/stat` once.
//!
//! An open `/proc/PID/statm` belongs to one process, not to its id: after the
//! process is gone a read fails with `ESRCH` even if the id is in use again
//! (fs/proc/base.c: `proc_single_show` looks the task up by the inode's pid
//! structure). That spares asking for the start time in every round.

use std::{ffi::CString, fs::File, io, os::unix::fs::FileExt as _};

/// More than the kernel ever prints: seven numbers of at most 20 digits.
const STATM_BYTES: usize = 192;
/// `stat` up to field 24; the name has at most 64 bytes (fs/proc/array.c).
const STAT_BYTES: usize = 1024;
/// Longest `status` and `smaps_rollup` that is read.
const STATUS_BYTES: usize = 16 << 10;
/// PF_KTHREAD, include/linux/sched.h
const KERNEL_THREAD: u64 = 0x0020_0000;

/// A process for its whole life: a process id alone is used again.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Process id in our namespace.
    pub pid: u32,
    /// Start, in clock ticks since boot.
    pub start_time: u64,
}

/// Sizes from `/proc/PID/statm`, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// The address space. 0: a kernel thread, or a process that has ended.
    pub size: u64,
    /// Anonymous pages that are resident: all resident ones less those of
    /// files and shared memory.
    pub anonymous: u64,
}

/// What `/proc/PID/stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Which process it is.
    pub identity: Identity,
    /// Number of threads.
    pub threads: u32,
    /// Resident pages of all kinds.
    pub resident: u64,
    /// Has no address space.
    pub kernel_thread: bool,
    /// Has ended and waits for its parent.
    pub zombie: bool,
}

impl Stat {
    /// Reads it.
    ///
    /// # Errors
    /// `NotFound` or `ESRCH` when there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut buffer = [0; STAT_BYTES];
        let text = read_at_start(&File::open(format!("/proc/{pid}/stat"))?, &mut buffer)?;
        Self::parse(pid, text).ok_or_else(unexpected)
    }

    fn parse(pid: u32, text: &[u8]) -> Option<Self> {
        // The name stands in parentheses and may contain anything, such as
        // `) R 1 2 3`: the last parenthesis ends it.
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let mut fields = words(text.get(end + 1..)?);
        // Field 3 comes first; `nth` counts on from what was taken.
        let state = fields.next()?;
        let flags = number(fields.nth(5)?)?;
        let threads = number(fields.nth(10)?)?;
        let start_time = number(fields.nth(1)?)?;
        let resident = number(fields.nth(1)?)?;
        Some(Self {
            identity: Identity { pid, start_time },
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
            resident,
            kernel_thread: flags & KERNEL_THREAD != 0,
            zombie: matches!(state, b"Z" | b"X"),
        })
    }
}

/// An open `/proc/PID/statm`.
#[derive(Debug)]
pub struct Meter {
    file: File,
}

impl Meter {
    /// Opens it. To know whose it is, ask [`Stat::of`] next and read the meter
    /// after that: if the read succeeds, all three met the same process.
    ///
    /// # Errors
    /// `NotFound` or `ESRCH` when there is no such process, `EMFILE` when too
    /// many files are open.
    pub fn open(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/statm")).map(|file| Self { file })
    }

    /// Reads it.
    ///
    /// # Errors
    /// `ESRCH` when the process is gone.
    pub fn read(&self) -> io::Result<Pages> {
        let mut buffer = [0; STATM_BYTES];
        parse_statm(read_at_start(&self.file, &mut buffer)?).ok_or_else(unexpected)
    }
}

fn parse_statm(text: &[u8]) -> Option<Pages> {
    let mut fields = words(text);
    let size = number(fields.next()?)?;
    let resident = number(fields.next()?)?;
    let shared = number(fields.next()?)?;
    Some(Pages {
        size,
        // Read one after the other by the kernel, so they may not fit.
        anonymous: resident.saturating_sub(shared),
    })
}

/// Device and inode of a process's executable.
pub type Program = (u32, u32, u64);

/// Which program a process runs. Asks nobody but this kernel: a file server
/// that does not answer holds up nothing.
///
/// # Errors
/// `NotFound` or `ESRCH` when there is no such process or it has no
/// executable, `EACCES` without CAP_SYS_PTRACE.
pub fn program(pid: u32) -> io::Result<Program> {
    let path = CString::new(format!("/proc/{pid}/exe"))?;
    // SAFETY: plain data, filled in by the kernel.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a null, and there is room for the answer.
    let result = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT,
            libc::STATX_INO,
            &raw mut found,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

/// Swapped-out bytes of a process, from `/proc/PID/status`.
///
/// # Errors
/// `NotFound` or `ESRCH` when there is no such process; `InvalidData` for one
/// without an address space.
pub fn swapped_bytes(pid: u32) -> io::Result<u64> {
    let mut buffer = [0; STATUS_BYTES];
    let text = read_at_start(&File::open(format!("/proc/{pid}/status"))?, &mut buffer)?;
    kilobytes(text, b"VmSwap:").ok_or_else(unexpected)
}

/// Anonymous memory counted page by page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exact {
    /// Resident anonymous bytes and swap.
    pub anonymous_and_swap: u64,
    /// The part that the process has given back with `MADV_FREE` and that the
    /// kernel takes when it needs memory.
    pub lazily_freed: u64,
}

/// Walks all page tables of a process (`/proc/PID/smaps_rollup`). That holds
/// its mmap lock meanwhile and stalls it when done often, so do it once, and
/// not for a huge one.
///
/// # Errors
/// As for [`swapped_bytes`]; `EACCES` without CAP_SYS_PTRACE.
pub fn exact(pid: u32) -> io::Result<Exact> {
    let mut buffer = [0; STATUS_BYTES];
    let file = File::open(format!("/proc/{pid}/smaps_rollup"))?;
    let text = read_at_start(&file, &mut buffer)?;
    let anonymous = kilobytes(text, b"Anonymous:").ok_or_else(unexpected)?;
    Ok(Exact {
        anonymous_and_swap: anonymous + kilobytes(text, b"Swap:").unwrap_or(0),
        lazily_freed: kilobytes(text, b"LazyFree:").unwrap_or(0),
    })
}

/// What the file holds, up to the buffer's length.
fn read_at_start<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let length = file.read_at(buffer, 0)?;
    Ok(buffer.get(..length).unwrap_or_default())
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
}

/// A decimal number; `None` for anything else, also for one that is too big.
fn number(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Value of the line that starts with `key`, in bytes.
fn kilobytes(text: &[u8], key: &[u8]) -> Option<u64> {
    let line = text
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(key))?;
    number(words(line).next()?)?.checked_mul(1024)
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "/proc has an unexpected form")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn knows_itself() {
        let pid = std::process::id();
        let meter = Meter::open(pid).unwrap();
        let stat = Stat::of(pid).unwrap();
        assert!(!stat.kernel_thread && !stat.zombie && stat.threads > 0);
        assert_eq!(
            stat.identity.start_time,
            crate::host::process::start_time(pid).unwrap()
        );
        let block = vec![1u8; 32 << 20];
        let pages = meter.read().unwrap();
        // Without swap this is what `status` says, give or take what other
        // tests allocate meanwhile.
        let status = crate::host::process::anonymous_bytes(pid).unwrap();
        assert!(pages.anonymous * 4096 > 30 << 20);
        assert!((pages.anonymous * 4096).abs_diff(status) < 256 << 20);
        let exact = exact(pid).unwrap();
        assert!(exact.anonymous_and_swap > 30 << 20);
        drop(block);
        assert!(swapped_bytes(pid).is_ok());
    }

    #[test]
    fn a_meter_outlives_its_process_and_says_so() {
        let mut child = Command::new("sleep")
            .arg("100")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let meter = Meter::open(child.id()).unwrap();
        child.kill().unwrap();
        // A zombie has no address space any more. Its parent is told by a
        // signal, so wait for the state.
        let started = std::time::Instant::now();
        while !Stat::of(child.id()).unwrap().zombie {
            assert!(started.elapsed().as_secs() < 10);
        }
        assert_eq!(meter.read().unwrap(), Pages::default());
        child.wait().unwrap();
        let error = meter.read().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn hostile_names_do_not_shift_fields() {
        let rest = "S 1 2 3 4 5 2097152 7 8 9 10 11 12 13 14 15 16 3 0 987 19 42 x";
        for name in ["a", "a b", ") R 1 1", "((", "\u{1b}[2J\n", ""] {
            let text = format!("7 ({name}) {rest}");
            let stat = Stat::parse(7, text.as_bytes()).unwrap();
            assert_eq!(stat.identity.start_time, 987, "{name:?}");
            assert_eq!((stat.threads, stat.resident), (3, 42));
            assert!(stat.kernel_thread && !stat.zombie);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Stat::parse(1, &text);
            let _ = parse_statm(&text);
            let _ = kilobytes(&text, b"VmSwap:");
        }

        #[test]
        fn numbers_are_read(value in any::<u64>()) {
            prop_assert_eq!(number(value.to_string().as_bytes()), Some(value));
            prop_assert_eq!(number(format!("{value}0000000000000000000").as_bytes()).is_some(), value == 0);
        }
    }
}
