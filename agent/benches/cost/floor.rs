//! Empty kernel programs at the instructions that we probe.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use lingerscope::capture::{
    bpf::{self, AttachType},
    links::FilePoints,
};

/// The empty programs and where they go.
pub(crate) struct Floor {
    files: Vec<(PathBuf, FilePoints)>,
    /// Of a session: the return is not wanted.
    session_entry: OwnedFd,
    /// Of a session: the return is wanted.
    session_both: OwnedFd,
    multi: OwnedFd,
}

/// Attached empty programs; dropped, they are off.
pub(crate) type Probes = Vec<OwnedFd>;

impl Floor {
    pub(crate) fn load(files: Vec<(PathBuf, FilePoints)>) -> Result<Self> {
        let load = |value, attach| {
            bpf::load_instructions(&empty(value), attach)
                .context("the kernel refuses an empty program")
        };
        Ok(Self {
            files,
            session_entry: load(1, AttachType::Session)?,
            session_both: load(0, AttachType::Session)?,
            multi: load(0, AttachType::Multi)?,
        })
    }

    /// Entry and free: an unsampled pair under a session link.
    pub(crate) fn two_traps(&self, pid: u32) -> Result<Probes> {
        self.attach(pid, &[(&self.session_entry, AttachType::Session, false)])
    }

    /// Entry, return and free: a sampled pair under a session link.
    pub(crate) fn three_traps(&self, pid: u32) -> Result<Probes> {
        self.attach(pid, &[(&self.session_both, AttachType::Session, false)])
    }

    /// Entry, return and free where entry and return are links of their own.
    pub(crate) fn three_links(&self, pid: u32) -> Result<Probes> {
        let links = [
            (&self.multi, AttachType::Multi, true),
            (&self.multi, AttachType::Multi, false),
        ];
        self.attach(pid, &links)
    }

    fn attach(&self, pid: u32, allocating: &[(&OwnedFd, AttachType, bool)]) -> Result<Probes> {
        let mut probes = Vec::new();
        for (file, points) in &self.files {
            for (program, attach, at_return) in allocating {
                probes.push(bpf::link_uprobes(
                    program.as_fd(),
                    *attach,
                    *at_return,
                    file,
                    &points.allocating,
                    pid,
                ));
            }
            probes.push(bpf::link_uprobes(
                self.multi.as_fd(),
                AttachType::Multi,
                false,
                file,
                &points.freeing,
                pid,
            ));
        }
        probes
            .into_iter()
            .collect::<io::Result<_>>()
            .context("the kernel refuses empty probes")
    }
}

/// `r0 = value; exit`, encoded as in include/uapi/linux/bpf.h.
const fn empty(value: u32) -> [u64; 2] {
    const MOVE_CONSTANT: u64 = 0xb7;
    const EXIT: u64 = 0x95;
    [MOVE_CONSTANT | ((value as u64) << 32), EXIT]
}
