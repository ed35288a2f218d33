//! What the probed pages of a process must look like.
//!
//! A breakpoint is known to the kernel by its place in a file. A program that
//! copies its own code while it is probed copies breakpoints that nobody
//! knows, and dies of the first; one that puts a page back as it was is no
//! longer seen, and what it frees then looks as if it lived. So a page of
//! which the process has a copy of its own is compared with the file: before
//! probes go on, while they are on, and before what a window has recorded is
//! believed. Between two looks a program can do what it likes.
//!
//! A look at the seven pages of glibc takes 80 µs, most of it for a thread that
//! is left behind when memory or a file system does not answer.

mod page;
mod rewritten;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::Duration,
};

use self::page::{State, TRAMPOLINE};
pub use self::rewritten::Rewritten;
use super::{address_space::AddressSpace, links::FilePoints};
use crate::host::{
    mapping::Mapping,
    memory::{self, Memory, PAGE, PageBytes},
    module::{Module, ModuleId},
    process::{self, Process},
};

/// Private pages that breakpoints may cost a process: the kernel copies each
/// probed page for every mapping of it. An ordinary process maps its allocator
/// once and pays for 4 to 12 pages; 256 are 1 MiB.
const MAX_COPIES: u64 = 256;
/// Reading some pages takes microseconds. Whoever takes longer does not mean
/// well, or has a file system that hangs.
const DEADLINE: Duration = Duration::from_secs(1);

/// The probed pages of a process.
#[derive(Default)]
pub(super) struct Text {
    files: Vec<FileText>,
}

/// The probed pages of one file.
struct FileText {
    /// Inode and build id: file systems report devices in two ways.
    id: (u64, Option<String>),
    /// Its path, escaped.
    shown: String,
    opened: Arc<File>,
    pages: BTreeMap<u64, PageText>,
}

/// A page of a file, known by its offset.
struct PageText {
    /// As it was when the file was first looked at.
    bytes: PageBytes,
    /// Where breakpoints go on; sorted.
    points: Vec<usize>,
}

/// A page as it was found.
struct Found {
    own: Option<PageBytes>,
    in_file: PageBytes,
}

