//! The file for node_exporter's textfile collector.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{Format, Snapshot, format};

/// Replaces the file as a whole: a reader sees the old text or the new one,
/// never half of it.
///
/// # Errors
/// When the folder is missing or cannot be written to; the old file stays.
pub fn write(file: &Path, snapshot: &Snapshot) -> Result<()> {
    let text = format(snapshot, Format::Text);
    // Beside it, because a rename stays within a file system, and with an
    // ending that the collector does not read.
    let mut draft = OsString::from(file);
    draft.push(".new");
    let draft = Path::new(&draft);
    let replace = || -> io::Result<()> {
        match fs::remove_file(draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Never through a link that somebody else put there.
        let mut open = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(draft)?;
        open.write_all(text.as_bytes())?;
        // The collector runs as another user, and our umask is strict.
        open.set_permissions(Permissions::from_mode(0o644))?;
        fs::rename(draft, file)
    };
    replace().with_context(|| {
        format!(
            "cannot write {} (metrics.textfile); its folder must exist and be writable",
            file.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{super::format::tests::sample, *};

    #[test]
    fn is_replaced_as_a_whole() {
        let folder = std::env::temp_dir().join(format!("lingerscope-prom-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("lingerscope.prom");
        let elsewhere = folder.join("elsewhere");
        fs::write(&elsewhere, "precious").unwrap();
        symlink(&elsewhere, folder.join("lingerscope.prom.new")).unwrap();
        for unit in ["a.service", "b.service"] {
            write(&file, &sample(unit)).unwrap();
            let text = fs::read_to_string(&file).unwrap();
            assert_eq!(text, format(&sample(unit), Format::Text));
        }
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
        let error = format!("{:#}", write(&file, &sample("c")).unwrap_err());
        assert!(
            error.contains("metrics.textfile") && error.contains("must exist"),
            "{error}"
        );
    }
}
