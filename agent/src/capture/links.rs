//! Probes on one process, by the best means the kernel has.

use std::{num::NonZeroU32, os::fd::OwnedFd, path::Path};

use anyhow::{Context as _, Result};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLinkId, UProbeScope};

use super::{
    bpf::{self, AttachType, Point},
    object::Object,
};

/// How probes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Session links (kernel 6.13): entry and return in one, and the entry can
    /// spare the target the return trap.
    Session,
    /// Multi-point links (kernel 6.6; with a filter by process that works,
    /// 6.10).
    Multi,
    /// One perf event per point: works everywhere, and detaches slowly.
    Perf,
}

impl Method {
    /// Best first.
    pub const ALL: [Self; 3] = [Self::Session, Self::Multi, Self::Perf];

    /// Name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Multi => "multi",
            Self::Perf => "perf",
        }
    }
}

/// Points of one file.
#[derive(Clone, Debug, Default)]
pub struct FilePoints {
    /// Functions whose return must be seen.
    pub allocating: Vec<Point>,
    /// Functions that take a block back.
    pub freeing: Vec<Point>,
}

enum Link {
    Bpf {
        #[expect(dead_code, reason = "closing it detaches")]
        link: OwnedFd,
    },
    Perf(&'static str, UProbeLinkId),
}

/// Attached probes of one process.
///
/// Frees are attached before allocations and detached after them, so that no
/// recorded block can be freed unseen.
#[derive(Default)]
pub struct Links {
    allocating: Vec<Link>,
    freeing: Vec<Link>,
}

impl Links {
    /// Attaches to all files of a process.
    ///
    /// # Errors
    /// What the kernel answers; nothing stays attached then, except perf
    /// events, which `detach` must take off.
    pub fn attach(
        &mut self,
        object: &mut Object,
        method: Method,
        pid: u32,
        files: &[(std::path::PathBuf, FilePoints)],
    ) -> Result<()> {
        for (file, points) in files {
            attach_one(
                &mut self.freeing,
                object,
                method,
                Role::Free,
                pid,
                file,
                &points.freeing,
            )?;
        }
        for (file, points) in files {
            attach_one(
                &mut self.allocating,
                object,
                method,
                Role::Allocate,
                pid,
                file,
                &points.allocating,
            )?;
        }
        Ok(())
    }

    /// Takes all probes off.
    pub fn detach(&mut self, object: &mut Object) {
        // Entries before returns, allocations before frees: what is attached
        // last goes first. Perf events go one by one, a grace period each, and
        // an entry without its return would look like an abandoned call.
        let links = self
            .allocating
            .drain(..)
            .rev()
            .chain(self.freeing.drain(..).rev());
        for link in links {
            if let Link::Perf(program, id) = link {
                let detached = object
                    .perf_uprobe(program)
                    .and_then(|program| Ok(program.detach(id)?));
                if let Err(error) = detached {
                    tracing::warn!(error = %format_args!("{error:#}"), "cannot detach a probe; it ends with this program");
                }
            }
        }
    }

    /// Takes all probes off. The kernel removes a link's breakpoints within a
    /// millisecond and then waits out a grace period of some 40 ms, which
    /// costs the process nothing: a thread per link waits.
    pub fn detach_behind(mut self, object: &mut Object) {
        let links = self.allocating.iter().chain(&self.freeing);
        if links.into_iter().any(|link| matches!(link, Link::Perf(..))) {
            self.detach(object);
            return;
        }
        for link in self.allocating.into_iter().chain(self.freeing) {
            // Without a thread it takes a little longer.
            drop(
                std::thread::Builder::new()
                    .name("detach".into())
                    .spawn(move || drop(link)),
            );
        }
    }

    /// Whether anything is attached.
    pub fn is_attached(&self) -> bool {
        !self.allocating.is_empty() || !self.freeing.is_empty()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Allocate,
    Free,
}

fn attach_one(
    links: &mut Vec<Link>,
    object: &mut Object,
    method: Method,
    role: Role,
    pid: u32,
    file: &Path,
    points: &[Point],
) -> Result<()> {
    if points.is_empty() {
        return Ok(());
    }
    let mut multi = |program: &'static str, attach: AttachType, at_return: bool| -> Result<()> {
        let program = object.uprobe(program, attach)?;
        let link = bpf::link_uprobes(program, attach, at_return, file, points, pid).with_context(
            || {
                format!(
                    "the kernel refuses {} probes by {}",
                    points.len(),
                    method.name()
                )
            },
        )?;
        links.push(Link::Bpf { link });
        Ok(())
    };
    match (method, role) {
        (Method::Session, Role::Allocate) => multi("heap_session", AttachType::Session, false),
        (Method::Session | Method::Multi, Role::Free) => {
            multi("heap_free", AttachType::Multi, false)
        }
        (Method::Multi, Role::Allocate) => {
            multi("heap_leave", AttachType::Multi, true)?;
            multi("heap_enter", AttachType::Multi, false)
        }
        (Method::Perf, Role::Free) => attach_perf(links, object, "heap_free", pid, file, points),
        (Method::Perf, Role::Allocate) => {
            attach_perf(links, object, "heap_leave", pid, file, points)?;
            attach_perf(links, object, "heap_enter", pid, file, points)
        }
    }
}

fn attach_perf(
    links: &mut Vec<Link>,
    object: &mut Object,
    name: &'static str,
    pid: u32,
    file: &Path,
    points: &[Point],
) -> Result<()> {
    let scope =
        UProbeScope::OneProcess(NonZeroU32::new(pid).context("process 0 cannot be probed")?);
    let program = object.perf_uprobe(name)?;
    for point in points {
        let place = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(point.offset),
            cookie: Some(point.cookie),
        };
        let id = program
            .attach(place, file, scope)
            .context("the kernel refuses a probe by perf event")?;
        links.push(Link::Perf(name, id));
    }
    Ok(())
}
