//! The type of the future behind a vtable, as far as the file tells.
//!
//! v0 symbols of the vtable's `poll` name it. Legacy symbols have no type
//! arguments, but the drop of a cell is called `drop_in_place<Cell<F, S>>`.
//! A stripped file has no types; there the source location has to do.

use object::read::ReadRef;

use super::{
    boundary::{self, Polled},
    source_location::{self, SourceLocation},
    task_code::TaskCode,
    vtable::Vtable,
};
use crate::elf::{SymbolKind, functions::Functions, image::Image};

/// Calls from a vtable's function to the code that is looked for.
const DEPTH: u32 = 3;
/// The same where nothing was inlined: debug builds.
const DEBUG_DEPTH: u32 = 12;
/// Longest symbol that is demangled.
const MAX_SYMBOL: usize = 16 << 10;
/// Longest type that is kept.
const MAX_TYPE: usize = 4096;
/// What holds a future, most telling first: the types that `drop_in_place`
/// is called for.
const HOLDERS: [&str; 3] = [
    "tokio::runtime::task::core::Cell<",
    "tokio::runtime::task::core::CoreStage<",
    "tokio::runtime::task::core::Stage<",
];
/// `poll` of a vtable, up to its type arguments.
const POLL: &str = "tokio::runtime::task::raw::poll::<";

/// What a future is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FutureName {
    /// Its type in full, as the symbol spells it.
    pub full: Option<String>,
    /// The function or type that a person would look for.
    pub short: Option<String>,
    /// Where it is in the source.
    pub location: Option<SourceLocation>,
    /// Whose work it is.
    pub kind: Kind,
}

/// Whose work a task does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A spawned future.
    #[default]
    Future,
    /// A function on the blocking pool.
    Blocking,
    /// Tokio's own: its workers run on the blocking pool.
    Runtime,
}

impl FutureName {
    /// Whether the future is a boxed trait object, whose own type its vtable
    /// tells.
    pub fn is_boxed(&self) -> bool {
        self.full
            .as_deref()
            .is_some_and(|full| strip_path(full).starts_with("Pin<") && full.contains("Box<dyn"))
    }
}

/// `core::pin::Pin<…>` as `Pin<…>`.
fn strip_path(full: &str) -> &str {
    let path_end = full.find('<').unwrap_or(full.len());
    let start = full
        .get(..path_end)
        .and_then(|path| path.rfind("::"))
        .map_or(0, |at| at + 2);
    full.get(start..).unwrap_or(full)
}

/// Names the future of a vtable.
pub fn of_vtable<'data, R: ReadRef<'data>>(
    code: &mut TaskCode<'_, '_, 'data, R>,
    vtable: &Vtable,
) -> FutureName {
    let full = by_poll(code.functions, vtable.poll()).or_else(|| by_drop(code, vtable));
    let near = [(&[vtable.poll()][..], DEPTH), (&vtable.owners()[..], DEPTH)];
    let far = (&[vtable.poll()][..], DEBUG_DEPTH);
    let location = near
        .into_iter()
        .map(|place| (place, false))
        .chain([(far, true)])
        .find_map(|((starts, depth), certain)| {
            let reached = code.reachable(starts, depth, certain);
            source_location::of_future(code, &reached, certain)
        });
    let (short, kind) = full.as_deref().map_or((None, Kind::Future), described);
    FutureName {
        full,
        short,
        location: location.filter(|_| kind != Kind::Runtime),
        kind,
    }
}

/// Names a boxed future by the vtable of its trait object.
pub fn of_trait_object<'data, R: ReadRef<'data>>(
    code: &mut TaskCode<'_, '_, 'data, R>,
    address: u64,
) -> Option<FutureName> {
    let poll = trait_object_method(code.image, address)?;
    let symbols = code.functions.symbols(poll);
    let names: Vec<String> = symbols
        .iter()
        .filter_map(|symbol| demangled(symbol.name))
        .collect();
    let full = names.into_iter().next();
    let short = full.as_deref().and_then(boundary::future_of_poll);
    let reached = code.reachable(&[poll], DEPTH, false);
    let location = source_location::of_future(code, &reached, false);
    (short.is_some() || location.is_some()).then_some(FutureName {
        full,
        short,
        location,
        kind: Kind::Future,
    })
}

