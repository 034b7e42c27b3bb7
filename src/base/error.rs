//! The one error of the crate: sentences for a person, with names and numbers.
//!
//! A room makes the variant that knows the place (file, line, tensor, argument); callers add what was being done
//! with [`Context::context`]. Nothing here prints or exits: `cli` does.

use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused: `doing` says what, e.g. "open", "create".
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    /// A file was read, and what it holds is wrong.
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// One line (counted from 1) of a file is wrong.
    #[error("{}: {reason}", at_line(path, *line))]
    Line { path: PathBuf, line: usize, reason: String },
    /// One tensor of a file is wrong.
    #[error("{}: tensor {tensor}: {reason}", path.display())]
    Tensor { path: PathBuf, tensor: String, reason: String },
    /// An operation was called with an argument that its contract excludes.
    #[error("{op}: {argument}: wanted {wanted}, got {got}")]
    Contract { op: &'static str, argument: &'static str, wanted: String, got: String },
    /// A kernel failed: `reason` is the device's own.
    #[error("{op}: kernel {kernel}: {reason}")]
    Launch { op: &'static str, kernel: &'static str, reason: String },
    /// A device that runs kernels refused something.
    #[error("{device}: {reason}")]
    Device { device: String, reason: String },
    /// A folder that another process writes into.
    #[error("another vlm is writing into {}: wait for it, or choose another --out", folder.display())]
    Busy { folder: PathBuf },
    /// Training ran away: `what`, a loss or another result of a step, is no number any more. `kept`: the step of the last
    /// checkpoint, where there is one.
    #[error("{what} at step {step}: {advice}{}", kept.map_or(String::new(), still_there))]
    Diverged { what: String, step: u64, advice: &'static str, kept: Option<u64> },
    /// What was asked for does not fit into the memory that there is; says what would.
    #[error("{0}")]
    OutOfMemory(String),
    /// Somebody asked to stop, before there was anything to save.
    #[error("interrupted")]
    Interrupted,
    /// Asked for something that this program does not do; says what to do instead.
    #[error("{0}")]
    Unsupported(String),
    /// A flag or an argument has a value that cannot be used (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// What was being done when `source` happened.
    #[error("{doing}: {source}")]
    While { doing: String, source: Box<Error> },
}

impl Error {
    pub fn io(doing: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { doing, path: path.as_ref().into(), source }
    }
    pub fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().into(), reason: reason.into() }
    }
    pub fn line(path: impl AsRef<Path>, line: usize, reason: impl Into<String>) -> Self {
        Error::Line { path: path.as_ref().into(), line, reason: reason.into() }
    }
    pub fn tensor(path: impl AsRef<Path>, tensor: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Tensor { path: path.as_ref().into(), tensor: tensor.into(), reason: reason.into() }
    }
    /// Whether the command line, and not the work, was wrong.
    pub fn is_usage(&self) -> bool {
        matches!(self.cause(), Error::Usage(_))
    }
    /// What happened, whatever was being done.
    pub fn cause(&self) -> &Error {
        match self {
            Error::While { source, .. } => source.cause(),
            cause => cause,
        }
    }
}

fn still_there(step: u64) -> String {
    format!("; the last checkpoint, of step {step}, is kept")
}

/// Adds what was being done to an error on its way up.
pub trait Context<T> {
    fn context(self, doing: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, doing: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::While { doing: doing.into(), source: Box::new(source) })
    }
}

/// A line (counted from 1) of a file, as what is said of it begins.
pub fn at_line(path: &Path, line: usize) -> String {
    format!("{}, line {line}", path.display())
}

/// Lines of a file as a message has them, after the file's name.
pub fn lines_of(lines: &[usize]) -> String {
    let of = if lines.len() == 1 { "line" } else { "lines" };
    format!("{of} {}", first_of(lines))
}

/// The first eight of `items` for a sentence, and how many there are where that is not all.
pub fn first_of<T: std::fmt::Display>(items: &[T]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = items.iter().take(SHOWN).map(T::to_string).collect();
    match items.len() {
        n if n > SHOWN => format!("{}, … ({n} in all)", shown.join(", ")),
        _ => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_and_counted() {
        assert_eq!(first_of(&[1, 2]), "1, 2");
        assert_eq!([lines_of(&[7]), lines_of(&[7, 9])], ["line 7", "lines 7, 9"]);
        assert_eq!(first_of(&(1..9).collect::<Vec<_>>()), "1, 2, 3, 4, 5, 6, 7, 8");
        assert_eq!(first_of(&(1..10).collect::<Vec<_>>()), "1, 2, 3, 4, 5, 6, 7, 8, … (9 in all)");
    }
}
