//! Demangled Rust paths, taken apart as far as stacks need it.

use std::borrow::Cow;

/// Longest name that is looked at.
const MAX_NAME: usize = 16 << 10;

/// Qualified paths inside each other that are followed.
const MAX_DEPTH: usize = 8;

/// A function's or type's path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Without generic arguments; `<Type as Trait>::method` as `Type::method`.
    plain: String,
    /// The first generic argument: the self type's, else the function's.
    argument: Option<String>,
}

impl Path {
    /// Takes a name apart; `None` for one that is no path or badly nested.
    pub(super) fn parse(name: &str) -> Option<Self> {
        if name.len() > MAX_NAME {
            return None;
        }
        let name = without_hashes(name.trim());
        let mut path = Self {
            plain: String::new(),
            argument: None,
        };
        path.take(&name, MAX_DEPTH)?;
        (!path.plain.is_empty()).then_some(path)
    }

    fn take(&mut self, name: &str, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        let mut rest = name;
        while let Some(open) = rest.find('<') {
            let (before, group) = (rest.get(..open)?, rest.get(open..)?);
            let end = group_end(group)?;
            let inner = group.get(1..end)?;
            self.plain.push_str(before);
            rest = group.get(end + 1..)?;
            // `<Type as Trait>`, `<Type>` and `<impl Trait for Type>` stand
            // for the type; any other list holds arguments.
            if self.plain.is_empty() {
                self.take(
                    split_outside(inner, " as ").map_or(inner, |(own, _)| own),
                    depth,
                )?;
            } else if let Some((_, own)) = inner
                .strip_prefix("impl ")
                .and_then(|inner| split_outside(inner, " for "))
            {
                self.plain.clear();
                self.take(own, depth)?;
            } else {
                if self.plain.ends_with("::") {
                    self.plain.truncate(self.plain.len() - 2);
                }
                let first = split_outside(inner, ",").map_or(inner, |(first, _)| first);
                self.argument.get_or_insert_with(|| first.trim().to_owned());
            }
        }
        self.plain.push_str(rest);
        Some(())
    }

    /// The path without generic arguments.
    pub(super) fn plain(&self) -> &str {
        &self.plain
    }

    /// The first generic argument.
    pub(super) fn first_argument(&self) -> Option<&str> {
        self.argument.as_deref()
    }

    /// Whether it is some type's `poll`.
    pub(super) fn is_poll(&self) -> bool {
        self.plain.ends_with("::poll")
    }

    /// The name of a future's type: that of an async function or block is the
    /// function around it.
    pub(super) fn future_name(&self) -> String {
        match self.plain.rsplit_once("::") {
            Some((around, last)) if is_closure(last) => around.to_owned(),
            _ => self.plain.clone(),
        }
    }

    /// The future whose body this function is, if it is one's.
    pub(super) fn polled_type(&self) -> Option<String> {
        let (around, last) = self.plain.rsplit_once("::")?;
        if is_closure(last) {
            return Some(around.to_owned());
        }
        let own = (last == "poll").then_some(around)?;
        let own = own
            .rsplit_once("::")
            .filter(|(_, last)| last.starts_with("{impl#"))
            .map_or(own, |(around, _)| around);
        Some(
            Self {
                plain: own.to_owned(),
                argument: None,
            }
            .future_name(),
        )
    }
}

/// Whether a path segment is a closure or the body of an async function or
/// block.
pub(super) fn is_closure(segment: &str) -> bool {
    segment.starts_with('{')
        && segment.ends_with('}')
        && !segment.starts_with("{impl#")
        && !segment.starts_with("{{vtable")
}

/// The end of the group that the first byte of `text` opens, which is `<`.
fn group_end(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut before = 0;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'<' => depth += 1,
            // The arrow of a function type closes nothing.
            b'>' if before != b'-' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(index);
                }
            }
            _ => {}
        }
        before = byte;
    }
    None
}

/// Splits at the first separator that is in no brackets.
fn split_outside<'text>(text: &'text str, separator: &str) -> Option<(&'text str, &'text str)> {
    let mut depth = 0_i32;
    let mut before = 0;
    for (index, byte) in text.bytes().enumerate() {
        if depth == 0 && text.get(index..)?.starts_with(separator) {
            return Some((text.get(..index)?, text.get(index + separator.len()..)?));
        }
        match byte {
            b'<' | b'(' | b'[' => depth += 1,
            b'>' if before != b'-' => depth -= 1,
            b')' | b']' => depth -= 1,
            _ => {}
        }
        before = byte;
    }
    None
}

/// Removes what tells copies of a function apart: the hash of legacy names
/// and the crate disambiguators of v0.
fn without_hashes(name: &str) -> Cow<'_, str> {
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = match name.rsplit_once("::h") {
        Some((rest, hash)) if hash.len() == 16 && is_hex(hash) => rest,
        _ => name,
    };
    if !name.contains('[') {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('[') {
        out.push_str(before);
        let follows_name = before.ends_with(|last: char| last.is_alphanumeric() || last == '_');
        match after.split_once(']') {
            Some((hash, after)) if follows_name && is_hex(hash) => rest = after,
            _ => {
                out.push('[');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}
