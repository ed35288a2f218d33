//! What a group of settings is: a struct whose fields know their names, their
//! explanations and their defaults.
//!
//! [`section!`] makes it from one definition, so that the struct, what is
//! read, the printed default file and the names in error messages cannot
//! disagree. To add a setting, add a line there.

use serde_yaml::Value;

use super::problem::{Place, Step};

/// A setting's name and what people read about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Key {
    /// Name in the file.
    pub(super) name: &'static str,
    /// Lines of explanation, each as after `///`.
    pub(super) about: &'static [&'static str],
    /// Whether a change needs a restart.
    pub(super) restart: bool,
}

/// A value as a file would state it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shown {
    /// One word, not yet quoted; `None`: `null`.
    Scalar(Option<String>),
    /// A list.
    List(Vec<Self>),
    /// A group of settings.
    Section(Vec<(Key, Self)>),
}

/// Anything that can stand behind a key.
pub(super) trait Setting {
    /// Takes what a file says over what an earlier file, or the default, said.
    /// What is wrong is reported to `place`, and `self` stays as it was.
    fn read(&mut self, value: &Value, place: &mut Place<'_>);

    /// What a file would have to say for this value.
    fn shown(&self) -> Shown;

    /// Takes back from `old` what only a restart can change.
    fn keep(&mut self, _old: &Self) {}
}

/// A value that is one word in the file.
pub(super) trait Scalar: Sized {
    /// Reads the word; the error says what should stand there.
    fn parse(word: &str) -> Result<Self, String>;

    /// The word.
    fn word(&self) -> String;
}

impl<T: Scalar> Setting for T {
    fn read(&mut self, value: &Value, place: &mut Place<'_>) {
        match word(value).and_then(|word| T::parse(&word)) {
            Ok(value) => *self = value,
            Err(wrong) => place.wrong(wrong),
        }
    }

    fn shown(&self) -> Shown {
        Shown::Scalar(Some(self.word()))
    }
}

impl<T: Scalar> Setting for Option<T> {
    fn read(&mut self, value: &Value, place: &mut Place<'_>) {
        match word(value).and_then(|word| T::parse(&word)) {
            Ok(value) => *self = Some(value),
            Err(wrong) => place.wrong(wrong),
        }
    }

    fn shown(&self) -> Shown {
        Shown::Scalar(self.as_ref().map(Scalar::word))
    }
}

/// A later file's list replaces the whole list of an earlier one.
impl<T: Setting + Default> Setting for Vec<T> {
    fn read(&mut self, value: &Value, place: &mut Place<'_>) {
        let Value::Sequence(items) = value else {
            place.wrong("a list belongs here: one item a line, each after `- `, or [a, b]");
            return;
        };
        self.clear();
        for (index, item) in items.iter().enumerate() {
            let mut entry = T::default();
            place.within(Step::Index(index), |place| entry.read(item, place));
            self.push(entry);
        }
    }

    fn shown(&self) -> Shown {
        Shown::List(self.iter().map(Setting::shown).collect())
    }
}

/// The text of a scalar, whatever YAML took it for.
fn word(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Null => Err("a value is missing".to_owned()),
        Value::Sequence(_) => Err("a single value belongs here, not a list".to_owned()),
        Value::Mapping(_) => Err("a single value belongs here, not a group of keys".to_owned()),
        Value::Tagged(_) => Err("tags (`!name`) mean nothing here".to_owned()),
    }
}

/// A group's entries by name; nothing for an empty group.
pub(super) fn entries<'v>(
    value: &'v Value,
    known: &[&'static str],
    place: &mut Place<'_>,
) -> Vec<(&'v str, &'v Value)> {
    let Value::Mapping(mapping) = value else {
        if !value.is_null() {
            place.wrong(format!(
                "keys belong here, each with its value: {}",
                known.join(", ")
            ));
        }
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in mapping {
        match key.as_str() {
            Some(name) if known.contains(&name) => found.push((name, value)),
            Some(name) => place.unknown(name, known),
            None => place.wrong("a key must be a plain word"),
        }
    }
    found
}

/// Defines a group of settings: its struct, its default, how it is read and
/// how it is shown. `key [restart]: …` marks what a reload cannot change.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $key:ident $([$restart:ident])? : $type:ty = $default:expr,
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])* pub $key: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl $crate::config::section::Setting for $name {
            fn read(
                &mut self,
                value: &serde_yaml::Value,
                place: &mut $crate::config::problem::Place<'_>,
            ) {
                const KNOWN: &[&str] = &[$( stringify!($key) ),*];
                for (name, value) in $crate::config::section::entries(value, KNOWN, place) {
                    $(
                        if name == stringify!($key) {
                            // An empty value takes back what an earlier file said.
                            if value.is_null() {
                                self.$key = $default;
                            } else {
                                place.within(
                                    $crate::config::problem::Step::Key(name.to_owned()),
                                    |place| self.$key.read(value, place),
                                );
                            }
                        }
                    )*
                }
            }

            fn shown(&self) -> $crate::config::section::Shown {
                $crate::config::section::Shown::Section(vec![$(
                    (
                        $crate::config::section::Key {
                            name: stringify!($key),
                            about: &[$($doc),*],
                            restart: [$(stringify!($restart),)? ""].len() > 1,
                        },
                        self.$key.shown(),
                    ),
                )*])
            }

            fn keep(&mut self, old: &Self) {
                $(
                    if [$(stringify!($restart),)? ""].len() > 1 {
                        self.$key = old.$key.clone();
                    } else {
                        self.$key.keep(&old.$key);
                    }
                )*
            }
        }
    };
}
pub(super) use section;
