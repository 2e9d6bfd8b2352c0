//! The embedded store: what the broker remembers besides its logs.
//!
//! ```text
//! <data directory>/           0700, one process at a time
//!   LOCK                      locked while a broker runs; holds its process id
//!   VERSION                   format version of the directory
//!   admin-token               0600, made at the first start
//!   state.db                  Store: cluster id, tasks with their history, slot intents, settings of logs
//!   offsets.db                OffsetStore: committed offsets
//! ```
//!
//! Both databases are SQLite in WAL mode with `synchronous=FULL`: what was answered is on disk, also after a loss of
//! power, as far as the disk keeps what it has confirmed to fsync. Operators may open them read-only while we run.

mod data_dir;
mod offsets;
pub mod space;
mod sqlite;
mod store;

use std::path::{Path, PathBuf};

pub use data_dir::{AdminToken, DataDir};
pub use offsets::{Committed, OffsetEntry, OffsetError, OffsetPermit, OffsetStore, OffsetWrite};
pub use store::{HistoryRow, Intent, Store, TaskRow};

/// Why the data directory or a database in it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another broker runs on the directory.
    #[error("{} is in use by another millrace{}; stop it or give another --data-dir", path.display(), pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other process, as far as its lock file says.
        pid: Option<u32>,
    },
    /// The directory cannot be written.
    #[error("{} is not writable; give its user write permission or another --data-dir", path.display())]
    NotWritable {
        /// The directory or file.
        path: PathBuf,
    },
    /// Written by a newer Millrace.
    #[error("{} has format version {found}, this millrace knows up to {supported}; use the newer millrace", path.display())]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest that we know.
        supported: i64,
    },
    /// A file of ours holds something else than what we write.
    #[error("{} is damaged: {detail}; restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The task is not, or no longer, in the store.
    #[error("there is no task {0}")]
    NoTask(String),
    /// The name is taken.
    #[error("there is already a task {0}; choose another name")]
    TaskExists(String),
    /// Any other I/O error.
    #[error("cannot {operation} {}: {source}{}", path.display(), self.next_step())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Any other error of the database.
    #[error("cannot use {}: {source}{}", path.display(), self.next_step())]
    Database {
        /// The database.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: rusqlite::Error,
    },
}

impl StateError {
    /// Whether it passes when there is space on the disk again.
    pub fn is_lack_of_space(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            StateError::Io { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            StateError::Database { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            _ => false,
        }
    }

    fn next_step(&self) -> &'static str {
        match self {
            _ if self.is_lack_of_space() => "; free some space or give another --data-dir",
            StateError::Database { .. } => "; see whether its disk has space and is sound",
            _ => "",
        }
    }

    fn io(operation: &'static str, path: &Path, source: std::io::Error) -> StateError {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match source.kind() {
            PermissionDenied | ReadOnlyFilesystem => StateError::NotWritable { path: path.into() },
            _ => StateError::Io { operation, path: path.into(), source },
        }
    }
}
