//! Code addresses to functions, files and lines, inlined functions included.
//! The reader process knows them; here they are asked for, file by file, and
//! kept.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    capture::{
        address_space::{AddressSpace, Code},
        files::CodeFile,
    },
    finding::{Frame, Text},
    host::module::{Module, ModuleId},
    reader::{
        self, Unread,
        question::{At, MAX_ADDRESSES},
    },
};

/// Distinct places remembered: 50 000 stacks share most of theirs.
const MAX_PLACES: usize = 1 << 18;
/// Where distributions install debug information of its own.
const DEBUG_FILES: &str = "/usr/lib/debug";

/// A place in a file: module and linked address.
type Place = (ModuleId, u64);

/// Turns addresses into frames; remembers every place it has looked up.
#[derive(Debug, Default)]
pub struct Symbols {
    known: HashMap<Place, Vec<Frame>>,
    /// Files whose debug information cannot be read.
    without_lines: HashSet<ModuleId>,
    /// Files that tell no names at all.
    without_names: HashSet<ModuleId>,
}

impl Symbols {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing was looked up yet.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Files that did not tell what they should, by cause.
    pub fn lost(&self) -> BTreeMap<&'static str, u64> {
        let counts = [
            ("files_without_lines", self.without_lines.len() as u64),
            ("files_without_names", self.without_names.len() as u64),
        ];
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Asks for many addresses at once, so that [`Self::frames`] need not ask
    /// for each. Pairs as it takes them.
    pub fn learn(&mut self, space: &AddressSpace, addresses: impl Iterator<Item = (u64, bool)>) {
        let mut missing: HashMap<ModuleId, (Arc<CodeFile>, Vec<u64>)> = HashMap::new();
        let mut seen = HashSet::new();
        for (address, exact) in addresses {
            let lookup = looked_up(address, exact);
            let Some((code, file, module)) = behind(space, lookup) else {
                continue;
            };
            let place = (module.id, lookup.wrapping_sub(code.bias));
            if !self.known.contains_key(&place) && seen.insert(place) {
                let (_, addresses) = missing
                    .entry(module.id)
                    .or_insert_with(|| (Arc::clone(file), Vec::new()));
                addresses.push(place.1);
            }
        }
        for (file, addresses) in missing.into_values() {
            self.ask(&file, &addresses);
        }
    }

    /// The frames at one code address of a process, innermost first. A return
    /// address (`exact` false) is one past the call it belongs to.
    pub fn frames(&mut self, space: &AddressSpace, address: u64, exact: bool) -> Vec<Frame> {
        let lookup = looked_up(address, exact);
        let Some(code) = space.find(lookup) else {
            return vec![Frame {
                offset: Some(format!("{lookup:#x}")),
                ..Frame::default()
            }];
        };
        let linked = lookup.wrapping_sub(code.bias);
        let Ok(file) = &code.file else {
            let name = if code.mapping.path.is_empty() {
                b"[anonymous]"
            } else {
                &code.mapping.path[..]
            };
            return vec![bare(Text::name(name), None, linked)];
        };
        let Some(module) = &file.module else {
            return vec![bare(Text::name("[vdso]"), None, linked)];
        };
        let place = (module.id, linked);
        if !self.known.contains_key(&place) {
            self.ask(file, &[linked]);
        }
        match self.known.get(&place) {
            Some(known) => known.clone(),
            None => vec![outline(module, linked)],
        }
    }

    /// Asks the reader about addresses of one file.
    fn ask(&mut self, file: &CodeFile, addresses: &[u64]) {
        let Some(module) = &file.module else {
            return;
        };
        let separate = debug_file(file, module);
        let mut rest = addresses;
        while !rest.is_empty() && self.known.len() < MAX_PLACES {
            let now = rest.get(..MAX_ADDRESSES).unwrap_or(rest);
            let Some(answers) = self.answers(module, separate.as_ref(), now) else {
                return;
            };
            for (linked, at) in now.iter().zip(&answers) {
                let frames = frames(at, &outline(module, *linked));
                self.known.insert((module.id, *linked), frames);
            }
            // At least one was answered.
            rest = rest.get(answers.len().max(1)..).unwrap_or_default();
        }
    }

