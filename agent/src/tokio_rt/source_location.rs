//! Where a future's code stands in the source, from a file without debug
//! information: every panic in it names file, line and column.
//!
//! An async function panics when it is polled after its end; that panic names
//! the function's own opening. Its message survives stripping, and so the
//! function that says it can be recognized.

use object::read::ReadRef;
use serde::{Deserialize, Serialize};

use super::task_code::{Load, Reached, TaskCode};
use crate::elf::image::Image;

/// Longest path that is believed.
const MAX_PATH: u64 = 512;
/// Largest line and column that are believed.
const MAX_LINE: u32 = 1_000_000;
const MAX_COLUMN: u32 = 2_000;
/// What an async function says that was polled after its end, in all editions
/// of the standard library; closures and generators say the like.
const RESUMED: [&[u8]; 2] = [b"resumed after completion", b"resumed after panicking"];
/// Where libraries lie: the standard library as distributed and as built
/// elsewhere, registries and vendored copies.
const LIBRARIES: [&str; 5] = [
    "/rustc/",
    "/library/",
    "/.cargo/registry/",
    "/registry/src/",
    "/vendor/",
];

/// A place in the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceLocation {
    /// As the compiler was given it.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
}

impl std::fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl SourceLocation {
    /// Whether it is such as is believed.
    pub fn is_bounded(&self) -> bool {
        self.file.len() as u64 <= MAX_PATH && self.line <= MAX_LINE && self.column <= MAX_COLUMN
    }

    /// Whether it is in a library and not in the program's own code.
    pub fn is_library(&self) -> bool {
        self.file.starts_with("library/") || LIBRARIES.iter().any(|part| self.file.contains(part))
    }

    /// The `core::panic::Location` at a linked address, if there is one: a
    /// pointer to the path, its length, line and column.
    pub fn at<'data, R: ReadRef<'data>>(image: &Image<'_, 'data, R>, address: u64) -> Option<Self> {
        let path = image.pointer(address)?;
        let words = image.bytes(address.checked_add(8)?, 16)?;
        Self::of(words, |length| image.bytes(path, length))
    }

    /// From the words behind the pointer; `path` reads so many bytes from
    /// where it points.
    pub fn of<'bytes>(
        words: &[u8],
        path: impl FnOnce(u64) -> Option<&'bytes [u8]>,
    ) -> Option<Self> {
        let (length, rest) = words.split_first_chunk::<8>()?;
        let (line, rest) = rest.split_first_chunk::<4>()?;
        let (column, _) = rest.split_first_chunk::<4>()?;
        let length = u64::from_le_bytes(*length);
        let (line, column) = (u32::from_le_bytes(*line), u32::from_le_bytes(*column));
        if !(4..=MAX_PATH).contains(&length)
            || !(1..=MAX_LINE).contains(&line)
            || !(1..=MAX_COLUMN).contains(&column)
        {
            return None;
        }
        let bytes = path(length)?;
        // Newer compilers end it with a zero and count that.
        let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        let file = std::str::from_utf8(bytes).ok()?;
        let sane = bytes.ends_with(b".rs") && !file.contains(|c: char| c.is_control());
        sane.then(|| Self {
            file: file.to_owned(),
            line,
            column,
        })
    }
}

/// A place that a future's code names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The place.
    pub location: SourceLocation,
    /// The function whose code names it.
    pub function: u64,
    /// It is an async function's own opening, not just somewhere in it.
    pub is_opening: bool,
}

