//! Handing a message over.

use std::{
    fs::File,
    io::{self, IoSlice, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg},
    },
};

use super::JournalError;

/// A journal that does not read is not waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Socket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Socket {
    /// Checks that somebody listens. The socket stays unconnected, so that it
    /// outlives a restart of the journal.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        let open = || {
            UnixDatagram::unbound()?.connect(path)?;
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Self {
                socket,
                path: path.to_owned(),
            }),
            Err(source) => Err(JournalError::Absent {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Sends one message, as a datagram or, when it is too long for one, as a
    /// memory file.
    pub(super) fn send(&self, message: &[u8]) -> Result<(), JournalError> {
        match self.socket.send_to(message, &self.path) {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
                self.send_file(message)
                    .map_err(|source| JournalError::TooLong {
                        length: message.len(),
                        source,
                    })
            }
            Err(source)
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Err(JournalError::Absent {
                    path: self.path.clone(),
                    source,
                })
            }
            Err(source) => Err(JournalError::Refused {
                path: self.path.clone(),
                source,
            }),
        }
    }

    fn send_file(&self, message: &[u8]) -> io::Result<()> {
        let file = sealed(message)?;
        let address = UnixAddr::new(&self.path)?;
        let descriptors = [file.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        loop {
            match sendmsg(
                self.socket.as_raw_fd(),
                &[IoSlice::new(&[])],
                &control,
                MsgFlags::MSG_NOSIGNAL,
                Some(&address),
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A memory file that nobody can change any more; journald takes no other.
fn sealed(message: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = memfd_create(
        c"lingerscope-message",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?;
    let mut file = File::from(descriptor);
    file.write_all(message)?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_journal_is_said_with_the_mend() {
        let error = Socket::open(Path::new("/nonexistent/socket")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("no journal listens at /nonexistent/socket"),
            "{text}"
        );
        assert!(
            text.contains("systemd-journald") && text.contains("--journal"),
            "{text}"
        );
    }
}