    /// With lines, or else without; none where the reader cannot be asked now.
    fn answers(
        &mut self,
        module: &Module,
        separate: Option<&File>,
        addresses: &[u64],
    ) -> Option<Vec<At>> {
        if self.without_names.contains(&module.id) {
            return Some(vec![At::default(); addresses.len()]);
        }
        let mut no_lines = None;
        if !self.without_lines.contains(&module.id) {
            match reader::names(&module.file, separate, true, addresses) {
                Ok(answers) => return Some(answers),
                Err(Unread::Later(_)) => return None,
                Err(why) => no_lines = Some(why),
            }
        }
        let path = Text::name(module.path.as_os_str().as_encoded_bytes());
        match reader::names(&module.file, separate, false, addresses) {
            Ok(answers) => {
                if let Some(why) = no_lines {
                    tracing::warn!("lines of {path} could not be read: {why}");
                    self.without_lines.insert(module.id);
                }
                Some(answers)
            }
            Err(Unread::Later(_)) => None,
            Err(why) => {
                tracing::warn!("names of {path} could not be read: {why}");
                self.without_lines.remove(&module.id);
                self.without_names.insert(module.id);
                Some(vec![At::default(); addresses.len()])
            }
        }
    }
}

fn looked_up(address: u64, exact: bool) -> u64 {
    if exact {
        address
    } else {
        address.wrapping_sub(1)
    }
}

/// The file behind an address, if there is one that was opened.
fn behind(space: &AddressSpace, address: u64) -> Option<(&Code, &Arc<CodeFile>, &Module)> {
    let code = space.find(address)?;
    let file = code.file.as_ref().ok()?;
    Some((code, file, file.module.as_ref()?))
}

fn bare(module: Text, build_id: Option<String>, linked: u64) -> Frame {
    Frame {
        module: Some(module),
        build_id,
        offset: Some(format!("{linked:#x}")),
        ..Frame::default()
    }
}

fn outline(module: &Module, linked: u64) -> Frame {
    let name = Text::name(module.path.as_os_str().as_encoded_bytes());
    bare(name, module.build_id.clone(), linked)
}

/// What the reader has told of one address.
fn frames(at: &At, outline: &Frame) -> Vec<Frame> {
    if at.0.is_empty() {
        return vec![outline.clone()];
    }
    let frame = |name: &reader::question::Name| Frame {
        function: name
            .function
            .as_deref()
            .map(|function| Text::symbol(without_hash(function))),
        file: name.file.as_deref().map(Text::name),
        line: name.line,
        inlined: name.inlined,
        ..outline.clone()
    };
    at.0.iter().map(frame).collect()
}

/// The file that holds a file's debug information, where the distribution has
/// installed one: by build id, or by the name in `.gnu_debuglink`. The reader
/// compares the build ids.
fn debug_file(file: &CodeFile, module: &Module) -> Option<File> {
    let id = module.build_id.as_deref()?;
    let (first, rest) = id.split_at_checked(2)?;
    let by_id = PathBuf::from(format!("{DEBUG_FILES}/.build-id/{first}/{rest}.debug"));
    let by_name = file.debug_link.as_deref().and_then(|name| {
        let directory = module.path.parent()?.strip_prefix("/").ok()?;
        Some(Path::new(DEBUG_FILES).join(directory).join(name))
    });
    [Some(by_id), by_name]
        .into_iter()
        .flatten()
        .filter(|path| path.exists())
        .find_map(|path| Some(Module::open_path(&path).ok()?.file))
}

/// Drops the hash that ends a legacy Rust name: it changes with every build.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((rest, hash))
            if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            rest
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_dropped() {
        assert_eq!(without_hash("a::b::h0123456789abcdef"), "a::b");
        assert_eq!(without_hash("a::hello"), "a::hello");
        assert_eq!(without_hash("malloc"), "malloc");
    }
}
