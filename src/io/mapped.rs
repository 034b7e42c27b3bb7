//! A file as a slice of memory, read by the operating system when a page is first touched.

use crate::base::{Error, Result, input};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// A whole file, mapped read-only. Cheap to open at any size; pages can be dropped and read again.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Errors: the file is missing, unreadable or not a plain file.
    pub fn open(path: &Path) -> Result<Self> {
        input::plain(path)?;
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let about = file.metadata().map_err(|e| Error::io("read the size of", path, e))?;
        if !about.is_file() {
            return Err(Error::file(path, "wanted a plain file, got a folder"));
        }
        // SAFETY: a map is sound while no one shortens or rewrites the file under it. This program opens it for
        // reading only and replaces files by renaming, which leaves the mapped inode as it was; that other programs
        // do not write into a checkpoint in place while it is in use is the condition every reader by map lives
        // with. The bytes are only ever read as `u8`, for which every value is valid.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        Ok(MappedFile { map })
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
