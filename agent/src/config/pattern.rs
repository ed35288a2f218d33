//! Names with wildcards.
//!
//! Function names contain brackets and braces (`<[u8]>::to_vec`,
//! `main::{{closure}}`), so only `*` and `?` are special, unlike in a shell.

use std::fmt;

use super::section::Scalar;

/// Longest pattern in bytes.
const MAX_LENGTH: usize = 256;

/// A pattern that a whole name has to match: `*` stands for any number of
/// characters, also for `/`, and `?` for exactly one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Reads a pattern; the error says what is wrong.
    pub fn read(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }

    /// Whether the whole name matches.
    pub fn matches(&self, name: &str) -> bool {
        wildcard(self.0.as_bytes(), name.as_bytes())
    }

    /// Whether the path of an executable matches: a pattern with a slash is
    /// compared with the whole path, any other with the file's name.
    pub fn matches_path(&self, path: &str) -> bool {
        let compared = if self.0.contains('/') {
            path
        } else {
            path.rsplit('/').next().unwrap_or(path)
        };
        self.matches(compared)
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scalar for Pattern {
    fn parse(word: &str) -> Result<Self, String> {
        if word.is_empty() {
            return Err("an empty pattern matches nothing; write * for everything".to_owned());
        }
        if word.len() > MAX_LENGTH {
            return Err(format!("is longer than {MAX_LENGTH} bytes"));
        }
        Ok(Self(word.to_owned()))
    }

    fn word(&self) -> String {
        self.0.clone()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Greedy with one point to return to: at most pattern × name steps.
fn wildcard(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = name.get(n) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                // one character, however many bytes it has
                n += 1;
                while name.get(n).is_some_and(|byte| byte & 0xc0 == 0x80) {
                    n += 1;
                }
            }
            Some(&wanted) if wanted == byte => {
                p += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    p = *at + 1;
                    n = *from;
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .unwrap_or_default()
        .iter()
        .all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn wildcards() {
        for (text, name, expected) in [
            ("sshd", "sshd", true),
            ("sshd", "sshd2", false),
            ("systemd*", "systemd-journald", true),
            ("*.service", "web.service", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-", false),
            ("a?c", "aéc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("?", "", false),
            ("/user.slice/*", "/user.slice/a/b", true),
            ("<[u8]>::*", "<[u8]>::to_vec", true),
            ("main::{{closure}}", "main::{{closure}}", true),
            ("[a-z]", "b", false),
        ] {
            assert_eq!(pattern(text).matches(name), expected, "{text} {name}");
        }
    }

    #[test]
    fn a_pattern_without_slash_is_a_file_name() {
        assert!(pattern("redis*").matches_path("/usr/bin/redis-server"));
        assert!(!pattern("/opt/*").matches_path("/usr/bin/redis-server"));
        assert!(pattern("/usr/*").matches_path("/usr/bin/redis-server"));
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(text in "[ab*?]{1,8}", name in "[ab]{0,8}") {
            fn slow(pattern: &[u8], name: &[u8]) -> bool {
                match pattern.split_first() {
                    None => name.is_empty(),
                    Some((b'*', rest)) => (0..=name.len()).any(|skip| slow(rest, &name[skip..])),
                    Some((b'?', rest)) => !name.is_empty() && slow(rest, &name[1..]),
                    Some((byte, rest)) => name.first() == Some(byte) && slow(rest, &name[1..]),
                }
            }
            prop_assert_eq!(pattern(&text).matches(&name), slow(text.as_bytes(), name.as_bytes()));
        }
    }
}