/// The likeliest place of a future, whose code is in `reached` functions.
/// `certain` asks for an async function's own panic and takes no other.
pub fn of_future<'data, R: ReadRef<'data>>(
    code: &mut TaskCode<'_, '_, 'data, R>,
    reached: &[Reached],
    certain: bool,
) -> Option<Found> {
    let mut best: Option<(Rank, Found)> = None;
    for found in reached {
        let body = code.body(found.function);
        for (order, load) in body.loads.iter().enumerate() {
            let Some(location) = SourceLocation::at(code.image, load.constant) else {
                continue;
            };
            if location.is_library() {
                continue;
            }
            let rank = Rank {
                is_other_panic: !is_resumed_panic(code, load),
                depth: found.depth,
                distance: load.distance,
                order,
            };
            if certain && rank.is_other_panic {
                continue;
            }
            if best.as_ref().is_none_or(|(known, _)| rank < *known) {
                let found = Found {
                    location,
                    function: found.function,
                    is_opening: !rank.is_other_panic,
                };
                best = Some((rank, found));
            }
        }
    }
    best.map(|(_, found)| found)
}

/// The smaller, the likelier.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    is_other_panic: bool,
    depth: u32,
    distance: u32,
    order: usize,
}

/// Whether the function that is given the constant is the one that panics for
/// an async function polled after its end.
fn is_resumed_panic<'data, R: ReadRef<'data>>(
    code: &mut TaskCode<'_, '_, 'data, R>,
    load: &Load,
) -> bool {
    let Some(called) = load.called else {
        return false;
    };
    let body = code.body(called);
    // It does nothing else.
    if body.extent.end.saturating_sub(body.extent.start) > 256 {
        return false;
    }
    body.loads.iter().any(|load| {
        let direct = code.image.bytes(load.constant, 64);
        // Older standard libraries hand over a list of pieces.
        let piece = code.image.pointer(load.constant);
        let through = piece.and_then(|piece| code.image.bytes(piece, 64));
        [direct, through].into_iter().flatten().any(|text| {
            RESUMED
                .iter()
                .any(|said| text.windows(said.len()).any(|window| window == *said))
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn location(
        length: u64,
        line: u32,
        column: u32,
        path: &'static [u8],
    ) -> Option<SourceLocation> {
        let mut words = length.to_le_bytes().to_vec();
        words.extend(line.to_le_bytes());
        words.extend(column.to_le_bytes());
        SourceLocation::of(&words, |length| path.get(..length as usize))
    }

    #[test]
    fn paths_with_and_without_a_zero() {
        let expected = SourceLocation {
            file: "src/main.rs".into(),
            line: 7,
            column: 3,
        };
        assert_eq!(location(11, 7, 3, b"src/main.rs"), Some(expected.clone()));
        assert_eq!(location(12, 7, 3, b"src/main.rs\0"), Some(expected.clone()));
        assert_eq!(expected.to_string(), "src/main.rs:7:3");
        assert!(!expected.is_library());
    }

    #[test]
    fn what_is_none_is_not_believed() {
        for (length, line, column, path) in [
            (11, 0, 3, &b"src/main.rs"[..]),
            (11, 7, 0, b"src/main.rs"),
            (11, 7, 90_000, b"src/main.rs"),
            (10, 7, 3, b"src/main.rs"),
            (11, 7, 3, b"src/ma\x1b.rs"),
            (11, 7, 3, b"src/\xffain.rs"),
            (12, 7, 3, b"src/main.rs"),
            (1 << 40, 7, 3, b"src/main.rs"),
        ] {
            assert_eq!(location(length, line, column, path), None);
        }
    }

    #[test]
    fn libraries_are_known_by_their_path() {
        for file in [
            "/rustc/abc/library/core/src/option.rs",
            "library/core/src/panicking.rs",
            "/root/.cargo/registry/src/index.crates.io-1/tokio-1.54.1/src/lib.rs",
            "/build/vendor/tokio/src/lib.rs",
        ] {
            let location = SourceLocation {
                file: file.into(),
                line: 1,
                column: 1,
            };
            assert!(location.is_library(), "{file}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_words_are_no_trouble(words in proptest::collection::vec(any::<u8>(), 0..40), path in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(found) = SourceLocation::of(&words, |length| path.get(..length as usize)) {
                prop_assert!(found.file.as_bytes().ends_with(b".rs") && found.line > 0);
            }
        }
    }
}
