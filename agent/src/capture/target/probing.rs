//! Puts a target's probes on and takes them off.

use std::{path::PathBuf, sync::Arc};

use agent_ebpf::abi::{
    heap::{Cookie, FunctionKind},
    result::ResultCookie,
};
use anyhow::{Result, bail};

use super::{MAX_PERF_PROBES, Probed, Target, integrity::Expect};
use crate::{
    capture::{
        bpf::Point,
        files::{CodeFile, Files},
        links::{FilePoints, Links, Method},
        object::Object,
        probes::ResultProbe,
        refusal::Refusal,
    },
    host::kernel,
};

impl Target {
    /// Whether any probe at the entry of a function like malloc, and any of one
    /// like free, is single-stepped: those are most calls of most programs.
    pub fn is_stepped(&self) -> (bool, bool) {
        let any = |kind: FunctionKind| {
            let points = self.probed.iter().map(|probed| &probed.points);
            let mut points = points.flat_map(|points| points.calls.iter().chain(&points.frees));
            points.any(|point| {
                let cookie = Cookie(point.cookie);
                cookie.kind() == kind as u8 && cookie.is_stepped()
            })
        };
        (any(FunctionKind::Malloc), any(FunctionKind::Free))
    }

    /// Device and inode of the files that are probed.
    pub fn probed_files(&self) -> Vec<(u64, u64)> {
        self.probed
            .iter()
            .filter_map(|probed| probed.file.module.as_ref())
            .map(|module| {
                let (major, minor) = module.id.device;
                (u64::from(major) << 32 | u64::from(minor), module.id.inode)
            })
            .collect()
    }

    /// Puts the probes on; to be called after [`Self::look_before_window`].
    pub(in crate::capture) fn open_window(&mut self, object: &mut Object) -> Result<()> {
        if self.over {
            bail!("its probes are off for good");
        }
        self.open = true;
        let attached = self.attach_from(object, 0);
        self.attached_ns = kernel::monotonic_ns();
        if attached.is_err() {
            self.close_window(object);
        }
        attached
    }

    /// Takes the probes off without waiting for the kernel's grace period, and
    /// the target's blocks out of the kernel's table: their frees go unseen
    /// from now on.
    pub(in crate::capture) fn close_window(&mut self, object: &mut Object) {
        self.open = false;
        for links in self.links.drain(..) {
            links.detach_behind(object);
            self.unprobed_ns = Some(kernel::monotonic_ns());
        }
        let pid = self.process.pid;
        let cleared = object
            .map("LIVE")
            .and_then(|map| object.records().forget_blocks(map, |key| key.tgid == pid));
        if let Err(error) = cleared {
            tracing::warn!(pid, error = %format_args!("{error:#}"), "blocks of a closed window stay in the table");
        }
    }

    /// Probes the files that appeared since the last time.
    pub(super) fn attach_new_files(
        &mut self,
        object: &mut Object,
        files: &mut Files,
        upcoming: Vec<Arc<CodeFile>>,
    ) -> Result<()> {
        let mapped = self
            .space
            .code
            .iter()
            .filter_map(|code| code.file.as_ref().ok().cloned());
        let mut fresh: Vec<Arc<CodeFile>> = mapped.chain(upcoming).collect();
        // By build id rather than device, which file systems report in two
        // ways: a file probed twice would be counted twice.
        fresh.retain(|file| {
            let Some(module) = &file.module else {
                return false;
            };
            self.known
                .insert((module.id.inode, module.build_id.clone()))
        });
        let first = self.probed.len();
        for file in fresh {
            let points = points(&file, self.slot);
            if let (Some(module), false) = (&file.module, points.calls.is_empty()) {
                self.text
                    .add(&self.process, module, &points)
                    .map_err(|rewritten| Refusal::Rewritten(self.process.pid, rewritten))?;
                self.probed.push(Probed { file, points });
            }
        }
        self.check_text(object, files, first, Expect::None)?;
        if self.open {
            self.attach_from(object, first)
        } else {
            Ok(())
        }
    }

    /// Attaches to the probed files from the `first` on.
    fn attach_from(&mut self, object: &mut Object, first: usize) -> Result<()> {
        let mut places: Vec<(PathBuf, FilePoints)> = self
            .probed
            .iter()
            .skip(first)
            .filter_map(|probed| {
                let module = probed.file.module.as_ref()?;
                Some((module.descriptor_path(), probed.points.clone()))
            })
            .collect();
        if places.is_empty() {
            return Ok(());
        }
        if self.method == Method::Perf {
            if first == 0 {
                self.left_out = 0;
            }
            self.left_out += limit_perf(&mut places);
        }
        for (index, (_, points)) in places.iter().enumerate() {
            self.text.expect(first + index, points);
        }
        let mut links = Links::default();
        let attached = links.attach(object, self.method, self.process.pid, &places);
        self.links.push(links);
        attached
    }
}

/// The probes of a file for the target in this slot.
pub fn points(file: &CodeFile, slot: u32) -> FilePoints {
    let families = || {
        file.families
            .iter()
            .filter(|family| family.why_not.is_none())
    };
    let result = |probe: &ResultProbe| Point {
        offset: probe.offset,
        cookie: ResultCookie(probe.reading).of(slot).0,
    };
    let mut points = FilePoints {
        calls: families()
            .flat_map(|family| family.results.iter().map(result))
            .collect(),
        frees: Vec::new(),
    };
    for family in families() {
        let moving_frees = family
            .functions
            .iter()
            .any(|function| function.kind.moves() && function.may_nest);
        for function in &family.functions {
            let frees = function.kind == FunctionKind::Free;
            let may_nest = if frees {
                moving_frees
            } else {
                function.may_nest
            };
            let cookie = Cookie::new(
                slot,
                function.kind,
                function.arguments,
                may_nest,
                function.stepped,
            );
            let point = Point {
                offset: function.offset,
                cookie: cookie.0,
            };
            if frees {
                points.frees.push(point);
            } else {
                points.calls.push(point);
            }
        }
    }
    points
}

/// Keeps the calls that matter most where each probe costs a grace period;
/// the number of functions left out.
fn limit_perf(places: &mut [(PathBuf, FilePoints)]) -> usize {
    let mut room = MAX_PERF_PROBES;
    let mut left_out = 0;
    // The kinds are numbered by how common their calls are; results are last.
    let kind = |point: &Point| Cookie(point.cookie).kind();
    let is_result = |point: &Point| u64::from(kind(point)) == ResultCookie::KIND;
    for (_, points) in places {
        let results = points.calls.iter().filter(|point| is_result(point)).count();
        let functions = points.calls.len() - results;
        points.frees.sort_by_key(kind);
        let frees = points.frees.len().min(room);
        room -= frees;
        // A call is followed only if its end is, wherever that is.
        let calls = room
            .checked_sub(results)
            .map_or(0, |room| functions.min(room));
        left_out += points.frees.len() - frees + functions - calls;
        points.frees.truncate(frees);
        if calls == 0 {
            points.calls.clear();
        } else {
            let (ends, mut entries): (Vec<_>, Vec<_>) =
                points.calls.drain(..).partition(|point| is_result(point));
            entries.sort_by_key(kind);
            entries.truncate(calls);
            points.calls = ends;
            points.calls.extend(entries);
            room -= results + calls;
        }
    }
    left_out
}