impl Text {
    /// Adds a file, of which pages with these points are to be probed in a
    /// process.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn add(
        &mut self,
        process: &Process,
        module: &Module,
        points: &FilePoints,
    ) -> Result<(), Rewritten> {
        let shown = module.path.to_string_lossy().escape_default().to_string();
        let read = || {
            let memory = Arc::new(Memory::open(process.pid)?);
            let file = Arc::new(module.opened()?);
            let (theirs, wanted) = (Arc::clone(&file), offsets(points));
            let pages =
                memory::with_deadline(&memory, DEADLINE, move |_| read_pages(&theirs, wanted))??;
            Ok((file, pages))
        };
        let (opened, pages) = read().map_err(|error| unreadable(&shown, &error))?;
        self.files.push(FileText {
            id: (module.id.inode, module.build_id.clone()),
            shown,
            opened,
            pages,
        });
        self.expect(self.files.len() - 1, points);
        Ok(())
    }

    /// Says which breakpoints go on in the file that was added as the
    /// `index`th.
    pub(super) fn expect(&mut self, index: usize, points: &FilePoints) {
        let Some(file) = self.files.get_mut(index) else {
            return;
        };
        for page in file.pages.values_mut() {
            page.points.clear();
        }
        for offset in offsets(points) {
            if let Some(page) = file.pages.get_mut(&(offset & !(PAGE - 1))) {
                page.points.push((offset % PAGE) as usize);
            }
        }
        for page in file.pages.values_mut() {
            page.points.sort_unstable();
            page.points.dedup();
        }
    }

    /// Whether breakpoints would cost too many pages.
    ///
    /// # Errors
    /// When they would.
    pub(super) fn check_copies(&self, space: &AddressSpace) -> Result<(), Rewritten> {
        let (mut copies, mut most) = (0u64, (0, ""));
        for file in &self.files {
            let mut ids: Vec<ModuleId> = file.mappings(space).map(ModuleId::of).collect();
            ids.sort_unstable();
            ids.dedup();
            for offset in file.pages.keys() {
                let mappings = space
                    .views
                    .iter()
                    .filter(|view| view.offset <= *offset && *offset < view.end)
                    .filter(|view| ids.binary_search(&view.file).is_ok())
                    .fold(0u64, |sum, view| sum.saturating_add(view.count));
                copies = copies.saturating_add(mappings);
                most = most.max((mappings, file.shown.as_str()));
            }
        }
        if copies <= MAX_COPIES {
            return Ok(());
        }
        Err(Rewritten::Copies {
            file: most.1.to_owned(),
            mappings: most.0,
            copies,
        })
    }

    /// Looks at the pages of the files from the `first` on. With `probed`,
    /// breakpoints must be where they were set; without, there may be some: of
    /// an earlier window, or of others who trace the process by the kernel.
    ///
    /// # Errors
    /// What is wrong with them. Mappings may have changed since `space` was
    /// read, and a page may be on its way from one state to another: who gets
    /// an error looks again.
    pub(super) fn look(
        &self,
        process: &Process,
        space: &AddressSpace,
        first: usize,
        probed: bool,
    ) -> Result<(), Rewritten> {
        let breakpoints = self.breakpoints(process, space, first)?;
        let missing = |(_, state): &(&FileText, State)| state.missing;
        match breakpoints.iter().find(|found| missing(found) > 0) {
            Some((file, _)) if probed => Err(Rewritten::Vanished {
                file: file.shown.clone(),
                count: breakpoints.iter().map(missing).sum(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether the process handles breakpoints itself: those that are there
    /// before ours may be its own, which would be lost to it.
    ///
    /// # Errors
    /// When it has some.
    pub(super) fn check_own_breakpoints(
        &self,
        process: &Process,
        space: &AddressSpace,
        first: usize,
    ) -> Result<(), Rewritten> {
        if !process::catches(process.pid, libc::SIGTRAP) {
            return Ok(());
        }
        let breakpoints = self.breakpoints(process, space, first)?;
        match breakpoints.iter().find(|(_, state)| state.there > 0) {
            Some((file, _)) => Err(Rewritten::OwnBreakpoints {
                file: file.shown.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Compares the pages in the process with the files, page by page.
    fn breakpoints(
        &self,
        process: &Process,
        space: &AddressSpace,
        first: usize,
    ) -> Result<Vec<(&FileText, State)>, Rewritten> {
        let mut places = Vec::new();
        for file in self.files.iter().skip(first) {
            let found = file.places(space)?;
            places.extend(found.into_iter().map(|place| (file, place)));
        }
        let pages = read(process, &places)?;
        let mut states = Vec::new();
        for ((file, (address, offset)), found) in places.into_iter().zip(pages) {
            let Some(page) = file.pages.get(&offset) else {
                continue;
            };
            if found.in_file != page.bytes {
                return Err(Rewritten::Overwritten {
                    file: file.shown.clone(),
                });
            }
            let trampoline = |target| is_trampoline(space, target);
            let own = found.own.as_ref().unwrap_or(&page.bytes);
            let state = page::compare(own, &page.bytes, &page.points, address, trampoline);
            if let Some(changed) = state.changed {
                return Err(Rewritten::Patched {
                    file: file.shown.clone(),
                    offset: offset + changed as u64,
                });
            }
            states.push((file, state));
        }
        Ok(states)
    }
}

impl FileText {
    fn mappings<'a>(&self, space: &'a AddressSpace) -> impl Iterator<Item = &'a Mapping> {
        space.code.iter().filter_map(|code| {
            let module = code.file.as_ref().ok()?.module.as_ref()?;
            let same = module.id.inode == self.id.0 && module.build_id == self.id.1;
            same.then_some(&code.mapping)
        })
    }

    /// Where its pages are in the process, and which they are; nowhere while
    /// the file is not mapped, or no more.
    fn places(&self, space: &AddressSpace) -> Result<Vec<(u64, u64)>, Rewritten> {
        let mappings: Vec<&Mapping> = self.mappings(space).collect();
        let mut places = Vec::new();
        for offset in self.pages.keys() {
            let before = places.len();
            for mapping in &mappings {
                let inside = offset.checked_sub(mapping.offset);
                let Some(inside) = inside.filter(|by| *by < mapping.end - mapping.start) else {
                    continue;
                };
                if mapping.writable || mapping.shared {
                    return Err(Rewritten::Writable {
                        file: self.shown.clone(),
                    });
                }
                places.push((mapping.start + inside, *offset));
            }
            if !mappings.is_empty() && places.len() == before {
                return Err(Rewritten::Replaced {
                    file: self.shown.clone(),
                    offset: *offset,
                });
            }
        }
        Ok(places)
    }
}

/// Reads pages of a process, and those of the files that they come from.
fn read(process: &Process, places: &[(&FileText, (u64, u64))]) -> Result<Vec<Found>, Rewritten> {
    let Some((first, _)) = places.first() else {
        return Ok(Vec::new());
    };
    let wanted: Vec<(Arc<File>, u64, u64)> = places
        .iter()
        .map(|(file, (address, offset))| (Arc::clone(&file.opened), *address, *offset))
        .collect();
    let read = || {
        let memory = Arc::new(Memory::open(process.pid)?);
        memory::with_deadline(&memory, DEADLINE, move |memory| {
            let found = |(file, address, offset): (Arc<File>, u64, u64)| {
                Ok(Found {
                    own: memory.own_page(address)?,
                    in_file: page_of(&file, offset)?,
                })
            };
            wanted.into_iter().map(found).collect::<io::Result<_>>()
        })?
    };
    read().map_err(|error: io::Error| unreadable(&first.shown, &error))
}

fn unreadable(file: &str, error: &io::Error) -> Rewritten {
    Rewritten::Unreadable {
        file: file.to_owned(),
        why: error.to_string(),
    }
}

/// Offsets in the file of all breakpoints.
fn offsets(points: &FilePoints) -> Vec<u64> {
    let all = points.calls.iter().chain(&points.frees);
    all.map(|point| point.offset).collect()
}

/// The pages that hold these offsets. There are as many as allocator functions
/// at most.
fn read_pages(file: &File, offsets: Vec<u64>) -> io::Result<BTreeMap<u64, PageText>> {
    let numbers: BTreeSet<u64> = offsets.into_iter().map(|at| at / PAGE).collect();
    let page = |number| {
        let offset = number * PAGE;
        let (bytes, points) = (page_of(file, offset)?, Vec::new());
        Ok((offset, PageText { bytes, points }))
    };
    numbers.into_iter().map(page).collect()
}

/// A page of a file; zeros behind its end, as in memory.
fn page_of(file: &File, offset: u64) -> io::Result<PageBytes> {
    let mut bytes = Box::new([0; PAGE as usize]);
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(bytes)
}

/// Whether an address lies in the kernel's own page of calls.
fn is_trampoline(space: &AddressSpace, address: u64) -> bool {
    space
        .find(address)
        .is_some_and(|code| code.mapping.path == TRAMPOLINE)
}
