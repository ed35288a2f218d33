//! Rust text without what is no code.

/// Blanks comments, and the content of string and character literals; lines
/// stay where they are.
pub(crate) fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after_word = code.ends_with(|before: char| before.is_alphanumeric() || before == '_');
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            'r' | 'b' | 'c' if !after_word => prefixed_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        let (skipped, next) = if length == 0 {
            rest.split_at(c.len_utf8())
        } else {
            rest.split_at(length)
        };
        if length == 0 {
            code.push_str(skipped);
        } else {
            code.push(' ');
            code.extend(skipped.chars().filter(|c| *c == '\n'));
        }
        rest = next;
    }
    code
}

/// Length of the comment, with those in it.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of a string that starts here, with both quotes.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of `b"…"`, `r#"…"#` and their like; 0 if it is none.
fn prefixed_string(text: &str) -> usize {
    let prefix = text.find(|c| !matches!(c, 'r' | 'b' | 'c')).unwrap_or(0);
    let Some(rest) = text.get(prefix..).filter(|_| (1..=2).contains(&prefix)) else {
        return 0;
    };
    if !text[..prefix].contains('r') {
        return if rest.starts_with('"') {
            prefix + string(rest)
        } else {
            0
        };
    }
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    if !rest[hashes..].starts_with('"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let start = prefix + hashes + 1;
    text[start..]
        .find(&close)
        .map_or(text.len(), |at| start + at + close.len())
}

/// Length of a character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut inner = text.char_indices().skip(1);
    match inner.next() {
        Some((_, '\\')) => text
            .get(3..)
            .and_then(|rest| rest.find('\''))
            .map_or(0, |at| at + 4),
        Some(_) => inner
            .next()
            .filter(|(_, c)| *c == '\'')
            .map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_stays() {
        for text in [
            "a // aya\nb",
            "a /* aya /* aya */ aya */\nb",
            "a \"aya \\\" aya\"\nb",
            "a r#\"aya \" aya\"#\nb",
            "a b\"aya\" br\"aya\\\"\nb",
            "a \"\naya\"b",
            "a '\"' // aya\nb",
            "a '\\'' '\\u{61}' // aya \"\nb",
        ] {
            let code = code_only(text);
            assert!(!code.contains("aya"), "{text} gave {code}");
            assert_eq!(code.lines().count(), 2, "{text} gave {code}");
            assert!(
                code.starts_with("a ") && code.ends_with('b'),
                "{text} gave {code}"
            );
        }
    }

    #[test]
    fn code_is_kept() {
        for text in [
            "fn f<'a>(x: &'a str) -> u8 { aya::x() }",
            "let bar = car / 2;",
            "r#type + rb",
        ] {
            assert_eq!(code_only(text), text);
        }
    }

    #[test]
    fn unfinished_text_ends() {
        for text in [
            "/* aya",
            "\"aya",
            "r##\"aya",
            "'\\",
            "'",
            "b\"",
            "\u{e9}'\u{e9}'",
        ] {
            code_only(text);
        }
    }
}
