//! The default file: every setting with its explanation, switched off by a
//! `#`, so that a new version's defaults hold unless somebody chose otherwise.

use std::fmt::Write as _;

use super::{
    Settings,
    section::{Key, Setting as _, Shown},
};

const HEAD: &str = "\
# Settings of `lingerscope daemon`: /etc/lingerscope/lingerscope.yaml
#
# What is commented out (`#key: value`) is the default. Take the # away to
# change it; the indentation is right as it stands. Every file
# lingerscope.d/*.yaml beside this one, in the order of the names, overrides
# single keys; a list replaces the whole list of an earlier file, and an empty
# value brings the default back.
#
# Times are written 500ms, 10s, 5min, 6h or 7d, sizes 64KiB or 256MiB, rates
# 256B/s or 1MiB/h, percents as plain numbers. In patterns * stands for
# anything and ? for one character. Check the result by
#
#   lingerscope check-config
#
# and let the daemon read it by `systemctl reload lingerscope`.
";

/// The default file's text. `config/lingerscope.yaml` is made by
/// `cargo run -p lingerscope -- default-config > config/lingerscope.yaml`.
pub fn default_file() -> String {
    let mut out = HEAD.to_owned();
    let Shown::Section(groups) = Settings::default().shown() else {
        return out;
    };
    // Explanations of the group that was printed last.
    let mut explained = Vec::new();
    for (key, shown) in groups {
        out.push('\n');
        about(&mut out, 0, &key);
        match shown {
            Shown::Section(keys) => {
                let _ = writeln!(out, "{}:", key.name);
                let explains: Vec<Key> = keys.iter().map(|(key, _)| *key).collect();
                for (key, shown) in &keys {
                    if explains != explained {
                        about(&mut out, 2, key);
                    }
                    value(&mut out, 2, key.name, shown);
                }
                explained = explains;
            }
            shown => value(&mut out, 0, key.name, &shown),
        }
    }
    out
}

fn about(out: &mut String, indent: usize, key: &Key) {
    let restart = key.restart.then_some(" Needs a restart.");
    for line in key.about.iter().copied().chain(restart) {
        let _ = writeln!(out, "{:indent$}#{line}", "");
    }
}

fn value(out: &mut String, indent: usize, name: &str, shown: &Shown) {
    match shown {
        Shown::List(items) if !items.is_empty() => {
            let _ = writeln!(out, "{:indent$}#{name}:", "");
            for item in items {
                let _ = writeln!(out, "{:indent$}#  - {}", "", plain(item));
            }
        }
        shown => {
            let _ = writeln!(out, "{:indent$}#{name}: {}", "", plain(shown));
        }
    }
}

/// A value on one line.
pub(super) fn plain(shown: &Shown) -> String {
    match shown {
        Shown::Scalar(Some(word)) => quoted(word),
        Shown::Scalar(None) => "null".to_owned(),
        Shown::List(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            format!("[{}]", items.join(", "))
        }
        Shown::Section(keys) => {
            let keys: Vec<String> = keys
                .iter()
                .filter(|(_, shown)| !is_nothing(shown))
                .map(|(key, shown)| format!("{}: {}", key.name, plain(shown)))
                .collect();
            format!("{{{}}}", keys.join(", "))
        }
    }
}

fn is_nothing(shown: &Shown) -> bool {
    match shown {
        Shown::Scalar(word) => word.is_none(),
        Shown::List(items) => items.is_empty(),
        Shown::Section(_) => false,
    }
}

/// With quotes where YAML could take the word for something else.
fn quoted(word: &str) -> String {
    let harmless = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '*' | '?');
    let first = word.starts_with(|c: char| c.is_alphanumeric() || c == '/');
    let reserved = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    if first && word.chars().all(harmless) && !reserved.contains(&word.to_lowercase().as_str()) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "''"))
    }
}