/// The first method of the trait object whose vtable is at `address`: drop
/// (or none), size, alignment, methods.
fn trait_object_method<'data, R: ReadRef<'data>>(
    image: &Image<'_, 'data, R>,
    address: u64,
) -> Option<u64> {
    let drop_is_sound = match image.pointer(address).filter(|target| *target != 0) {
        Some(target) => image.is_code(target),
        None => image.number(address) == Some(0),
    };
    let size = image.number(address.checked_add(8)?)?;
    let align = image.number(address.checked_add(16)?)?;
    let method = image.pointer(address.checked_add(24)?)?;
    let sound = drop_is_sound
        && size < 1 << 30
        && align.is_power_of_two()
        && align <= 4096
        && image.is_code(method);
    sound.then_some(method)
}

fn demangled(symbol: &[u8]) -> Option<String> {
    let symbol = std::str::from_utf8(symbol.get(..MAX_SYMBOL.min(symbol.len()))?).ok()?;
    let name = rustc_demangle::try_demangle(symbol).ok()?;
    // Without hashes.
    Some(format!("{name:#}"))
}

/// By the v0 symbol of the vtable's `poll`.
fn by_poll(functions: &Functions<'_>, poll: u64) -> Option<String> {
    functions.symbols(poll).iter().find_map(|symbol| {
        if !symbol.name.starts_with(b"_R") {
            return None;
        }
        let name = demangled(symbol.name)?;
        first_argument(name.strip_prefix(POLL)?)
    })
}

/// By the drop of what holds the future.
fn by_drop<'data, R: ReadRef<'data>>(
    code: &mut TaskCode<'_, '_, 'data, R>,
    vtable: &Vtable,
) -> Option<String> {
    let reached = code.reachable(&vtable.owners(), DEPTH, false);
    let mut best: Option<((usize, u32), String)> = None;
    for found in reached {
        for symbol in code.functions.symbols(found.function) {
            if symbol.kind != SymbolKind::Function {
                continue;
            }
            let Some((holder, name)) = demangled(symbol.name).as_deref().and_then(held) else {
                continue;
            };
            let rank = (holder, found.depth);
            if best.as_ref().is_none_or(|(known, _)| rank < *known) {
                best = Some((rank, name));
            }
        }
    }
    best.map(|(_, name)| name)
}

/// The future in `drop_in_place<Cell<F, S>>` and its kin, and which of the
/// kin it was.
fn held(name: &str) -> Option<(usize, String)> {
    let inner = name.split_once("drop_in_place")?.1;
    // Only the holder itself, not something that has one inside.
    let inner = inner.trim_start_matches("::").strip_prefix('<')?;
    HOLDERS.iter().enumerate().find_map(|(index, holder)| {
        // A box of a cell is dropped where a cell is.
        let rest = inner
            .strip_prefix("alloc::boxed::Box<")
            .unwrap_or(inner)
            .strip_prefix(holder)?;
        Some((index, first_argument(rest)?))
    })
}

