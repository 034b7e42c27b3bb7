//! Files that are read. What somebody names may be a pipe or a device, which waits for a writer or has no end: that is said
//! before it is opened.

use super::{Error, Result};
use std::fs::{self, File, FileType};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Opens a file. Errors: as of [`readable`]; it cannot be opened.
pub fn open(path: &Path) -> Result<File> {
    readable(path)?;
    File::open(path).map_err(|e| Error::io("open", path, e))
}

/// All of a file. Errors: as of [`open`]; it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    readable(path)?;
    fs::read(path).map_err(|e| Error::io("read", path, e))
}

/// The same of a text. Errors: it is not UTF-8, too.
pub fn read_text(path: &Path) -> Result<String> {
    readable(path)?;
    fs::read_to_string(path).map_err(|e| Error::io("read", path, e))
}

/// As [`read`], without the byte order mark that files written on Windows often begin with, and that JSON does not allow.
pub fn read_unmarked(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = read(path)?;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    Ok(bytes)
}

/// What one of these found, or None where there is no such file.
pub fn if_there<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Errors: a device, a socket or a pipe is there. What else is wrong with a file, opening it says.
pub fn plain(path: &Path) -> Result<()> {
    match fs::metadata(path).map(|about| about.file_type()) {
        Ok(kind) if !(kind.is_file() || kind.is_dir()) => {
            let said =
                format!("is {}, and a plain file is wanted; write what it gives to one, and name that", name(kind));
            Err(Error::file(path, said))
        }
        _ => Ok(()),
    }
}

/// The same for what is read once: a pipe is fine that the program was started with, as behind `<(…)` and /dev/stdin, since
/// somebody has its other end.
pub fn readable(path: &Path) -> Result<()> {
    let is_pipe = || fs::metadata(path).is_ok_and(|about| about.file_type().is_fifo());
    match plain(path) {
        // the link to what a process has open leads to it, and yet to no path
        Err(_) if is_pipe() && path.canonicalize().is_err() => Ok(()),
        is_plain => is_plain,
    }
}

/// Errors: it is no file that gives its bytes twice. A set is one where a run has to know it again, or its lines are written
/// elsewhere.
pub fn twice(path: &Path) -> Result<()> {
    let said = "has to be read twice here, which only a plain file can be: write its lines to one";
    plain(path).map_err(|_| Error::file(path, said))
}

/// What to call something that is no plain file.
pub fn name(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_is_no_plain_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, socket, link) = (dir.path().join("pipe"), dir.path().join("socket"), dir.path().join("link"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        for (path, what) in
            [(pipe.as_path(), "a pipe"), (&link, "a pipe"), (&socket, "a socket"), (Path::new("/dev/null"), "a device")]
        {
            let wanted = format!(
                "{}: is {what}, and a plain file is wanted; write what it gives to one, and name that",
                path.display()
            );
            let refused = [open(path).map(|_| ()), read(path).map(|_| ()), read_text(path).map(|_| ()), plain(path)];
            for said in refused {
                assert_eq!(said.unwrap_err().to_string(), wanted);
            }
        }
        // what opening says
        plain(dir.path()).unwrap();
        let said = read(dir.path()).unwrap_err().to_string();
        assert!(said.starts_with("cannot read ") && said.contains("directory"), "{said}");
        assert_eq!(if_there(read(&dir.path().join("none"))).unwrap(), None);
        for (content, wanted) in [("\u{feff}a\u{feff}", "a\u{feff}"), ("a", "a"), ("\u{feff}", "")] {
            let marked = dir.path().join("marked");
            fs::write(&marked, content).unwrap();
            assert_eq!(read_unmarked(&marked).unwrap(), wanted.as_bytes());
        }
        if_there(read(dir.path())).unwrap_err();
    }

    #[test]
    fn a_pipe_that_the_program_has_is_read_once() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"text").unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let path = Path::new(&path);
        let said = [plain(path), twice(path)].map(|said| said.unwrap_err().to_string());
        assert!(said[0].contains("is a pipe") && said[1].contains("read twice"), "{said:?}");
        assert_eq!(read_text(path).unwrap(), "text");
    }
}
