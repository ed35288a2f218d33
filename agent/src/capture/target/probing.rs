//! Puts a target's probes on and takes them off.

use std::{path::PathBuf, sync::Arc};

use agent_ebpf::abi::heap::{Cookie, FunctionKind};
use anyhow::{Result, bail};

use super::{MAX_PERF_PROBES, Probed, Target, integrity::Expect};
use crate::{
    capture::{
        bpf::Point,
        files::{CodeFile, Files},
        links::{FilePoints, Links, Method},
        object::Object,
        refusal::Refusal,
    },
    host::kernel,
};

impl Target {
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
            let mut points = FilePoints::default();
            for family in &file.families {
                let moving_frees = family
                    .functions
                    .iter()
                    .any(|function| function.kind.moves() && function.may_nest);
                for function in family.functions.iter().filter(|_| family.why_not.is_none()) {
                    let may_nest = match function.kind {
                        FunctionKind::Free => moving_frees,
                        _ => function.may_nest,
                    };
                    let cookie = Cookie::new(self.slot, function.kind, may_nest).0;
                    let point = Point {
                        offset: function.offset,
                        cookie,
                    };
                    match function.kind {
                        FunctionKind::Free => points.freeing.push(point),
                        _ => points.allocating.push(point),
                    }
                }
            }
            if let (Some(module), false) = (&file.module, points.allocating.is_empty()) {
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

/// Keeps the calls that matter most where each probe costs a grace period;
/// the number of functions left out.
fn limit_perf(places: &mut [(PathBuf, FilePoints)]) -> usize {
    let mut room = MAX_PERF_PROBES;
    let mut left_out = 0;
    let kind = |point: &Point| Cookie(point.cookie).kind();
    for (_, points) in places {
        // The kinds are numbered by how common their calls are.
        points.freeing.sort_by_key(kind);
        points.allocating.sort_by_key(kind);
        let frees = points.freeing.len().min(room);
        room -= frees;
        // Entry and return are a probe each.
        let allocating = points.allocating.len().min(room / 2);
        room -= allocating * 2;
        left_out += points.freeing.len() - frees + points.allocating.len() - allocating;
        points.freeing.truncate(frees);
        points.allocating.truncate(allocating);
    }
    left_out
}
