//! `check-config` and `default-config`.

use std::{
    io::{self, Write as _},
    path::Path,
    time::SystemTime,
};

use anyhow::{Context as _, Result};

use super::{EXIT_NOTHING, EXIT_USAGE};
use crate::config::{self, UnknownKeys};

/// Says whether the daemon would take the settings, and why not.
pub(super) fn check(file: Option<&Path>) -> Result<u8> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs() as i64);
    let mut errors = io::stderr().lock();
    match config::load(file, UnknownKeys::Refuse, now) {
        Err(invalid) => {
            writeln!(errors, "{invalid}").context("cannot write to standard error")?;
            Ok(EXIT_USAGE)
        }
        Ok(loaded) => {
            for warning in &loaded.warnings {
                writeln!(errors, "{warning} (a warning)")
                    .context("cannot write to standard error")?;
            }
            let files: Vec<String> = loaded
                .files
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            let said = if files.is_empty() {
                format!("there is no {}: the defaults hold", config::DEFAULT_FILE)
            } else {
                format!("{}: good", files.join(", "))
            };
            print(&format!("{said}\n"))
        }
    }
}

/// Prints the default file.
pub(super) fn default() -> Result<u8> {
    print(&config::default_file())
}

fn print(text: &str) -> Result<u8> {
    match io::stdout().write_all(text.as_bytes()) {
        // The reader had enough, as `head` has.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(EXIT_NOTHING),
        written => written
            .map(|()| EXIT_NOTHING)
            .context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    #[test]
    fn the_exit_code_tells() {
        let file =
            std::env::temp_dir().join(format!("lingerscope-check-{}.yaml", std::process::id()));
        for (text, code) in [("mode: full\n", EXIT_NOTHING), ("mode: fool\n", EXIT_USAGE)] {
            fs::write(&file, text).unwrap();
            assert_eq!(check(Some(&file)).unwrap(), code, "{text}");
        }
        fs::remove_file(&file).unwrap();
        assert_eq!(check(Some(&file)).unwrap(), EXIT_USAGE);
        let shipped = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../config/lingerscope.yaml");
        assert_eq!(check(Some(&shipped)).unwrap(), EXIT_NOTHING);
    }
}
