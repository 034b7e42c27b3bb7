//! A file that only grows: every write is in it when the call returns, and a resumed run cuts it back to where its
//! checkpoint was.

use crate::base::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct LogFile {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl LogFile {
    /// Opens or makes `path`, cut back to its first `bytes` bytes. Where it is shorter (someone else cut it) it stays as
    /// it is, and [`LogFile::bytes`] says so.
    pub fn open(path: &Path, bytes: u64) -> Result<LogFile> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = file.map_err(|e| Error::io("open", path, e))?;
        let there = file.metadata().map_err(|e| Error::io("read the size of", path, e))?.len();
        if there > bytes {
            file.set_len(bytes).map_err(|e| Error::io("cut back", path, e))?;
        }
        Ok(LogFile { file, path: path.into(), bytes: there.min(bytes) })
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds `bytes` in one call of the operating system, so that no other program reads half of them in between.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Returns once all of it is on disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("flush", &self.path, e))
    }

    /// Cuts off what stands behind the last line's end: a line that someone cut short, which no reader could use.
    pub fn keep_lines(&mut self) -> Result<()> {
        let mut text = Vec::new();
        let read = self.file.rewind().and_then(|()| self.file.read_to_end(&mut text));
        read.map_err(|e| Error::io("read", &self.path, e))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at as u64 + 1);
        self.file.set_len(whole).map_err(|e| Error::io("cut back", &self.path, e))?;
        self.bytes = whole;
        Ok(())
    }
}
