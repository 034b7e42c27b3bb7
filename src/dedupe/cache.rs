//! Embeddings kept in a file: computed once for each photo and tower.
//!
//! ```text
//! "vlm embeddings 1\n", then a record each:
//! key, 32 bytes | length, u32 | values, f32 each | CRC-32 of all that, u32      (little-endian)
//! ```
//!
//! Records are only ever appended. A file that was cut within one (a full disk, a power cut) is read up to there, and goes
//! on from there. One program at a time has the file: two would each write at the end that it knows.

use crate::base::{Error, Result, input};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"vlm embeddings 1\n";
const KEY: usize = 32;
/// Wider than any tower, so that a damaged length is not allocated.
const MOST_VALUES: usize = 1 << 20;

/// What an embedding is of: a hash of photo, tower and sizes.
pub type Key = [u8; KEY];

pub struct Cache {
    file: File,
    path: PathBuf,
    known: HashMap<Key, Vec<f32>>,
}

impl Cache {
    /// Opens or makes the file. Errors: it cannot be read or written, or is something else; another process has it open.
    pub fn open(path: &Path) -> Result<Cache> {
        let io = |doing| move |e| Error::io(doing, path, e);
        input::plain(path)?;
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(io("open"))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let said = "another vlm is keeping embeddings in it: wait for it, or name another file with --cache";
            return Err(Error::file(path, said));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("read"))?;
        if !(bytes.starts_with(MAGIC) || MAGIC.starts_with(&bytes)) {
            return Err(Error::file(path, "is no file of embeddings of this program; remove it or name another"));
        }
        let (known, good) = read(&bytes);
        if bytes.len() < MAGIC.len() {
            file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(io("write"))?;
            file.write_all(MAGIC).map_err(io("write"))?;
        } else {
            file.set_len(good as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(io("write"))?;
        }
        Ok(Cache { file, path: path.into(), known })
    }

    pub fn get(&self, key: &Key) -> Option<&[f32]> {
        self.known.get(key).map(Vec::as_slice)
    }

    /// Adds an embedding; it is in the file when this returns.
    pub fn add(&mut self, key: Key, values: &[f32]) -> Result<()> {
        let mut record = key.to_vec();
        record.extend((values.len() as u32).to_le_bytes());
        record.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        record.extend(crc32fast::hash(&record).to_le_bytes());
        self.file.write_all(&record).map_err(|e| Error::io("write", &self.path, e))?;
        self.known.insert(key, values.to_vec());
        Ok(())
    }
}

impl Drop for Cache {
    /// As of a [`FolderLock`](crate::io::lock::FolderLock): closing alone is not enough.
    fn drop(&mut self) {
        _ = self.file.unlock();
    }
}

/// The records of a file, and how many of its bytes are good.
fn read(bytes: &[u8]) -> (HashMap<Key, Vec<f32>>, usize) {
    let (mut known, mut at) = (HashMap::new(), MAGIC.len());
    while let Some((key, values, end)) = record(bytes, at) {
        known.insert(key, values);
        at = end;
    }
    (known, at)
}

fn record(bytes: &[u8], at: usize) -> Option<(Key, Vec<f32>, usize)> {
    let rest = bytes.get(at..)?;
    let key = *rest.first_chunk::<KEY>()?;
    let n = u32::from_le_bytes(*rest.get(KEY..)?.first_chunk()?) as usize;
    let end = KEY + 4 + 4 * Some(n).filter(|n| *n <= MOST_VALUES)?;
    let stored = u32::from_le_bytes(*rest.get(end..)?.first_chunk()?);
    let body = rest.get(..end)?;
    if crc32fast::hash(body) != stored {
        return None;
    }
    let values = body[KEY + 4..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Some((key, values, at + end + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_again_and_a_cut_record_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let mut cache = Cache::open(&path).unwrap();
        cache.add([1; 32], &[0.5, -1.0]).unwrap();
        cache.add([2; 32], &[3.0; 5]).unwrap();
        drop(cache);
        let whole = std::fs::read(&path).unwrap();
        let cache = Cache::open(&path).unwrap();
        assert_eq!((cache.get(&[1; 32]), cache.get(&[2; 32])), (Some(&[0.5, -1.0][..]), Some(&[3.0; 5][..])));
        assert_eq!(cache.get(&[3; 32]), None);
        drop(cache);
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut cache = Cache::open(&path).unwrap();
            assert_eq!(cache.get(&[2; 32]), None, "{cut}");
            cache.add([4; 32], &[7.0]).unwrap();
            drop(cache);
            assert_eq!(Cache::open(&path).unwrap().get(&[4; 32]), Some(&[7.0][..]), "{cut}");
        }
    }

    #[test]
    fn a_file_has_one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let mut cache = Cache::open(&path).unwrap();
        cache.add([1; 32], &[0.5]).unwrap();
        let said = Cache::open(&path).err().unwrap().to_string();
        assert!(said.contains("another vlm is keeping embeddings in it: wait for it"), "{said}");
        cache.add([2; 32], &[1.5]).unwrap();
        drop(cache);
        assert_eq!(Cache::open(&path).unwrap().known.len(), 2);
    }

    #[test]
    fn damage_is_not_read_and_other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        Cache::open(&path).unwrap().add([1; 32], &[0.5, -1.0]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in MAGIC.len()..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(Cache::open(&path).unwrap().known.len(), 0, "{at}");
        }
        std::fs::write(&path, "my notes").unwrap();
        assert!(Cache::open(&path).err().unwrap().to_string().contains("is no file of embeddings"));
        assert_eq!(std::fs::read(&path).unwrap(), b"my notes");
    }
}
