//! Where a command may write: over nothing that it did not make, unless it is told to, and never over what it reads.

use crate::base::{Error, Result};
use crate::io::{atomic, host_tensor, json};
use std::path::{Path, PathBuf};

/// Errors: `file` is there, and nobody said `--overwrite`; it is what no file can replace.
pub fn free(file: &Path, overwrite: bool) -> Result<()> {
    atomic::place(file)?;
    match file.exists() && !overwrite {
        true => Err(Error::file(file, "is there already; name another file or give --overwrite")),
        false => Ok(()),
    }
}

/// The same, but that a file of tensors which `writer` wrote itself is replaced: scripts write one prompt's or picture's
/// after another's to the same file, and that costs nobody anything.
pub fn free_or_own(file: &Path, overwrite: bool, writer: &str) -> Result<()> {
    // before it is opened: a pipe would have to be written to first
    atomic::place(file)?;
    free(file, overwrite || host_tensor::is_written_by(file, writer))
}

/// Errors: `to` is one of the files in `inputs`, or lies in one of the folders, by whatever names: to write it would
/// destroy what is read.
pub fn not_an_input<'a>(to: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    // what is not there is read by nobody
    let Ok(there) = to.canonicalize() else { return Ok(()) };
    let read = |input: &&Path| input.canonicalize().is_ok_and(|input| there.starts_with(input));
    match inputs.into_iter().find(read) {
        Some(input) if input.is_dir() => {
            let said = format!("is part of {}, which this command reads; write to another place", input.display());
            Err(Error::file(to, said))
        }
        Some(_) => Err(Error::file(to, "is read by this command, and would be replaced; write to another file")),
        None => Ok(()),
    }
}

/// Errors: one of `inputs` lies in the folder `filled`, by whatever names, and might be replaced by what goes there.
pub fn no_input_within<'a>(filled: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let Ok(there) = filled.canonicalize() else { return Ok(()) };
    match inputs.into_iter().find(|input| input.canonicalize().is_ok_and(|input| input.starts_with(&there))) {
        Some(input) => {
            let said = format!("is read by this command, and lies in {}, which it fills", filled.display());
            Err(Error::file(input, format!("{said}; name another folder with --out")))
        }
        None => Ok(()),
    }
}

/// Where `path` leads, or would: what is there of it without links, and the rest as it stands.
pub fn resolved(path: &Path) -> PathBuf {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Err(_), Some(parent), Some(name)) => resolved(parent).join(name),
        (found, ..) => found.unwrap_or_else(|_| path.into()),
    }
}

/// What a folder holds that a command fills with all it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    Nothing,
    /// What the same command left there.
    Ours,
}

/// Looks into the folder `dir`, which `mark`, a file's name, tells from others. Errors: it holds files and no mark, so that
/// they are somebody's; it cannot be read. `whose` is what messages call the command.
pub fn holds(dir: &Path, mark: &str, whose: &str) -> Result<Holds> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("use as a folder", dir, e))?.count();
    match (entries, dir.join(mark).exists()) {
        (0, _) => Ok(Holds::Nothing),
        (_, true) => Ok(Holds::Ours),
        (_, false) => {
            Err(Error::file(dir, format!("holds files that are no {whose}'s; name another folder with --out")))
        }
    }
}

/// Puts its mark into the folder, which says what it was made with.
pub fn mark(dir: &Path, mark: &str, settings: &serde_json::Value) -> Result<()> {
    json::write(&dir.join(mark), settings)
}
