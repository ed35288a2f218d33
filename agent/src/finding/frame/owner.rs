//! Who wrote a function, read from its demangled name.

/// The path that says who wrote a function: the path itself, the implementing
/// type in `<Type as Trait>::f`, the trait where the type is a parameter or
/// built in.
pub(super) fn owner(name: &str) -> &str {
    let mut rest = name.trim_start();
    // C++ templates start with their return type: `void std::f<int>(int)`.
    if let Some(space) = top_level_space(rest) {
        rest = rest.get(space + 1..).unwrap_or(rest);
    }
    // Types nest; a name that nests deeper than this is nobody's code.
    for _ in 0..8 {
        rest = without_sigils(rest);
        let Some(inside) = rest.strip_prefix("_<").or_else(|| rest.strip_prefix('<')) else {
            return rest;
        };
        let inside = inside.get(..closing(inside)).unwrap_or(inside);
        let (target, of) = match inside.strip_prefix("impl ") {
            Some(block) => match split_top_level(block, " for ") {
                Some((of, target)) => (target, Some(of)),
                None => (block, None),
            },
            None => match split_top_level(inside, " as ") {
                Some((target, of)) => (target, Some(of)),
                None => (inside, None),
            },
        };
        let target = without_sigils(target);
        rest = match of {
            Some(of) if !target.starts_with('<') && !path_of(target).contains("::") => of,
            _ => target,
        };
    }
    rest
}

/// Takes references, pointers, slices and the like off a type.
fn without_sigils(mut name: &str) -> &str {
    loop {
        let before = name;
        name = name.trim_start_matches(['&', '*', '(', '[', ' ']);
        for word in ["mut ", "const ", "dyn ", "unsafe ", "impl "] {
            name = name.strip_prefix(word).unwrap_or(name);
        }
        // lifetimes: 'a
        if let Some(lifetime) = name.strip_prefix('\'') {
            let end = lifetime
                .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                .unwrap_or(lifetime.len());
            name = lifetime.get(end..).unwrap_or("");
        }
        if name == before {
            return name;
        }
    }
}

/// The part of a path before its type or function arguments.
fn path_of(name: &str) -> &str {
    name.split(['<', '(', '[', ' ']).next().unwrap_or(name)
}

pub(super) fn first_segment(path: &str) -> &str {
    // v0 names of crates may carry a disambiguator: std[0123abcd]::…
    let end = path
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(path.len());
    let segment = path.get(..end).unwrap_or(path);
    let is_path = path
        .get(end..)
        .is_some_and(|rest| rest.starts_with("::") || rest.starts_with('['));
    if is_path { segment } else { "" }
}

/// Where the bracket that was opened before `text` closes.
fn closing(text: &str) -> usize {
    let mut depth = 1i32;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
        before = c;
    }
    text.len()
}

/// Splits at the first `separator` outside brackets.
fn split_top_level<'a>(text: &'a str, separator: &str) -> Option<(&'a str, &'a str)> {
    let mut depth = 0i32;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        if depth == 0
            && text
                .get(at..)
                .is_some_and(|rest| rest.starts_with(separator))
        {
            return Some((text.get(..at)?, text.get(at + separator.len()..)?));
        }
        match c {
            '<' | '(' | '[' | '{' => depth += 1,
            '>' if before == '-' => {}
            '>' | ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        before = c;
    }
    None
}

/// The space that ends a C++ return type: the last one outside brackets
/// before the parameter list, if the name has a parameter list.
fn top_level_space(name: &str) -> Option<usize> {
    if name.starts_with(['<', '_'])
        || !name.contains('(')
        || name.starts_with("operator ")
        || name.contains("{closure")
    {
        return None;
    }
    let mut depth = 0i32;
    let mut found = None;
    for (at, c) in name.char_indices() {
        match c {
            '(' if depth == 0
                && at > 0
                && !name
                    .get(at..)
                    .is_some_and(|rest| rest.starts_with("(anonymous")) =>
            {
                break;
            }
            '<' | '(' | '[' | '{' => depth += 1,
            '>' | ')' | ']' | '}' => depth -= 1,
            ' ' if depth == 0 => found = Some(at),
            _ => {}
        }
    }
    // `operator new`, `A::operator bool()` keep their space
    found.filter(|at| {
        !name
            .get(..*at)
            .is_some_and(|front| front.ends_with("operator"))
    })
}
