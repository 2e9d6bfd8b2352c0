//! The room on a file system.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A file system, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// All of it.
    pub size: u64,
    /// What is free, for users other than root.
    pub available: u64,
}

/// The file system on which `path` lies; `None` where it cannot be told. Blocks: a file system may be slow to answer.
pub fn of(path: &Path) -> Option<Space> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut answer = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte, and the answer is large enough.
    if unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call has succeeded, so it has filled the answer.
    let answer = unsafe { answer.assume_init() };
    Some(Space {
        size: answer.f_frsize.saturating_mul(answer.f_blocks),
        available: answer.f_frsize.saturating_mul(answer.f_bavail),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_a_directory_is_known_and_that_of_none_is_not() {
        let here = tempfile::tempdir().unwrap();
        let space = of(here.path()).unwrap();
        assert!(space.size > 0 && space.available <= space.size);
        assert!(of(&here.path().join("absent")).is_none());
    }
}
