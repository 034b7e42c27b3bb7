//! Files and folders that appear whole or not at all: written beside their place, flushed to disk, renamed into it.

use crate::base::{Error, Result};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file being written. Errors name the file that was asked for.
pub struct Output {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Output {
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Writes `path` with what `fill` writes: on success the whole of it is on disk, on any error `path` is as it was and
/// nothing is left beside it. A link stays, and what it leads to is written.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut Output) -> Result<()>) -> Result<()> {
    let (aside, place) = written_aside(path, fill)?;
    fs::rename(&aside.path, &place).map_err(|e| Error::io("rename into place", path, e))?;
    sync_folder(parent(&place))
}

/// Writes files that belong together, each with its text; one without a text is not to be there. All are written aside, then
/// what lies at their places goes, then they are renamed: whoever is killed on the way leaves some of them missing, and
/// never a new one beside an old one.
pub fn write_together(files: &[(PathBuf, Option<String>)]) -> Result<()> {
    let (mut written, mut places) = (Vec::new(), Vec::new());
    for (path, text) in files {
        let Some(text) = text else {
            places.push(place(path)?);
            continue;
        };
        let (aside, place) = written_aside(path, |out| out.write(text.as_bytes()))?;
        written.push((aside, place.clone()));
        places.push(place);
    }
    let folders: BTreeSet<&Path> = places.iter().map(|place| parent(place)).collect();
    for place in &places {
        match fs::remove_file(place) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", place, e)),
            _ => (),
        }
    }
    folders.iter().try_for_each(|folder| sync_folder(folder))?;
    for (aside, place) in &written {
        fs::rename(&aside.path, place).map_err(|e| Error::io("rename into place", place, e))?;
    }
    folders.iter().try_for_each(|folder| sync_folder(folder))
}

/// What `fill` writes, whole and on disk beside the place of `path`; and that place.
fn written_aside(path: &Path, fill: impl FnOnce(&mut Output) -> Result<()>) -> Result<(Aside, PathBuf)> {
    let place = place(path)?;
    let aside = Aside::of(&place)?;
    let created = OpenOptions::new().write(true).create_new(true).open(&aside.path);
    let file = created.map_err(|e| Error::io("create", path, e))?;
    // Collects small writes; larger ones pass it by.
    let mut out = Output { file: BufWriter::with_capacity(1 << 16, file), path: path.into() };
    fill(&mut out)?;
    let flushed = out.file.into_inner().map_err(|e| e.into_error()).and_then(|file| file.sync_all());
    flushed.map_err(|e| Error::io("write", path, e))?;
    Ok((aside, place))
}

/// Where `path` is written: itself, or what it leads to as a link. Errors: something is there that is no plain file (a
/// rename would put one in the place of a device, a pipe or a socket), or the link leads nowhere.
pub fn place(path: &Path) -> Result<PathBuf> {
    let seen = |e| Error::io("look at", path, e);
    let about = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(path.into()),
        about => about.map_err(seen)?,
    };
    let linked = about.is_symlink();
    let about = match linked {
        false => about,
        true => match fs::metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Error::file(path, "is a link to a file that is not there; name the file itself"));
            }
            about => about.map_err(seen)?,
        },
    };
    let what = match about.file_type() {
        // of a pipe that a process has, as in /dev/stdout, the link is no path
        kind if kind.is_file() && linked => return path.canonicalize().map_err(seen),
        kind if kind.is_file() => return Ok(path.into()),
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(Error::file(path, format!("is {what}, and only a plain file can be written whole or not at all; name another")))
}

/// Makes the folder `path` with what `fill` writes into the folder that it is given. Parents are created.
///
/// Where `path` is missing, the folder is filled beside it and renamed. An empty one is kept (it may be a mount
/// point, which cannot be replaced): it is filled in a folder inside, whose entries are then moved up.
/// Errors: `path` is a file or holds anything; it cannot be written. Then what was written is removed.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let exists = match fs::read_dir(path) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(Error::file(path, "the folder is not empty; name a new or an empty one"));
            }
            true
        }
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io("use as a folder", path, e)),
    };
    let aside = if exists {
        Aside::of(&path.join("folder"))?
    } else {
        fs::create_dir_all(parent(path)).map_err(|e| Error::io("create", parent(path), e))?;
        Aside::of(path)?
    };
    fs::create_dir(&aside.path).map_err(|e| Error::io("create", path, e))?;
    fill(&aside.path)?;
    sync_folder(&aside.path)?;
    if exists {
        let entries = fs::read_dir(&aside.path).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        for entry in entries.map_err(|e| Error::io("list", &aside.path, e))? {
            let to = path.join(entry.file_name());
            fs::rename(entry.path(), &to).map_err(|e| Error::io("rename into place", to, e))?;
        }
        sync_folder(path)
    } else {
        fs::rename(&aside.path, path).map_err(|e| Error::io("rename into place", path, e))?;
        sync_folder(parent(path))
    }
}

/// A name beside the one wanted, removed when dropped (after a rename there is nothing left to remove).
struct Aside {
    path: PathBuf,
}

