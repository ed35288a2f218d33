//! Findings and alerts as messages of systemd's journal, by its native protocol
//! (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram of fields, each value
//! with its length in front, so that nothing in it can pass for a field. A
//! message that is too long for a datagram goes as a sealed memory file.

mod death;
mod message;
mod socket;
mod summary;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    alert::{Notice, State},
    finding::{Finding, Process, Verdict},
};
use socket::Socket;

pub use message::Message;

/// Where the journal listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// Sends findings to a journal.
#[derive(Debug)]
pub struct Journal {
    socket: Socket,
}

/// Why a message did not reach the journal, and the mend.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Nobody listens.
    #[error(
        "no journal listens at {path} ({source}): start systemd-journald, or run without --journal"
    )]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The journal did not take a message.
    #[error(
        "the journal at {path} did not take a message ({source}): see `systemctl status systemd-journald`"
    )]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A message that was too long for a datagram could not be handed over.
    #[error(
        "a message of {length} bytes could not be handed to the journal as a memory file ({source}): /proc and memfd_create must be allowed"
    )]
    TooLong {
        /// Length of the message.
        length: usize,
        /// What the system said.
        source: io::Error,
    },
}

impl Journal {
    /// Finds the journal that listens at `path`, normally [`SOCKET`].
    pub fn connect(path: &Path) -> Result<Self, JournalError> {
        Socket::open(path).map(|socket| Self { socket })
    }

    /// Sends what [`crate::alert::Alerts`] wants told.
    pub fn tell(&self, notice: &Notice) -> Result<(), JournalError> {
        let message = match notice {
            Notice::Alert(alert) => Message::alert(alert),
            Notice::Death(death) => Message::death(death),
            Notice::Summary(summary) => Message::summary(summary),
            Notice::Suppression(note) => Message::suppression(note),
        };
        self.socket.send(message.as_bytes())
    }

    /// Sends one finding, as firing. `page_within`: a strong finding whose time to the
    /// memory limit is shorter than this gets priority 3.
    pub fn send(
        &self,
        process: &Process,
        finding: &Finding,
        page_within: Duration,
    ) -> Result<(), JournalError> {
        self.socket
            .send(Message::of(process, finding, page_within).as_bytes())
    }
}

/// Identifies messages about a verdict, in the journal (`MESSAGE_ID=`) and in
/// its catalogue, for ever.
pub const fn message_id(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::UnboundedGrowth => "b0c9c20e477e493ab6aa46ee6283577d",
        Verdict::BlockedThread => "18e36e8c5ecc43d0ae7b3cbc0d3efb52",
        Verdict::UnreapedTask => "8594fa819d8042afb42c8fe08c93e3a1",
        Verdict::StuckTask => "5ebd813a97b84fe8a162588d7edf0df8",
        Verdict::Warming => "164a1d52756e486388e4918c7f44fcbc",
        Verdict::Bounded => "70e0ecde50e84df6b797fa8f778a0e5f",
        Verdict::Sawtooth => "7dcf87e3c4d2475a8f14485dc590f7e0",
        Verdict::ManagedHeap => "9b993390650549d3adb6f584c1610ca4",
        Verdict::OutsideAllocators => "6bc5261ad1d241ae97269c96d6df1cbd",
        Verdict::Retention => "67b03ea259ec4266b4b7fe587b17eb3e",
    }
}

/// Identifies messages about an end, which is the same for all verdicts.
pub const fn end_message_id(state: State) -> Option<&'static str> {
    match state {
        State::Firing | State::Worsened | State::Recurring => None,
        State::Resolved => Some("0cdf3c374cae483c8293e3fe3ac87463"),
        State::Ended => Some("e3828ec3504e4d74924810bac50f22ce"),
    }
}

/// Identifies messages about a death under probes.
pub const DEATH_MESSAGE_ID: &str = "ae9f2f9e615946f286c365c300b23dde";

/// Identifies messages that sum up alerts that were held back.
pub const SUMMARY_MESSAGE_ID: &str = "215aa8169eb44c9dbc56c54d89b3b2fd";

/// Identifies messages about suppressions that do nothing.
pub const SUPPRESSION_MESSAGE_ID: &str = "14a3c4924f7c44d3b483b8b223bd3017";
