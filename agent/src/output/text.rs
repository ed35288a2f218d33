//! The document for people: one screen per finding.

use std::io::{self, Write};

use crate::finding::Document;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Colours by ANSI escapes.
    pub colour: bool,
}

/// Writes the document.
pub fn write(document: &Document, style: Style, out: &mut impl Write) -> io::Result<()> {
    let _ = (document, style);
    out.write_all(b"")
}
