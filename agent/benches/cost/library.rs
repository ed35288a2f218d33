//! A copy of the C library for the measured program alone.
//!
//! Probes belong to a file: where another process is traced in the same library
//! at the same time, its probes run here too, only to find that they are not
//! meant, and add a return trap to calls that need none.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// A directory with the copy, removed at the end.
pub(crate) struct Library(PathBuf);

impl Library {
    /// An empty directory: programs use the system's library.
    pub(crate) fn none() -> Result<Self> {
        let name = format!("lingerscope-bench-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self(directory))
    }

    /// Programs that are started from now on use a copy of this file.
    pub(crate) fn copy(&self, library: &Path) -> Result<()> {
        let name = library.file_name().context("the library has no name")?;
        fs::copy(library, self.0.join(name))
            .with_context(|| format!("cannot copy {}", library.display()))?;
        Ok(())
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // Nothing depends on it.
        drop(fs::remove_dir_all(&self.0));
    }
}
