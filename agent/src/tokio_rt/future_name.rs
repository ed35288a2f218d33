//! The type of the future behind a vtable, as far as the file tells.
//!
//! v0 symbols of the vtable's `poll` name it. Legacy symbols have no type
//! arguments, but the drop of a cell is called `drop_in_place<Cell<F, S>>`.
//! Compilers make one function of several that do the same, and two futures
//! that hold the same are dropped alike: such a name is believed only if no
//! other future shares the function. Then the function that says where the
//! future stands in the source names it, or its alternatives are told. A
//! stripped file has no types; there the source location has to do.

use std::collections::{BTreeMap, BTreeSet};

use object::read::ReadRef;
use serde::{Deserialize, Serialize};

use super::{
    boundary::{self, Polled},
    source_location::{self, Found, SourceLocation},
    task_code::TaskCode,
    vtable::Vtable,
};
use crate::{
    elf::{functions::Functions, image::Image},
    reader::bounded::list,
};

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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FutureName {
    /// Its type in full, as the symbol spells it.
    pub full: Option<String>,
    /// The function or type that a person would look for.
    pub short: Option<String>,
    /// What it may be, where functions were merged and nothing tells which.
    #[serde(deserialize_with = "list::<_, _, MAX_ALTERNATIVES>")]
    pub alternatives: Vec<String>,
    /// Where it is in the source.
    pub location: Option<SourceLocation>,
    /// Whose work it is.
    pub kind: Kind,
}

/// Whose work a task does.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
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
    /// Whether it is no longer than names are cut to.
    pub fn is_bounded(&self) -> bool {
        let texts = self
            .full
            .iter()
            .chain(&self.short)
            .chain(&self.alternatives);
        self.alternatives.len() <= MAX_ALTERNATIVES
            && texts.into_iter().all(|text| text.len() <= MAX_SYMBOL)
            && self
                .location
                .as_ref()
                .is_none_or(SourceLocation::is_bounded)
    }

    /// Whether no symbol tells anything of it.
    pub fn is_unknown(&self) -> bool {
        self.full.is_none() && self.alternatives.is_empty() && self.kind == Kind::Future
    }

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

/// Most alternatives that are told.
const MAX_ALTERNATIVES: usize = 8;

/// Names the futures of one file.
#[derive(Default)]
pub struct Namer {
    /// Functions that drop a cell or its future, and the vtables (by `poll`)
    /// they serve.
    drops: BTreeMap<u64, BTreeSet<u64>>,
    found: BTreeMap<u64, Option<Found>>,
    /// What functions drop, by their names; each is asked many times.
    held: BTreeMap<u64, Held>,
}

/// Which of [`HOLDERS`] a function drops, and the futures in it; `None` for
/// one that drops none of them.
type Held = Option<(usize, BTreeSet<String>)>;

/// A function that drops a future, and whose it may be.
struct Drop {
    function: u64,
    names: BTreeSet<String>,
}

impl Namer {
    /// `all` are the file's vtables, in use or not.
    pub fn new<'data, R: ReadRef<'data>>(
        code: &mut TaskCode<'_, '_, 'data, R>,
        all: &[Vtable],
    ) -> Self {
        let mut namer = Self::default();
        for vtable in all {
            if let Some(drop) = namer.drop_of(code, vtable) {
                let served = namer.drops.entry(drop.function).or_default();
                served.insert(vtable.poll());
            }
        }
        namer
    }

    /// Names the future of a vtable.
    pub fn name<'data, R: ReadRef<'data>>(
        &mut self,
        code: &mut TaskCode<'_, '_, 'data, R>,
        vtable: &Vtable,
    ) -> FutureName {
        let found = self.found(code, vtable);
        let by_poll = names_of_poll(code.functions, vtable.poll());
        let mut names = if by_poll.is_empty() {
            self.names_of_drop(code, vtable, found.as_ref())
        } else {
            by_poll
        };
        if names.len() != 1
            && let Some(own) = found.as_ref().and_then(|found| name_of_body(code, found))
            && (names.is_empty() || names.contains(&own))
        {
            names = BTreeSet::from([own]);
        }
        // Several types may still be of one function, or all of Tokio.
        let mut described: BTreeSet<_> = names.iter().map(|name| described(name)).collect();
        let mut kinds = described.iter().map(|(_, kind)| *kind);
        let kind = kinds.next().unwrap_or_default();
        let kind = if kinds.all(|other| other == kind) {
            kind
        } else {
            Kind::Future
        };
        let is_sure = described.len() == 1;
        let short = described.pop_first().and_then(|(short, _)| short);
        let (short, alternatives) = if is_sure {
            (short, Vec::new())
        } else {
            let rest = described.into_iter().filter_map(|(short, _)| short);
            let alternatives = short.into_iter().chain(rest);
            (None, alternatives.take(MAX_ALTERNATIVES).collect())
        };
        let full = if names.len() == 1 {
            names.pop_first()
        } else {
            None
        };
        FutureName {
            full,
            short,
            alternatives,
            location: found
                .map(|found| found.location)
                .filter(|_| kind != Kind::Runtime),
            kind,
        }
    }

