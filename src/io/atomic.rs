//! Files and folders that appear whole or not at all: written beside their place, flushed to disk, renamed into it.

use super::lock::FolderLock;
use crate::base::{Error, Result, input};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
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
    let (aside, file) = Aside::make(&place, path, |aside| OpenOptions::new().write(true).create_new(true).open(aside))?;
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
        kind => input::name(kind),
    };
    Err(Error::file(path, format!("is {what}, and only a plain file can be written whole or not at all; name another")))
}

/// Makes the folder `path` with what `fill` writes into the folder that it is given. Parents are created.
///
/// Where `path` is missing, the folder is filled beside it and renamed. An empty one is kept (it may be a mount
/// point, which cannot be replaced): it is filled in a folder inside, whose entries are then moved up.
/// What another process that was killed here had filled goes first; the folder of one that is at work is left alone.
/// Errors: `path` is a file or holds anything; it cannot be written. Then what was written is removed.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let inside = path.join("folder");
    [path, &inside].into_iter().for_each(remove_left_behind);
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
    let place = match exists {
        true => &inside,
        false => {
            fs::create_dir_all(parent(path)).map_err(|e| Error::io("create", parent(path), e))?;
            path
        }
    };
    let (aside, _lock) = locked_aside(place, path)?;
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

/// A new folder beside `place`. Its lock tells others that somebody fills it.
fn locked_aside(place: &Path, asked: &Path) -> Result<(Aside, FolderLock)> {
    loop {
        let (aside, ()) = Aside::make(place, asked, |path| fs::create_dir(path))?;
        match FolderLock::take(&aside.path) {
            Ok(lock) if aside.path.is_dir() => return Ok((aside, lock)),
            Err(e) if aside.path.is_dir() && !matches!(e, Error::Busy { .. }) => return Err(e),
            // before it was locked another took it for one left behind
            _ => (),
        }
    }
}

/// Removes what a killed process had written beside `place`: folders of the names that [`Aside`] gives, whose locks nobody
/// holds. What cannot be removed is in nobody's way.
fn remove_left_behind(place: &Path) {
    let Some(name) = place.file_name() else { return };
    for entry in fs::read_dir(parent(place)).into_iter().flatten().flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder
            && is_aside(&entry.file_name(), name)
            && let Some(_lock) = FolderLock::of_the_dead(&entry.path())
        {
            _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A name beside the one wanted, removed when dropped (after a rename there is nothing left to remove).
struct Aside {
    path: PathBuf,
}

impl Aside {
    /// Makes what is to stand at `place` in the end. Errors name what was `asked` for.
    fn make<T>(place: &Path, asked: &Path, make: impl Fn(&Path) -> std::io::Result<T>) -> Result<(Aside, T)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let Some(name) = place.file_name() else {
            return Err(Error::file(place, "wanted the name of a file or folder to write"));
        };
        loop {
            let mut aside = start_of_aside(name);
            aside.push(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
            let path = place.with_file_name(aside);
            match make(&path) {
                Ok(made) => return Ok((Aside { path }, made)),
                // another container's process of the same number made it, or one that was killed
                Err(e) if e.kind() == ErrorKind::AlreadyExists => (),
                Err(e) => return Err(Error::io("create", asked, e)),
            }
        }
    }
}

/// Stands between the name that is wanted and two numbers.
const ASIDE: &str = ".partial-";

/// What the names of all that is made beside `name` begin with; two numbers follow.
fn start_of_aside(name: &OsStr) -> OsString {
    [OsStr::new("."), name, OsStr::new(ASIDE)].into_iter().collect()
}

/// Whether `found` is such a name.
fn is_aside(found: &OsStr, name: &OsStr) -> bool {
    let numbers = found.as_encoded_bytes().strip_prefix(start_of_aside(name).as_encoded_bytes());
    numbers.is_some_and(are_numbers)
}

/// Whether a process that was killed may have left what has this name: it is that of something beside a place, whatever the
/// place.
pub fn is_left_behind(found: &str) -> bool {
    let parts = found.strip_prefix('.').and_then(|found| found.rsplit_once(ASIDE));
    parts.is_some_and(|(name, numbers)| !name.is_empty() && are_numbers(numbers.as_bytes()))
}

/// Two, as [`Aside::make`] gives.
fn are_numbers(text: &[u8]) -> bool {
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let parts: Vec<&[u8]> = text.split(|byte| *byte == b'-').collect();
    parts.len() == 2 && parts.into_iter().all(is_number)
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
    use std::os::unix::fs::FileTypeExt;

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
    fn what_the_dead_left_goes_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let full = |name: &str| {
            fs::create_dir_all(at(name)).unwrap();
            fs::write(at(name).join("model.safetensors"), "half").unwrap();
        };
        let dead = [".out.partial-1-0", ".out.partial-4000000000-17", "empty/.folder.partial-7-1"];
        let alive = ".out.partial-2-0";
        let others =
            [".out.partial-1", ".out.partial-1-0x", ".out.partial--1", ".outer.partial-1-0", "out.partial-1-0"];
        dead.iter().chain(&others).chain([&alive]).for_each(|name| full(name));
        let file = at(".out.partial-3-0");
        fs::write(&file, "mine").unwrap();
        let link = at(".out.partial-5-0");
        std::os::unix::fs::symlink(at("outer"), &link).unwrap();
        let lock = FolderLock::take(&at(alive)).unwrap();
        for name in ["out", "empty"] {
            write_folder(&at(name), |inside| {
                // nor is this one taken for what somebody left
                remove_left_behind(&at(name));
                remove_left_behind(&at(name).join("folder"));
                write_file(&inside.join("a"), |f| f.write(b"1"))
            })
            .unwrap();
            assert_eq!(names(&at(name)), ["a"]);
        }
        let there = |name: &&str| at(name).join("model.safetensors").exists();
        assert!(!dead.iter().any(there) && others.iter().all(there) && there(&alive));
        assert!(file.exists() && link.is_symlink());
        drop(lock);
        // of whoever has ended since, and where there is a result already
        write_folder(&at("out"), |_| Ok(())).unwrap_err();
        assert!(!there(&alive) && at("out/a").exists());
    }

    #[test]
    fn a_process_of_the_same_number_that_was_killed_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let made = std::cell::RefCell::new(Vec::new());
        let make = |path: &Path| {
            made.borrow_mut().push(path.to_path_buf());
            if made.borrow().len() == 1 {
                fs::write(path, "left").unwrap();
            }
            File::create_new(path)
        };
        let (aside, _) = Aside::make(&dir.path().join("a"), &dir.path().join("a"), make).unwrap();
        let made = made.borrow();
        assert!(made.len() == 2 && aside.path == made[1]);
        drop(aside);
        assert!(made[0].exists() && !made[1].exists());
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
