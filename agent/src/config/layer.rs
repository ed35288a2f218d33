//! Files: the configuration and its drop-ins, as text and as YAML.

use std::{
    ffi::OsStr,
    fmt, fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_yaml::Value;

use super::problem::{Problem, Step, of_file};

/// Longest file in bytes; with comments the default is a tenth of it.
pub(super) const MAX_BYTES: u64 = 64 << 10;
/// Most drop-ins.
pub(super) const MAX_DROP_INS: usize = 64;

/// One file.
#[derive(Debug)]
pub(super) struct Layer {
    file: PathBuf,
    text: String,
    value: Value,
}

impl Layer {
    /// Parses the text of a file.
    pub(super) fn parse(file: &Path, text: String) -> Result<Self, Problem> {
        match serde_yaml::from_str(&text) {
            Ok(value) => Ok(Self {
                file: file.to_owned(),
                text,
                value,
            }),
            Err(error) => Err(of_file(
                file,
                error.location().map(|location| location.line()),
                format!("this is no YAML: {error}"),
            )),
        }
    }

    /// Reads and parses a file; `None`: there is none.
    pub(super) fn open(file: &Path) -> Result<Option<Self>, Problem> {
        let wrong = |message: String| of_file(file, None, message);
        let found = match fs::metadata(file) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
        };
        // A pipe would keep us waiting.
        if !found.is_file() {
            return Err(wrong("is not a regular file".to_owned()));
        }
        let mut bytes = Vec::new();
        fs::File::open(file)
            .and_then(|open| open.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(wrong(format!(
                "is longer than {} KiB; spread it over drop-ins",
                MAX_BYTES >> 10
            )));
        }
        let text = String::from_utf8(bytes)
            .map_err(|error| wrong(format!("is not UTF-8 text: {}", error.utf8_error())))?;
        Self::parse(file, text).map(Some)
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn value(&self) -> &Value {
        &self.value
    }

    /// The line of a key or list item; `None`: the file has none.
    ///
    /// The parser tells places only with errors, so it is made to fail there.
    pub(super) fn line(&self, path: &[Step]) -> Option<usize> {
        let parser = serde_yaml::Deserializer::from_str(&self.text);
        let error = Seek(path).deserialize(parser).err()?;
        error.location().map(|location| location.line())
    }
}

/// The folder of a file's drop-ins: `x.d` beside `x.yaml`.
pub(super) fn folder(file: &Path) -> PathBuf {
    file.with_extension("d")
}

/// The drop-ins of a file, in the order of their names.
pub(super) fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, Problem> {
    let folder = folder(file);
    let wrong = |message: String| of_file(&folder, None, message);
    let listed = match fs::read_dir(&folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(format!("cannot be listed: {error}"))),
    };
    let mut found = Vec::new();
    for entry in listed {
        let path = entry
            .map_err(|error| wrong(format!("cannot be listed: {error}")))?
            .path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension() == Some(OsStr::new("yaml")) {
            found.push(path);
        }
        if found.len() > MAX_DROP_INS {
            return Err(wrong(format!("holds more than {MAX_DROP_INS} files")));
        }
    }
    found.sort();
    Ok(found)
}

/// Follows a path and fails at its end.
struct Seek<'p>(&'p [Step]);

/// Fails at the key that is sought, where the path ends with it.
struct SeekKey<'p> {
    key: &'p str,
    last: bool,
}

fn here<E: serde::de::Error>() -> E {
    E::custom("here")
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.0.split_first() else {
            return Err(here());
        };
        let Step::Key(key) = step else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        let last = rest.is_empty();
        while let Some(found) = map.next_key_seed(SeekKey { key, last })? {
            if found {
                map.next_value_seed(Seek(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.0.split_first() else {
            return Err(here());
        };
        if let Step::Index(index) = step {
            for _ in 0..*index {
                list.next_element::<IgnoredAny>()?;
            }
            list.next_element_seed(Seek(rest))?;
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.end()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.end()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.end()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.end()
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.end()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.end()
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.end()
    }
}

impl Seek<'_> {
    fn end<E: serde::de::Error>(self) -> Result<(), E> {
        if self.0.is_empty() {
            Err(here())
        } else {
            Ok(())
        }
    }
}

impl<'de> DeserializeSeed<'de> for SeekKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<bool, D::Error> {
        parser.deserialize_str(self)
    }
}

impl Visitor<'_> for SeekKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        if key != self.key {
            return Ok(false);
        }
        if self.last { Err(here()) } else { Ok(true) }
    }
}