    /// Where the future of a vtable stands in the source.
    fn found<'data, R: ReadRef<'data>>(
        &mut self,
        code: &mut TaskCode<'_, '_, 'data, R>,
        vtable: &Vtable,
    ) -> Option<Found> {
        if let Some(known) = self.found.get(&vtable.poll()) {
            return known.clone();
        }
        let near = [(&[vtable.poll()][..], DEPTH), (&vtable.owners()[..], DEPTH)];
        let far = (&[vtable.poll()][..], DEBUG_DEPTH);
        let found = near
            .into_iter()
            .map(|place| (place, false))
            .chain([(far, true)])
            .find_map(|((starts, depth), certain)| {
                let reached = code.reachable(starts, depth, certain);
                source_location::of_future(code, &reached, certain)
            });
        self.found.insert(vtable.poll(), found.clone());
        found
    }

    /// The most telling drop of what holds the future that is near.
    fn drop_of<'data, R: ReadRef<'data>>(
        &mut self,
        code: &mut TaskCode<'_, '_, 'data, R>,
        vtable: &Vtable,
    ) -> Option<Drop> {
        let mut best: Option<((usize, u32), u64)> = None;
        for found in code.reachable(&vtable.owners(), DEPTH, false) {
            let held = self.held.entry(found.function);
            let held = held.or_insert_with(|| held_by(code.functions, found.function));
            if let Some((holder, _)) = held {
                let rank = (*holder, found.depth);
                if best.is_none_or(|(known, _)| rank < known) {
                    best = Some((rank, found.function));
                }
            }
        }
        let (_, function) = best?;
        let (_, names) = self.held.get(&function)?.clone()?;
        Some(Drop { function, names })
    }

    /// The names that the drop of a cell gives; none if it also drops a
    /// future that stands elsewhere in the source, and so has another name.
    fn names_of_drop<'data, R: ReadRef<'data>>(
        &mut self,
        code: &mut TaskCode<'_, '_, 'data, R>,
        vtable: &Vtable,
        found: Option<&Found>,
    ) -> BTreeSet<String> {
        let Some(drop) = self.drop_of(code, vtable) else {
            return BTreeSet::new();
        };
        if drop.names.len() > 1 {
            return drop.names;
        }
        let served = self.drops.get(&drop.function).cloned().unwrap_or_default();
        let others = served.into_iter().filter(|poll| *poll != vtable.poll());
        let own = found.map(|found| &found.location);
        for poll in others.take(MAX_SHARED) {
            let other = Vtable {
                functions: [poll; 7],
                ..vtable.clone()
            };
            let other = self.found(code, &other).map(|found| found.location);
            if own.is_none() || other.as_ref() != own {
                return BTreeSet::new();
            }
        }
        drop.names
    }
}

/// Vtables that share a drop function and are compared.
const MAX_SHARED: usize = 32;

/// The name of the function that names the place, if it is a future's body.
fn name_of_body<'data, R: ReadRef<'data>>(
    code: &TaskCode<'_, '_, 'data, R>,
    found: &Found,
) -> Option<String> {
    if !found.is_opening {
        return None;
    }
    let symbols = code.functions.symbols(found.function);
    let mut names: BTreeSet<String> = symbols
        .iter()
        .filter_map(|symbol| demangled(symbol.name))
        .filter(|name| boundary::is_own_body(name))
        .collect();
    if names.len() == 1 {
        names.pop_first()
    } else {
        None
    }
}

/// Names a boxed future by the vtable of its trait object.
pub fn of_trait_object<'data, R: ReadRef<'data>>(
    code: &mut TaskCode<'_, '_, 'data, R>,
    address: u64,
) -> Option<FutureName> {
    let poll = trait_object_method(code.image, address)?;
    let symbols = code.functions.symbols(poll);
    let mut names: BTreeSet<String> = symbols
        .iter()
        .filter_map(|symbol| demangled(symbol.name))
        .collect();
    // Of several merged functions none is certain.
    let full = if names.len() == 1 {
        names.pop_first()
    } else {
        None
    };
    let short = full.as_deref().and_then(boundary::future_of_poll);
    let reached = code.reachable(&[poll], DEPTH, false);
    let location = source_location::of_future(code, &reached, false).map(|found| found.location);
    (short.is_some() || location.is_some()).then_some(FutureName {
        full,
        short,
        location,
        ..FutureName::default()
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

/// By the v0 symbols of the vtable's `poll`.
fn names_of_poll(functions: &Functions<'_>, poll: u64) -> BTreeSet<String> {
    let symbols = functions.symbols(poll).iter();
    symbols
        .filter(|symbol| symbol.name.starts_with(b"_R"))
        .filter_map(|symbol| first_argument(demangled(symbol.name)?.strip_prefix(POLL)?))
        .collect()
}

/// What the function at an address drops.
fn held_by(functions: &Functions<'_>, function: u64) -> Held {
    let mut held_by: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for symbol in functions.symbols(function) {
        let name = demangled(symbol.name);
        if let Some((holder, name)) = name.as_deref().and_then(held) {
            held_by.entry(holder).or_default().insert(name);
        }
    }
    held_by.pop_first()
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
