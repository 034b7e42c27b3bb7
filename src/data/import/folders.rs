//! A folder of class folders as a labelled set: `SRC/dent/1.jpg` is a photo of the class `dent`.
//!
//! Classes and photos come in the byte order of their names, so that the result does not depend on the file system.
//! Nothing is left out in silence: an entry that is no photo is returned with its reason, as wrong where its name says
//! that it is one, else as something beside the photos. Names beginning with a dot are the system's and do not count.

use super::{Imported, Photo};
use crate::base::{Error, Result, counted};
use crate::data::label::composed;
use crate::data::{image, paths};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Lists the photos of the class folders in `source`, one level deep. A photo is a file whose header one of the decoders
/// reads. Errors: `source` is no folder or has no photo in a class folder.
pub fn class_folders(source: &Path) -> Result<Imported> {
    let source = source.canonicalize().map_err(|e| Error::io("use as a folder", source, e))?;
    let mut found = Imported::default();
    let mut deeper = None;
    for path in entries(&source)? {
        if !path.is_dir() {
            found.left_out.push(Error::file(path, "lies in no class folder"));
            continue;
        }
        let Some(class) = path.file_name().and_then(|name| name.to_str()).map(composed) else {
            found.left_out.push(Error::file(path, "the folder's name is not UTF-8, and a label must be; rename it"));
            continue;
        };
        let before = found.photos.len();
        for path in entries(&path)? {
            match photo(&path) {
                Ok(()) => found.photos.push(Photo { path, class: class.clone() }),
                Err(e) if path.is_dir() => {
                    deeper.get_or_insert(path);
                    found.left_out.push(e);
                }
                Err(e) if meant_as_photo(&path) => found.bad.push(e),
                Err(e) => found.left_out.push(e),
            }
        }
        if found.photos.len() == before {
            found.left_out.push(Error::file(path, "holds no photo, so it is no class"));
        }
    }
    if found.photos.is_empty() {
        let hint = match (deeper, found.bad.first().or(found.left_out.first())) {
            (Some(inner), _) => {
                let outer = inner.parent().unwrap_or(&inner).display();
                format!("; its folders hold folders: import each of them, such as {outer}")
            }
            (None, Some(first)) => format!("; the first of {}: {first}", counted(found.entries(), "entry", "entries")),
            (None, None) => "; it is empty".into(),
        };
        let reason = format!("wanted a folder of photos per class, and found no photo in one{hint}");
        return Err(Error::file(source, reason));
    }
    Ok(found)
}

/// What a folder holds, hidden entries apart, in the byte order of the names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let error = |e| Error::io("list", folder, e);
    let mut names: Vec<OsString> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    names.sort_by(|a, b| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Whether a file that cannot be read as a photo was put there as one: its name ends as photos' do, also those of formats
/// that are not read; or it is a link that leads nowhere.
fn meant_as_photo(path: &Path) -> bool {
    const ENDINGS: [&str; 13] =
        ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "heic", "heif", "avif"];
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    ending.is_some_and(|e| ENDINGS.contains(&e.as_str())) || !path.exists()
}

fn photo(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder inside a class folder; only one level of classes is read"));
    }
    paths::text(path)?;
    image::dimensions(path).map(|_| ())
}
