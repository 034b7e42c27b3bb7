//! Labelled photos of other people's shapes as a dataset: [`folders`] of classes, [`csv`] tables, [`coco`] annotations.
//!
//! Nothing is left out in silence. What cannot be used (a missing file, an unknown category) is [`Imported::bad`], an
//! error unless it was asked to skip it; what an import is not about (a photo of two classes, a stray file) is
//! [`Imported::left_out`]. Start at [`import`]; [`lines`] writes the dataset.

pub mod coco;
pub mod csv;
pub mod folders;
mod place;

use super::messages::around_image;
use super::{image, paths};
use crate::base::error::Context;
use crate::base::{Error, Result, counted};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Photo {
    /// Absolute.
    pub path: PathBuf,
    /// As a dataset's labels are: [`composed`](super::label::composed).
    pub class: String,
}

#[derive(Debug, Default)]
pub struct Imported {
    /// In the order of the source; never empty once [`import`] returns them.
    pub photos: Vec<Photo>,
    /// A sentence for each entry that the import is not about.
    pub left_out: Vec<Error>,
    /// A sentence for each entry that is wrong.
    pub bad: Vec<Error>,
}

/// What an import is told besides its source.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The folder that image paths start from; None: the folder of the file that names them.
    pub images: Option<PathBuf>,
    /// The names of the columns with image and label.
    pub columns: Option<[String; 2]>,
    /// COCO: a photo of several categories is of that with the largest area, instead of none.
    pub majority: bool,
    /// Wrong entries are listed in [`Imported::bad`] instead of being an error.
    pub skip_bad: bool,
}

/// Reads `source`: a folder of class folders, a CSV file or COCO annotations, as its name says.
///
/// Errors: those of the kind; any wrong entry, unless they are skipped; no photo at all; an option that the kind of
/// source has no use for.
pub fn import(source: &Path, options: &Options) -> Result<Imported> {
    let extension = source.extension().map(|e| e.to_string_lossy().to_lowercase());
    let useless = |flag: &str, kind: &str| Error::Usage(format!("{flag} says nothing about {kind}; leave it out"));
    let kind = match extension.as_deref() {
        _ if source.is_dir() => "a folder of class folders",
        _ if !source.exists() => return Err(Error::file(source, "there is no such folder or file")),
        Some("csv" | "tsv" | "txt") => "a CSV file",
        Some("json") => "COCO annotations",
        Some("jsonl") => return Err(Error::file(source, "this is a dataset already; commands read it as it is")),
        _ => {
            let said = "wanted a folder with a folder of photos per class, a CSV file (image,label) or COCO annotations \
                        (.json)";
            return Err(Error::file(source, said));
        }
    };
    match kind {
        _ if options.majority && kind != "COCO annotations" => return Err(useless("--majority", kind)),
        _ if options.columns.is_some() && kind != "a CSV file" => return Err(useless("--columns", kind)),
        _ if options.images.is_some() && source.is_dir() => return Err(useless("--images", kind)),
        _ => (),
    }
    let found = match kind {
        "a CSV file" => csv::table(source, options)?,
        "COCO annotations" => coco::annotations(source, options)?,
        _ => folders::class_folders(source)?,
    };
    let bad = found.bad.len();
    let said = match (found.photos.is_empty(), bad) {
        (true, 1) => "the only entry is wrong".into(),
        (true, _) => format!("all {bad} entries are wrong, the first"),
        (false, _) => {
            let (all, are) = (found.entries(), if bad == 1 { "is" } else { "are" });
            format!("{bad} of {all} entries {are} wrong (--skip-bad leaves them out and lists them), the first")
        }
    };
    let mut found = found;
    if bad > 0 && (!options.skip_bad || found.photos.is_empty()) {
        return Err(found.bad.swap_remove(0)).context(said);
    }
    match found.left_out.first() {
        Some(first) if found.photos.is_empty() => {
            let left_out = counted(found.left_out.len(), "was", "were");
            let said = format!("no photo is left: {left_out} left out; the first: {first}");
            Err(Error::file(source, said))
        }
        None if found.photos.is_empty() => Err(Error::file(source, "names no photo")),
        _ => Ok(found),
    }
}

