//! The directory for everything that a measurement writes; gone with it, unless it is to be kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::BenchError;

/// A temporary directory.
#[derive(Debug)]
pub(super) struct WorkDir {
    path: PathBuf,
    keep: bool,
}

impl WorkDir {
    /// A new directory in `parent`.
    pub(super) fn make(parent: &Path, keep: bool) -> Result<Self, BenchError> {
        let path = parent.join(format!("millrace-bench-{}", random_hex()?));
        fs::create_dir(&path)
            // The server may run as another user, who has to get through to its own part.
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o711)))
            .map_err(BenchError::io(format!("make {}", path.display())))?;
        Ok(WorkDir { path, keep })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("kept {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// 128 random bits, for names and passwords that nobody guesses.
pub(super) fn random_hex() -> Result<String, BenchError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| BenchError::Io { what: "get random bytes".to_owned(), source: error.into() })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
