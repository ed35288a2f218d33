//! One process and no later one of its id.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// A process that its pidfd names for good.
pub(super) struct Held(OwnedFd);

impl Held {
    /// Takes hold of the process with this id.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two numbers and returns a new descriptor,
        // close-on-exec by itself.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Whether it is there, ended but not reaped included.
    pub(super) fn exists(&self) -> bool {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: signal 0 is not sent, only the right to send it is looked at.
        let outcome =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), 0, none, 0) };
        outcome == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
    }
}
