//! The data directory: made, versioned, and locked against a second process.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::StateError;

/// Version of the directory's layout.
const VERSION: i64 = 1;
/// How long to wait for somebody else's lock.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// Our own small files are not larger; a larger one is not ours.
const MAX_FILE: u64 = 4096;

/// A data directory that is ours until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    admin_token: AdminToken,
    /// Locked; the lock ends with the descriptor, also when the process is killed.
    _lock: File,
}

/// What gives full access over HTTP and gRPC. Not shown by `Debug` (I9).
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(String);

impl AdminToken {
    /// The token itself, to compare with or to print where a person asked for it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(…)")
    }
}

impl DataDir {
    /// Opens the directory, makes it if there is none, and locks it.
    ///
    /// # Errors
    /// [`StateError::InUse`], [`StateError::NotWritable`], [`StateError::NewerVersion`]; I/O errors.
    pub fn open(path: impl AsRef<Path>) -> Result<DataDir, StateError> {
        let path = path.as_ref();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| StateError::io("create", path, error))?;
        let lock = lock(path)?;
        check_version(path)?;
        let admin_token = admin_token(path)?;
        sync_directory(path)?;
        Ok(DataDir { path: path.into(), admin_token, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The token that gives full access over HTTP and gRPC.
    pub fn admin_token(&self) -> &AdminToken {
        &self.admin_token
    }
}

fn lock(directory: &Path) -> Result<File, StateError> {
    let path = directory.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| StateError::io("open", &path, error))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            // A broker that is just ending has it for a moment more; so has a child between its fork and its exec.
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Only for the message: an unreadable process id is left out.
                let _ = (&mut file).take(MAX_FILE).read_to_string(&mut pid);
                return Err(StateError::InUse { path: directory.into(), pid: pid.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(StateError::io("lock", &path, error)),
        }
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(|error| StateError::io("write", &path, error))?;
    Ok(file)
}

fn check_version(directory: &Path) -> Result<(), StateError> {
    let path = directory.join("VERSION");
    let Some(text) = read_small(&path)? else {
        return write_new(&path, &format!("{VERSION}\n"));
    };
    match text.trim().parse::<i64>() {
        Ok(found) if found > VERSION => Err(StateError::NewerVersion { path, found, supported: VERSION }),
        Ok(1..) => Ok(()),
        _ => Err(StateError::Damaged { path, detail: "it does not hold a version number".into() }),
    }
}

fn admin_token(directory: &Path) -> Result<AdminToken, StateError> {
    let path = directory.join("admin-token");
    if let Some(text) = read_small(&path)? {
        let token = text.trim();
        if token.len() < 32 {
            let detail = "the token is too short to be safe (delete the file, and a new one is made)".into();
            return Err(StateError::Damaged { path, detail });
        }
        return Ok(AdminToken(token.into()));
    }
    let token =
        random_hex::<32>().map_err(|error| StateError::io("make a random token for", &path, error))?;
    write_new(&path, &format!("{token}\n"))?;
    Ok(AdminToken(token))
}

/// `N` random bytes, in hexadecimal digits.
pub(super) fn random_hex<const N: usize>() -> std::io::Result<String> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn read_small(path: &Path) -> Result<Option<String>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateError::io("open", path, error)),
    };
    let mut text = String::new();
    match file.take(MAX_FILE).read_to_string(&mut text) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Err(StateError::Damaged { path: path.into(), detail: "it is not text".into() })
        }
        Err(error) => Err(StateError::io("read", path, error)),
    }
}

/// Writes a file aside and renames it, so that it is there whole or not at all.
fn write_new(path: &Path, content: &str) -> Result<(), StateError> {
    let aside = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().map_err(|error| StateError::io("write", path, error))
}

pub(super) fn sync_directory(path: &Path) -> Result<(), StateError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| StateError::io("sync", path, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_broker_is_told_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let refused = DataDir::open(dir.path()).unwrap_err();
        assert!(matches!(refused, StateError::InUse { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(refused.to_string().contains(&format!("(process {})", std::process::id())), "{refused}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn the_admin_token_stays_the_same_and_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let token = DataDir::open(&path).unwrap().admin_token().clone();
        assert_eq!(token.reveal().len(), 64);
        assert_eq!(&token, DataDir::open(&path).unwrap().admin_token());
        assert!(!format!("{:?}", DataDir::open(&path).unwrap()).contains(token.reveal()));
        let mode = |name: &Path| fs::metadata(name).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("admin-token")), 0o600);
    }

    #[test]
    fn a_directory_of_a_newer_millrace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path()).unwrap());
        fs::write(dir.path().join("VERSION"), "2\n").unwrap();
        let refused = DataDir::open(dir.path()).unwrap_err();
        assert!(matches!(refused, StateError::NewerVersion { found: 2, supported: 1, .. }), "{refused}");
        fs::write(dir.path().join("VERSION"), "two").unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(StateError::Damaged { .. })));
    }

    #[test]
    fn a_path_that_is_a_file_is_an_error_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = DataDir::open(file.path().join("data")).unwrap_err();
        assert!(refused.to_string().contains(file.path().to_str().unwrap()), "{refused}");
    }
}
