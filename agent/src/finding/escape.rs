//! The only way in for strings that a target controls.

use std::{fmt, fmt::Write as _};

use serde::Serialize;

/// A string that can do no harm wherever it is printed: of limited length,
/// without control characters, without characters that reorder or hide text,
/// and valid UTF-8. What was there instead is written as an escape: `\n`,
/// `\x1b`, `\u{202e}`, and `\\` for a backslash.
///
/// Names of processes, files, units and tasks ([`Text::name`]) also lose
/// quotes and angle brackets (`\x3c`): nothing sensible contains them, and
/// markup and shell lines are made of them. Function names ([`Text::symbol`])
/// keep them, because `<Vec<T> as Extend>::extend` and `'lambda'(int)` are
/// what functions are called; a terminal and the journal do not interpret
/// them, and the JSON output writes `<`, `>` and `&` as `\u003c` and so on,
/// so that a document is harmless inside a web page too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    /// Longest text in bytes, without the mark of a cut.
    pub const LIMIT: usize = 1024;

    /// The name of a process, file, unit, control group or task.
    pub fn name(bytes: impl AsRef<[u8]>) -> Self {
        Self::escaped(bytes.as_ref(), |c| {
            matches!(c, '\\' | '<' | '>' | '"' | '\'' | '`')
        })
    }

    /// The name of a function or type.
    pub fn symbol(bytes: impl AsRef<[u8]>) -> Self {
        Self::escaped(bytes.as_ref(), |c| c == '\\')
    }

    /// A sentence of ours, which may quote texts or system errors; what is
    /// escaped already stays as it is.
    pub fn sentence(text: impl AsRef<str>) -> Self {
        Self::escaped(text.as_ref().as_bytes(), |_| false)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the last slash; of a path, the file's name.
    pub fn basename(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    fn escaped(bytes: &[u8], unwanted: impl Fn(char) -> bool) -> Self {
        let mut out = String::with_capacity(bytes.len().min(Self::LIMIT) + 4);
        // Looking at more input than could be printed would let a target
        // choose our work.
        let input = bytes.get(..Self::LIMIT + 4).unwrap_or(bytes);
        for chunk in input.utf8_chunks() {
            for c in chunk.valid().chars() {
                let before = out.len();
                push(&mut out, c, unwanted(c));
                if out.len() > Self::LIMIT {
                    out.truncate(before);
                    return Self::cut(out);
                }
            }
            // The bytes at the end of a cut input may be half a character.
            let half = bytes.len() > input.len()
                && chunk.invalid().len() < 4
                && ends_with(input, chunk.invalid());
            for byte in if half { &[] } else { chunk.invalid() } {
                if out.len() + 4 > Self::LIMIT {
                    return Self::cut(out);
                }
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
        if bytes.len() > input.len() {
            Self::cut(out)
        } else {
            Self(out)
        }
    }

    fn cut(mut out: String) -> Self {
        out.push('…');
        Self(out)
    }
}

/// Whether `part` is the very end of `whole`, and not merely equal to it.
fn ends_with(whole: &[u8], part: &[u8]) -> bool {
    whole.as_ptr_range().end == part.as_ptr_range().end
}

fn push(out: &mut String, c: char, unwanted: bool) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\\' if unwanted => out.push_str("\\\\"),
        c if !(unwanted || c.is_control() || is_invisible(c)) => out.push(c),
        c if c.is_ascii() => {
            let _ = write!(out, "\\x{:02x}", u32::from(c));
        }
        c => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
}

/// Characters that reorder, break or hide the text around them: Unicode's
/// bidirectional controls, separators, zero-width characters, annotations,
/// tags, private use and everything that may not appear in text at all.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{e000}'..='\u{f8ff}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{fffe}'..='\u{ffff}'
        | '\u{e0000}'..='\u{10ffff}')
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_names_come_out_escaped() {
        assert_eq!(Text::name("a\x1b[31m\nb").as_str(), "a\\x1b[31m\\nb");
        assert_eq!(
            Text::name("<script>\"'`").as_str(),
            "\\x3cscript\\x3e\\x22\\x27\\x60"
        );
        assert_eq!(Text::name(b"\xff\xc3(").as_str(), "\\xff\\xc3(");
        assert_eq!(
            Text::name("gnp\u{202e}exe.txt").as_str(),
            "gnp\\u{202e}exe.txt"
        );
        assert_eq!(Text::name("\u{9b}31m").as_str(), "\\u{9b}31m");
        assert_eq!(Text::name(r"a\x1b").as_str(), r"a\\x1b");
        assert_eq!(Text::name("Größe 東京").as_str(), "Größe 東京");
    }

    #[test]
    fn function_names_keep_their_brackets() {
        let name = "<alloc::vec::Vec<T> as core::iter::Extend<&'a T>>::extend";
        assert_eq!(Text::symbol(name).as_str(), name);
        assert_eq!(Text::symbol("f\x1b\u{200b}").as_str(), "f\\x1b\\u{200b}");
    }

    #[test]
    fn sentences_do_not_escape_twice() {
        let name = Text::name("a\nb");
        assert_eq!(
            Text::sentence(format!("cannot open {name}")).as_str(),
            "cannot open a\\nb"
        );
    }

    #[test]
    fn long_texts_are_cut_and_marked() {
        let text = Text::name("x".repeat(5000));
        assert_eq!(text.as_str().len(), Text::LIMIT + '…'.len_utf8());
        assert!(text.as_str().ends_with('…'));
        // no half character, no half escape
        let text = Text::name("é\x01".repeat(2000));
        assert!(
            text.as_str().ends_with("\\x01…") || text.as_str().ends_with("é…"),
            "{text}"
        );
        assert_eq!(
            Text::name("x".repeat(Text::LIMIT)).as_str().len(),
            Text::LIMIT
        );
        let text = Text::name(format!("{}é", "x".repeat(Text::LIMIT - 1)));
        assert!(text.as_str().ends_with("x…"), "{text}");
    }

    #[test]
    fn basename_of_paths() {
        assert_eq!(Text::name("/usr/bin/redis").basename(), "redis");
        assert_eq!(Text::name("redis").basename(), "redis");
        assert_eq!(Text::name("").basename(), "");
    }

    proptest! {
        #[test]
        fn no_harm_from_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            for text in [Text::name(&bytes), Text::symbol(&bytes), Text::sentence(String::from_utf8_lossy(&bytes))] {
                prop_assert!(text.as_str().len() <= Text::LIMIT + 3);
                prop_assert!(text.as_str().chars().all(|c| !c.is_control() && !is_invisible(c)));
            }
            prop_assert!(!Text::name(&bytes).as_str().contains(['<', '>', '"', '\'', '`']));
        }

        #[test]
        fn different_names_stay_different(a in ".{0,40}", b in ".{0,40}") {
            prop_assert_eq!(a == b, Text::name(&a) == Text::name(&b));
        }
    }
}