/// The first argument of a list whose opening bracket is already read.
fn first_argument(list: &str) -> Option<String> {
    let mut depth = 0_u32;
    let mut before = 0;
    for (index, byte) in list.bytes().enumerate() {
        match byte {
            b'<' | b'(' | b'[' | b'{' => depth += 1,
            // The arrow of a function type closes nothing.
            b'>' if before == b'-' => {}
            b'>' | b',' if depth == 0 => {
                let argument = list.get(..index.min(MAX_TYPE))?.trim();
                return (!argument.is_empty()).then(|| argument.to_owned());
            }
            b'>' | b')' | b']' | b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        before = byte;
    }
    None
}

/// The short name and the kind of a future's type.
fn described(full: &str) -> (Option<String>, Kind) {
    let is_blocking = full
        .split('<')
        .next()
        .is_some_and(|head| head.ends_with("blocking::task::BlockingTask"));
    let kind = if is_blocking {
        Kind::Blocking
    } else {
        Kind::Future
    };
    match boundary::future_of_type(full) {
        Some(Polled::Future(name)) => (Some(name), kind),
        Some(Polled::Runtime) => (None, Kind::Runtime),
        Some(Polled::Unnamed) | None => (None, kind),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_dropped_names_the_future() {
        let scheduler = "alloc::sync::Arc<tokio::runtime::scheduler::multi_thread::handle::Handle>";
        for (name, expected) in [
            (
                format!(
                    "core::ptr::drop_in_place<tokio::runtime::task::core::Cell<app::serve::{{{{closure}}}},{scheduler}>>"
                ),
                Some((0, "app::serve::{{closure}}")),
            ),
            (
                format!(
                    "core::ptr::drop_in_place::<tokio::runtime::task::core::Cell<app::serve::{{closure#0}}, {scheduler}>>"
                ),
                Some((0, "app::serve::{closure#0}")),
            ),
            (
                format!(
                    "core::ptr::drop_in_place<alloc::boxed::Box<tokio::runtime::task::core::Cell<app::F<(u8, [u8; 3])>,{scheduler}>>>"
                ),
                Some((0, "app::F<(u8, [u8; 3])>")),
            ),
            (
                "core::ptr::drop_in_place<tokio::runtime::task::core::Stage<core::pin::Pin<alloc::boxed::Box<dyn core::future::future::Future<Output = ()>+core::marker::Send>>>>".into(),
                Some((2, "core::pin::Pin<alloc::boxed::Box<dyn core::future::future::Future<Output = ()>+core::marker::Send>>")),
            ),
            ("core::ptr::drop_in_place<alloc::vec::Vec<u8>>".into(), None),
            ("core::ptr::drop_in_place<tokio::runtime::task::core::Cell<".into(), None),
            // somebody else's type that has a cell inside
            (
                "core::ptr::drop_in_place<app::Keeper<tokio::runtime::task::core::Cell<app::f,X>>>".into(),
                None,
            ),
        ] {
            let found = held(&name);
            let found = found.as_ref().map(|(rank, name)| (*rank, name.as_str()));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn short_names_and_kinds() {
        for (full, short, kind) in [
            ("app::serve::{{closure}}", Some("app::serve"), Kind::Future),
            (
                "tokio::runtime::blocking::task::BlockingTask<app::load::{{closure}}>",
                Some("app::load"),
                Kind::Blocking,
            ),
            (
                "tokio::runtime::blocking::task::BlockingTask<tokio::runtime::scheduler::multi_thread::worker::Launch::launch::{{closure}}>",
                None,
                Kind::Runtime,
            ),
            (
                "core::pin::Pin<alloc::boxed::Box<dyn core::future::future::Future<Output = ()>>>",
                None,
                Kind::Future,
            ),
        ] {
            assert_eq!(described(full), (short.map(str::to_owned), kind), "{full}");
        }
    }

    #[test]
    fn boxed_futures_are_known() {
        let name = |full: &str| FutureName {
            full: Some(full.to_owned()),
            ..FutureName::default()
        };
        assert!(
            name("core::pin::Pin<alloc::boxed::Box<dyn core::future::future::Future>>").is_boxed()
        );
        assert!(!name("app::Keeper<core::pin::Pin<alloc::boxed::Box<dyn X>>>").is_boxed());
        assert!(!FutureName::default().is_boxed());
    }

    proptest! {
        #[test]
        fn arbitrary_names_are_no_trouble(name in "[a-z:<>(){},\\[\\]\\- é]{0,80}") {
            let _ = held(&format!("core::ptr::drop_in_place<tokio::runtime::task::core::Cell<{name}"));
            let _ = first_argument(&name);
            let _ = described(&name);
            let _ = strip_path(&name);
        }
    }
}
