//! What a reload changes.

use super::{
    Settings,
    section::{Key, Setting as _, Shown},
    shipped::plain,
};

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// As `budget.memory`.
    pub key: String,
    /// What it was.
    pub before: String,
    /// What it shall be.
    pub after: String,
    /// Whether it takes a restart to apply it.
    pub needs_restart: bool,
}

/// The settings that differ, in the order of the default file.
pub fn difference(old: &Settings, new: &Settings) -> Vec<Change> {
    let mut changes = Vec::new();
    compare("", &old.shown(), &new.shown(), &mut changes);
    changes
}

/// What holds after a reload: the new settings, but for those that need a
/// restart, which stay as they were. A later [`difference`] names them again.
#[must_use]
pub fn reloaded(old: &Settings, mut new: Settings) -> Settings {
    new.keep(old);
    new
}

fn compare(prefix: &str, old: &Shown, new: &Shown, changes: &mut Vec<Change>) {
    let (Shown::Section(old), Shown::Section(new)) = (old, new) else {
        return;
    };
    for ((key, before), (_, after)) in old.iter().zip(new) {
        let path = format!("{prefix}{}", key.name);
        match (before, after) {
            (Shown::Section(_), Shown::Section(_)) => {
                compare(&format!("{path}."), before, after, changes);
            }
            _ if before != after => changes.push(change(path, key, before, after)),
            _ => {}
        }
    }
}

fn change(path: String, key: &Key, before: &Shown, after: &Shown) -> Change {
    Change {
        key: path,
        before: plain(before),
        after: plain(after),
        needs_restart: key.restart,
    }
}