impl Imported {
    fn entries(&self) -> usize {
        self.photos.len() + self.left_out.len() + self.bad.len()
    }
}

/// Where a photo is named.
enum Place {
    Line(usize),
    /// Of a JSON file, which has no lines to speak of.
    Entry(String),
}

impl Place {
    fn error(&self, file: &Path, reason: impl std::fmt::Display) -> Error {
        match self {
            Place::Line(line) => Error::line(file, *line, reason.to_string()),
            Place::Entry(entry) => Error::file(file, format!("{entry}: {reason}")),
        }
    }

    /// As the end of a sentence about another place.
    fn short(&self) -> String {
        match self {
            Place::Line(line) => format!("line {line}"),
            Place::Entry(entry) => entry.clone(),
        }
    }
}

/// A photo that a table or annotations name.
struct Named {
    place: Place,
    photo: Photo,
}

/// Takes in what `file` names, in order: photos that can be read, each once. One that is named again is wrong; where
/// the labels differ, nobody knows which is right, and all of its entries are.
fn take(file: &Path, named: Vec<Named>, found: &mut Imported) {
    let unread: Vec<Option<Error>> = named.par_iter().map(|n| image::dimensions(&n.photo.path).err()).collect();
    let mut by_path: HashMap<&Path, Vec<usize>> = HashMap::new();
    for (i, n) in named.iter().enumerate() {
        by_path.entry(&n.photo.path).or_default().push(i);
    }
    let again: Vec<Option<String>> = named
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let all = by_path.get(n.photo.path.as_path())?;
            let other = all.iter().find(|o| named[**o].photo.class != n.photo.class);
            match (other, all.first().filter(|first| **first != i)) {
                (Some(other), _) => {
                    let (class, there) = (&named[*other].photo.class, named[*other].place.short());
                    Some(format!("the photo is called {:?} here and {class:?} in {there}", n.photo.class))
                }
                (None, Some(first)) => Some(format!("the photo is there already, in {}", named[*first].place.short())),
                (None, None) => None,
            }
        })
        .collect();
    for ((n, unread), again) in named.into_iter().zip(unread).zip(again) {
        match (unread, again) {
            (Some(e), _) => found.bad.push(n.place.error(file, e)),
            (None, Some(again)) => found.bad.push(n.place.error(file, again)),
            (None, None) => found.photos.push(n.photo),
        }
    }
}

/// The folder that the image paths in `file` start from.
fn images_folder(file: &Path, images: Option<&Path>) -> Result<PathBuf> {
    let folder = match (images, file.parent()) {
        (Some(images), _) => images,
        (None, Some(parent)) if !parent.as_os_str().is_empty() => parent,
        (None, _) => Path::new("."),
    };
    folder.canonicalize().map_err(|e| Error::io("use as a folder", folder, e))
}

/// The lines of a dataset in `folder`: `{"image", "label"}`, or with a prompt whole conversations, the image before the
/// prompt or where it says `<image>`. Image paths are relative to `folder` unless the two share nothing but the root.
/// Errors: `folder` is missing; the prompt has more than one `<image>`; a path that is not UTF-8.
pub fn lines(photos: &[Photo], prompt: Option<&str>, folder: &Path) -> Result<Vec<String>> {
    let folder = folder.canonicalize().map_err(|e| Error::io("use as a folder", folder, e))?;
    let around = prompt.map(around_image).transpose().map_err(Error::Usage)?;
    let line = |photo: &Photo| {
        let image = paths::text(&paths::relative(&photo.path, &folder))?;
        let Some((before, after)) = around else {
            return Ok(json!({"image": image, "label": photo.class}).to_string());
        };
        let text = |text: &str| (!text.is_empty()).then(|| json!({"type": "text", "text": text}));
        let image = json!({"type": "image", "image": image});
        let content: Vec<Value> = text(before).into_iter().chain([image]).chain(text(after)).collect();
        let user = json!({"role": "user", "content": content});
        Ok(json!({"messages": [user, {"role": "assistant", "content": photo.class}]}).to_string())
    };
    photos.iter().map(line).collect()
}
