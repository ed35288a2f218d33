//! Which processes are meant.

use super::{pattern::Pattern, section::section};

section! {
    /// Processes, named by any of their properties.
    pub struct Selector {
        /// Names as in /proc/PID/comm: at most 15 characters.
        name: Vec<Pattern> = Vec::new(),
        /// Executables: a path, or a file name without slash.
        exe: Vec<Pattern> = Vec::new(),
        /// systemd units, such as web.service.
        unit: Vec<Pattern> = Vec::new(),
        /// Control groups, such as /user.slice/*.
        cgroup: Vec<Pattern> = Vec::new(),
        /// User ids.
        uid: Vec<u32> = Vec::new(),
    }
}

/// What a process is known by, as lingerscope shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject<'a> {
    /// Name of the main thread.
    pub name: &'a str,
    /// Path of the executable.
    pub exe: Option<&'a str>,
    /// systemd unit.
    pub unit: Option<&'a str>,
    /// Control group.
    pub cgroup: Option<&'a str>,
    /// User.
    pub uid: Option<u32>,
}

impl Selector {
    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether any of the lists names the process.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        let any = |patterns: &[Pattern], value: Option<&str>| {
            value.is_some_and(|value| patterns.iter().any(|pattern| pattern.matches(value)))
        };
        let exe = subject
            .exe
            .is_some_and(|exe| self.exe.iter().any(|pattern| pattern.matches_path(exe)));
        exe || any(&self.name, Some(subject.name))
            || any(&self.unit, subject.unit)
            || any(&self.cgroup, subject.cgroup)
            || subject.uid.is_some_and(|uid| self.uid.contains(&uid))
    }
}
