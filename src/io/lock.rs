//! One writer a folder. The lock is the kernel's, on the folder itself: it ends with the process, however that ends, and
//! leaves nothing behind. On a file system that knows no locks one goes on without.

use crate::base::{Error, Result};
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

/// The folder is this process's to write into until this is dropped.
#[derive(Debug)]
pub struct FolderLock {
    folder: File,
}

impl FolderLock {
    /// Locks the folder `dir`, made where it is missing. Errors: it cannot be made, or as of [`FolderLock::take`].
    pub fn create(dir: &Path) -> Result<FolderLock> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        FolderLock::take(dir)
    }

    /// Locks the folder `dir`. Errors: there is none, or something else of that name; another process, or another part of this
    /// one, holds its lock.
    pub fn take(dir: &Path) -> Result<FolderLock> {
        let folder = open(dir)?;
        match folder.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::Busy { folder: dir.into() }),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(FolderLock { folder }),
        }
    }

    /// The same of a folder that whoever made it keeps locked: None where that may still be at work, which on a file system
    /// that knows no locks it always may.
    pub fn of_the_dead(dir: &Path) -> Option<FolderLock> {
        let folder = open(dir).ok()?;
        folder.try_lock().ok()?;
        Some(FolderLock { folder })
    }
}

fn open(dir: &Path) -> Result<File> {
    let refused = |e| Error::io("use as a folder", dir, e);
    // to open a pipe would be to wait for its writer
    if !std::fs::metadata(dir).map_err(refused)?.is_dir() {
        return Err(refused(ErrorKind::NotADirectory.into()));
    }
    File::open(dir).map_err(refused)
}

impl Drop for FolderLock {
    /// Closing alone is not enough: a program that another thread is just starting has a copy of what is open for a moment.
    fn drop(&mut self) {
        // what fails here ends with the process
        _ = self.folder.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_writer_at_a_time_and_nothing_is_left_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        let said = FolderLock::take(dir.path()).unwrap_err().to_string();
        let wanted =
            format!("another vlm is writing into {}: wait for it, or choose another --out", dir.path().display());
        assert_eq!(said, wanted);
        let other = dir.path().join("inside");
        FolderLock::create(&other).unwrap();
        drop(lock);
        FolderLock::take(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let said = FolderLock::take(&dir.path().join("none")).unwrap_err().to_string();
        assert!(said.contains("cannot use as a folder") && said.contains("none"), "{said}");
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let said = FolderLock::take(&pipe).unwrap_err().to_string();
        assert!(said.contains("cannot use as a folder") && said.ends_with("pipe: not a directory"), "{said}");
        FolderLock::create(&pipe).unwrap_err();
    }
}
