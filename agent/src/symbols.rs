//! Code addresses to functions, files and lines, inlined functions included.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use blazesym::symbolize::{
    CodeInfo, Input, Sym, Symbolized, Symbolizer,
    source::{Elf, Source},
};

use crate::{
    capture::{address_space::AddressSpace, files::CodeFile},
    finding::{Frame, Text},
    host::module::ModuleId,
};

/// Distinct places remembered: 50 000 stacks share most of theirs.
const MAX_PLACES: usize = 1 << 18;

/// A place in a file: module (`None` for the vDSO) and linked address.
type Place = (Option<ModuleId>, u64);

/// Turns addresses into frames; remembers every place it has looked up.
pub struct Symbols {
    symbolizer: Symbolizer,
    known: HashMap<Place, Vec<Frame>>,
}

impl Symbols {
    /// Reads debug information where a file has it.
    pub fn new() -> Self {
        let symbolizer = Symbolizer::builder()
            .enable_code_info(true)
            .enable_inlined_fns(true)
            .enable_demangling(true)
            .build();
        Self {
            symbolizer,
            known: HashMap::new(),
        }
    }

    /// Whether nothing was looked up yet.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The frames at one code address of a process, innermost first. A return
    /// address (`exact` false) is one past the call it belongs to.
    pub fn frames(&mut self, space: &AddressSpace, address: u64, exact: bool) -> Vec<Frame> {
        let lookup = if exact {
            address
        } else {
            address.wrapping_sub(1)
        };
        let Some(code) = space.find(lookup) else {
            return vec![Frame {
                offset: Some(format!("{lookup:#x}")),
                ..Frame::default()
            }];
        };
        let linked = lookup.wrapping_sub(code.bias);
        let bare = |module: Text, build_id: Option<String>| Frame {
            module: Some(module),
            build_id,
            offset: Some(format!("{linked:#x}")),
            ..Frame::default()
        };
        let Ok(file) = &code.file else {
            let name = if code.mapping.path.is_empty() {
                b"[anonymous]"
            } else {
                &code.mapping.path[..]
            };
            return vec![bare(Text::name(name), None)];
        };
        let Some(module) = &file.module else {
            return vec![bare(Text::name("[vdso]"), None)];
        };
        let place = (Some(module.id), linked);
        if let Some(known) = self.known.get(&place) {
            return known.clone();
        }
        let outline = bare(
            Text::name(module.path.as_os_str().as_encoded_bytes()),
            module.build_id.clone(),
        );
        let frames = self.look_up(file, linked, &outline);
        if self.known.len() < MAX_PLACES {
            self.known.insert(place, frames.clone());
        }
        frames
    }

    fn look_up(&self, file: &CodeFile, linked: u64, outline: &Frame) -> Vec<Frame> {
        let Some(module) = &file.module else {
            return vec![outline.clone()];
        };
        // The file is chosen by the target: a fault in a parser costs a name.
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let look = |debug_syms: bool| {
                let mut elf = Elf::new(module.descriptor_path());
                elf.debug_syms = debug_syms;
                self.symbolizer
                    .symbolize_single(&Source::Elf(elf), Input::VirtOffset(linked))
            };
            // Debug information knows inlined functions and lines, but often
            // names functions without their path; the symbol table has that.
            let name = look(false)?
                .into_sym()
                .map(|symbol| symbol.name.into_owned());
            Ok(match look(true)? {
                Symbolized::Sym(symbol) => spread(&symbol, name.as_deref(), outline),
                Symbolized::Unknown(_) => vec![Frame {
                    function: name.as_deref().map(|name| Text::symbol(without_hash(name))),
                    ..outline.clone()
                }],
            })
        }));
        match answer {
            Ok(Ok(frames)) => frames,
            Ok::<blazesym::Result<_>, _>(Err(error)) => {
                tracing::debug!(module = %module.path.display(), %error, "no symbol");
                vec![outline.clone()]
            }
            Err(_) => vec![outline.clone()],
        }
    }
}

impl Default for Symbols {
    fn default() -> Self {
        Self::new()
    }
}

/// One symbol with the functions that were inlined at the address; `name` is
/// its name in the symbol table.
fn spread(symbol: &Sym<'_>, name: Option<&str>, outline: &Frame) -> Vec<Frame> {
    let frame = |name: &str, code: Option<&CodeInfo<'_>>, inlined: bool| Frame {
        function: Some(Text::symbol(without_hash(name))),
        file: code.map(|code| Text::name(code.to_path().as_os_str().as_encoded_bytes())),
        line: code.and_then(|code| code.line),
        inlined,
        ..outline.clone()
    };
    symbol
        .inlined
        .iter()
        .rev()
        .map(|inlined| frame(&inlined.name, inlined.code_info.as_ref(), true))
        .chain(std::iter::once(frame(
            name.unwrap_or(&symbol.name),
            symbol.code_info.as_deref(),
            false,
        )))
        .collect()
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
