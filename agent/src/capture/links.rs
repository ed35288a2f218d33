//! Probes on one process, by the best means the kernel has.

use std::{num::NonZeroU32, os::fd::OwnedFd, path::Path, thread::JoinHandle};

use anyhow::{Context as _, Result};
use aya::programs::uprobe::{
    UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeLinkId, UProbeScope,
};

use super::{
    bpf::{self, AttachType, Point},
    object::Object,
};

/// How probes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Multi-point links (kernel 6.6; with a filter by process that works,
    /// 6.10).
    Multi,
    /// One perf event per point: works everywhere, and each takes a grace
    /// period to detach.
    Perf,
}

impl Method {
    /// Best first.
    pub const ALL: [Self; 2] = [Self::Multi, Self::Perf];

    /// Name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Multi => "multi",
            Self::Perf => "perf",
        }
    }
}

/// Points of one file.
#[derive(Clone, Debug, Default)]
pub struct FilePoints {
    /// Where results can be read, and then where the functions are entered: in
    /// this order, so that no call is seen whose end is not.
    pub calls: Vec<Point>,
    /// Functions that take a block back.
    pub frees: Vec<Point>,
}

enum Link {
    Bpf(OwnedFd),
    Perf(&'static str, UProbeLinkId),
}

/// A link that is to be closed, which detaches it.
#[expect(dead_code, reason = "closing it detaches")]
enum Closing {
    Bpf(OwnedFd),
    Perf(UProbeLink),
}

/// Closes a link on a thread of its own, because the kernel waits for a grace
/// period; without one it takes a little longer.
fn close(link: Closing) -> Option<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("detach".into())
        .spawn(move || drop(link))
        .ok()
}

/// Attached probes of one process.
///
/// Frees are attached before calls and detached after them, so that no
/// recorded block can be freed unseen.
#[derive(Default)]
pub struct Links {
    calls: Vec<Link>,
    frees: Vec<Link>,
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
                &mut self.frees,
                object,
                method,
                Role::Free,
                pid,
                file,
                &points.frees,
            )?;
        }
        for (file, points) in files {
            attach_one(
                &mut self.calls,
                object,
                method,
                Role::Call,
                pid,
                file,
                &points.calls,
            )?;
        }
        Ok(())
    }

    /// Takes all probes off, and waits until they are.
    pub fn detach(&mut self, object: &mut Object) {
        let waiting: Vec<_> = self.take(object).filter_map(close).collect();
        for thread in waiting {
            // It ends by closing a descriptor, whatever comes.
            drop(thread.join());
        }
    }

    /// Takes all probes off. The kernel removes a link's breakpoints within a
    /// millisecond and then waits out a grace period of some 40 ms, which
    /// costs the process nothing.
    pub fn detach_behind(mut self, object: &mut Object) {
        for link in self.take(object) {
            drop(close(link));
        }
    }

    /// All links: entries before results and calls before frees, the other way
    /// round than they were attached.
    fn take<'a>(&'a mut self, object: &'a mut Object) -> impl Iterator<Item = Closing> + 'a {
        let links = self.calls.drain(..).rev().chain(self.frees.drain(..).rev());
        links.filter_map(|link| match link {
            Link::Bpf(link) => Some(Closing::Bpf(link)),
            Link::Perf(program, id) => {
                let taken = object
                    .perf_uprobe(program)
                    .and_then(|program| Ok(program.take_link(id)?));
                taken
                    .inspect_err(|error| {
                        tracing::warn!(error = %format_args!("{error:#}"), "cannot detach a probe; it ends with this program");
                    })
                    .ok()
                    .map(Closing::Perf)
            }
        })
    }

    /// Whether anything is attached.
    pub fn is_attached(&self) -> bool {
        !self.calls.is_empty() || !self.frees.is_empty()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Call,
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
    let name = match role {
        Role::Call => "heap_call",
        Role::Free => "heap_free",
    };
    match method {
        Method::Multi => {
            let program = object.uprobe(name, AttachType::Multi)?;
            let link = bpf::link_uprobes(program, AttachType::Multi, file, points, pid)
                .with_context(|| format!("the kernel refuses {} probes", points.len()))?;
            links.push(Link::Bpf(link));
            Ok(())
        }
        Method::Perf => attach_perf(links, object, name, pid, file, points),
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
