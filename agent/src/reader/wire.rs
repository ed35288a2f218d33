//! Messages between the program and its reader: a header, a body and a
//! payload, by a stream socket; descriptors come with the header.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    poll::PollFlags,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

/// Begins every header; counts up with every change of what is sent.
const MAGIC: u32 = 0x4c53_5201;
const HEADER: usize = 16;
/// Descriptors that a question may carry.
pub(super) const MAX_DESCRIPTORS: usize = 2;
/// Taken from the socket at once, and memory is asked for in such steps: what
/// a header claims is not believed before it comes.
const STEP: usize = 256 << 10;

/// One message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    /// An answer has its question's.
    pub(super) number: u32,
    pub(super) body: Vec<u8>,
    /// What needs no decoding.
    pub(super) payload: Vec<u8>,
}

/// Largest body and payload that are taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) body: usize,
    pub(super) payload: usize,
}

/// Sends a message. `wait` is called where the socket takes no more at once,
/// and ends the sending by an error.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &Message,
    descriptors: &[RawFd],
    wait: &mut dyn FnMut(PollFlags) -> io::Result<()>,
) -> io::Result<()> {
    let mut header = Vec::with_capacity(HEADER);
    let sizes = [message.body.len(), message.payload.len()];
    for word in [MAGIC, message.number, sizes[0] as u32, sizes[1] as u32] {
        header.extend(word.to_le_bytes());
    }
    let mut control = (!descriptors.is_empty()).then_some(descriptors);
    for part in [&header, &message.body, &message.payload] {
        let mut rest = part.as_slice();
        while !rest.is_empty() {
            let rights: Vec<ControlMessage<'_>> =
                control.map(ControlMessage::ScmRights).into_iter().collect();
            let piece = [IoSlice::new(rest)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(socket.as_raw_fd(), &piece, &rights, flags, None) {
                Ok(sent) => {
                    control = None;
                    rest = rest.get(sent..).unwrap_or_default();
                }
                Err(Errno::EAGAIN) => wait(PollFlags::POLLOUT)?,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Receives a message with its descriptors; `None` when the other side has
/// closed the socket. `wait` as for [`send`].
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    limits: Limits,
    wait: &mut dyn FnMut(PollFlags) -> io::Result<()>,
) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut header = [0; HEADER];
    let mut descriptors = Vec::new();
    let mut filled = 0;
    while filled < HEADER {
        let room = header.get_mut(filled..).unwrap_or_default();
        match take(socket, room, Some(&mut descriptors), wait)? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    let (words, _) = header.as_chunks::<4>();
    let word = |index: usize| words.get(index).map_or(0, |word| u32::from_le_bytes(*word));
    let (body, payload) = (word(2) as usize, word(3) as usize);
    if word(0) != MAGIC || body > limits.body || payload > limits.payload {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let message = Message {
        number: word(1),
        body: part(socket, body, wait)?,
        payload: part(socket, payload, wait)?,
    };
    Ok(Some((message, descriptors)))
}

fn part(
    socket: BorrowedFd<'_>,
    size: usize,
    wait: &mut dyn FnMut(PollFlags) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    let mut part = Vec::new();
    while part.len() < size {
        let filled = part.len();
        part.resize(size.min(filled + STEP), 0);
        let room = part.get_mut(filled..).unwrap_or_default();
        let count = take(socket, room, None, wait)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        part.truncate(filled + count);
    }
    Ok(part)
}

fn take(
    socket: BorrowedFd<'_>,
    room: &mut [u8],
    descriptors: Option<&mut Vec<OwnedFd>>,
    wait: &mut dyn FnMut(PollFlags) -> io::Result<()>,
) -> io::Result<usize> {
    let mut space = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    loop {
        let mut piece = [IoSliceMut::new(room)];
        // Without room for control data, descriptors are closed unseen.
        let control = descriptors.is_some().then_some(space.as_mut_slice());
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut piece, control, flags) {
            Ok(received) => {
                let count = received.bytes;
                if let Some(descriptors) = descriptors {
                    for control in received.cmsgs()? {
                        if let ControlMessageOwned::ScmRights(numbers) = control {
                            // SAFETY: the kernel has just made them for us.
                            let own = |number| unsafe { OwnedFd::from_raw_fd(number) };
                            descriptors.extend(numbers.into_iter().map(own));
                        }
                    }
                }
                return Ok(count);
            }
            Err(Errno::EAGAIN) => wait(PollFlags::POLLIN)?,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        os::{fd::AsFd as _, unix::net::UnixStream},
    };

    use super::*;

    const LIMITS: Limits = Limits {
        body: 1 << 20,
        payload: 4 << 20,
    };

    fn never(_: PollFlags) -> io::Result<()> {
        Err(io::ErrorKind::TimedOut.into())
    }

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (here, there) = UnixStream::pair().unwrap();
        let sent = Message {
            number: 7,
            body: vec![1; 300_000],
            payload: vec![2; 3_000_000],
        };
        let file = File::open("/proc/self/exe").unwrap();
        let received = std::thread::scope(|scope| {
            scope.spawn(|| send(here.as_fd(), &sent, &[file.as_raw_fd()], &mut never).unwrap());
            receive(there.as_fd(), LIMITS, &mut never).unwrap().unwrap()
        });
        assert_eq!(received.0, sent);
        let mut magic = [0; 4];
        let mut descriptors = received.1.into_iter();
        File::from(descriptors.next().unwrap())
            .read_exact(&mut magic)
            .unwrap();
        assert_eq!(magic, *b"\x7fELF");
        assert!(descriptors.next().is_none());
        drop(here);
        assert!(
            receive(there.as_fd(), LIMITS, &mut never)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn what_a_header_claims_is_compared_first() {
        for words in [
            [MAGIC, 0, u32::MAX, 0],
            [MAGIC, 0, 0, u32::MAX],
            [MAGIC ^ 1, 0, 0, 0],
        ] {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(&words.map(u32::to_le_bytes).concat())
                .unwrap();
            let error = receive(there.as_fd(), LIMITS, &mut never).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
