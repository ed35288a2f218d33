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
    empty: OwnedFd,
}

/// Attached empty programs; dropped, they are off.
pub(crate) type Probes = Vec<OwnedFd>;

impl Floor {
    pub(crate) fn load(files: Vec<(PathBuf, FilePoints)>) -> Result<Self> {
        let empty = bpf::load_instructions(&EMPTY, AttachType::Multi)
            .context("the kernel refuses an empty program")?;
        Ok(Self { files, empty })
    }

    /// Call, result and free.
    pub(crate) fn three_traps(&self, pid: u32) -> Result<Probes> {
        self.files
            .iter()
            .flat_map(|(file, points)| [(file, &points.frees), (file, &points.calls)])
            .map(|(file, points)| {
                bpf::link_uprobes(self.empty.as_fd(), AttachType::Multi, file, points, pid)
            })
            .collect::<io::Result<_>>()
            .context("the kernel refuses empty probes")
    }
}

/// `r0 = 0; exit`, encoded as in include/uapi/linux/bpf.h.
const EMPTY: [u64; 2] = [0xb7, 0x95];