impl Aside {
    fn of(path: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let Some(name) = path.file_name() else {
            return Err(Error::file(path, "wanted the name of a file or folder to write"));
        };
        let mut aside = OsString::from(".");
        aside.push(name);
        aside.push(format!(".partial-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        Ok(Aside { path: path.with_file_name(aside) })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Whatever fails here, the error that led here is the one to report.
        let _ = if self.path.is_dir() { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A rename is on disk once its folder is.
fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|e| Error::io("flush", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<OsString> {
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_appears_whole_and_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_file(&path, |out| out.write(b"one")).unwrap();
        write_file(&path, |out| {
            out.write(b"two")?;
            assert_eq!(fs::read(&path).unwrap(), b"one", "not replaced before it is whole");
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn a_link_stays_and_its_file_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("deep/a.txt"), dir.path().join("link"));
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(&file, "one").unwrap();
        std::os::unix::fs::symlink("deep/a.txt", &link).unwrap();
        write_file(&link, |out| out.write(b"two")).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert!(link.is_symlink());
        assert_eq!(names(&dir.path().join("deep")), ["a.txt"]);
        fs::remove_file(&file).unwrap();
        let error = write_file(&link, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("link: is a link to a file that is not there"), "{error}");
        assert!(link.is_symlink());
    }

    #[test]
    fn a_pipe_that_a_process_has_is_called_one() {
        use std::os::fd::AsRawFd;
        let (reader, _writer) = std::io::pipe().unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        let error = write_file(&path, |_| panic!("nothing is to be written")).unwrap_err().to_string();
        assert!(error.contains("is a pipe, and only a plain file"), "{error}");
    }

    #[test]
    fn what_is_no_plain_file_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, link) = (dir.path().join("socket"), dir.path().join("link"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        for (path, what) in [
            (socket.as_path(), "a socket"),
            (&link, "a socket"),
            (dir.path(), "a folder"),
            (Path::new("/dev/null"), "a device"),
        ] {
            let error = write_file(path, |_| panic!("nothing is to be written")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}: is {what}, and only a plain file", path.display())), "{error}");
        }
        assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    }

    #[test]
    fn an_error_while_writing_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_file(&path, |out| out.write(b"one")).unwrap();
        let error = write_file(&path, |out| {
            out.write(b"two")?;
            Err(Error::Usage("stop".into()))
        });
        assert!(error.unwrap_err().is_usage());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn files_that_belong_together_are_never_old_and_new() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        let read = |path: &Path| fs::read_to_string(path).ok();
        let text = |text: &str| Some(text.to_string());
        write_together(&[(a.clone(), text("old a")), (b.clone(), text("old b"))]).unwrap();
        // one cannot be written: all stay as they were
        let nowhere = dir.path().join("missing/d");
        let error = write_together(&[(a.clone(), text("new a")), (nowhere, text("new d"))]).unwrap_err().to_string();
        assert!(error.contains("missing/d"), "{error}");
        assert_eq!([read(&a), read(&b)], [text("old a"), text("old b")]);
        // nor where one cannot be replaced, or removed
        fs::create_dir(&c).unwrap();
        for text_of_c in [text("new c"), None] {
            let error = write_together(&[(a.clone(), text("new a")), (c.clone(), text_of_c)]).unwrap_err().to_string();
            assert!(error.contains("c: is a folder") && read(&a) == text("old a"), "{error}");
        }
        fs::remove_dir(&c).unwrap();
        write_together(&[(a.clone(), text("new a")), (b.clone(), None), (c.clone(), text("new c"))]).unwrap();
        assert_eq!([read(&a), read(&b), read(&c)], [text("new a"), None, text("new c")]);
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn a_full_disk_is_said_with_the_name_of_the_file() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut out = Output { file: BufWriter::with_capacity(16, full), path: "big.safetensors".into() };
        let error = out.write(&[0; 64]).unwrap_err().to_string();
        assert!(error.starts_with("cannot write big.safetensors: No space left on device"), "{error}");
    }

    #[test]
    fn places_that_cannot_be_written_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = write_file(&dir.path().join("missing/a.txt"), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("missing/a.txt") && error.contains("No such file"), "{error}");
        let error = write_file(Path::new("missing/.."), |_| Ok(())).unwrap_err().to_string();
        assert_eq!(error, "missing/..: wanted the name of a file or folder to write");
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = write_folder(&file, |_| Ok(())).unwrap_err().to_string();
        assert!(error.starts_with("cannot use as a folder") && error.contains("Not a directory"), "{error}");
        let error = write_folder(&file.join("below"), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("Not a directory"), "{error}");
    }

    #[test]
    fn a_folder_appears_whole_whether_missing_or_empty() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        for name in ["deep/new", "empty"] {
            let out = dir.path().join(name);
            write_folder(&out, |inside| {
                assert!(!out.join("a").exists());
                write_file(&inside.join("a"), |f| f.write(b"1"))
            })
            .unwrap();
            assert_eq!(names(&out), ["a"]);
            let error = write_folder(&out, |_| Ok(())).unwrap_err().to_string();
            assert!(error.contains("not empty"), "{error}");
        }
    }

    #[test]
    fn a_failed_folder_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        for name in ["new", "empty"] {
            let failed = write_folder(&dir.path().join(name), |inside| {
                write_file(&inside.join("a"), |f| f.write(b"1"))?;
                Err(Error::Usage("stop".into()))
            });
            assert!(failed.unwrap_err().is_usage());
        }
        assert_eq!(names(dir.path()), ["empty"]);
        assert!(names(&dir.path().join("empty")).is_empty());
    }
}
