//! The photos of all evaluations side by side, their small pictures, and the JSON that the page's script reads.

use super::sources::Sources;
use crate::base::{Error, Result};
use crate::classify::compare::{Key, keyed};
use crate::classify::records::Record;
use crate::data::{image, look};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Photos decoded between two reports of progress.
const CHUNK: usize = 32;
const QUALITY: u8 = 72;

/// One photo, and what each evaluation said of it.
pub struct Photo {
    pub key: Key,
    pub label: String,
    /// In the order of the evaluations; None where it was not asked.
    pub answers: Vec<Option<Record>>,
    pub tags: BTreeSet<String>,
}

pub struct Gallery {
    /// In the order of the first evaluation that has them.
    pub photos: Vec<Photo>,
    /// Pictures of the photos and of the near-duplicates, each once.
    pub pictures: Vec<PathBuf>,
    /// The folder that all pictures lie in.
    common: PathBuf,
}

/// JPEG files of the pictures, in the same order.
pub struct Thumbnails {
    pub pictures: Vec<Option<Vec<u8>>>,
    /// A sentence for each that could not be made.
    pub missing: Vec<String>,
}

impl Gallery {
    pub fn new(found: &Sources) -> Gallery {
        let mut photos: Vec<Photo> = Vec::new();
        let mut places: BTreeMap<Key, usize> = BTreeMap::new();
        let n = found.evaluations.len();
        for (e, evaluation) in found.evaluations.iter().enumerate() {
            for (key, record) in keyed(evaluation) {
                let at = *places.entry(key.clone()).or_insert_with(|| {
                    let answers = vec![None; n];
                    photos.push(Photo { key, label: record.label.clone(), answers, tags: BTreeSet::new() });
                    photos.len() - 1
                });
                photos[at].answers[e] = Some(record.clone());
                photos[at].tags.extend(record.tags.iter().cloned());
            }
        }
        if let (Some(comparison), Some(last)) = (&found.comparison, found.evaluations.last()) {
            let groups: BTreeMap<usize, &'static str> =
                comparison.pairs.iter().map(|p| (p.after.line, p.group.tag())).collect();
            for (key, record) in keyed(last) {
                if let (Some(at), Some(tag)) = (places.get(&key), groups.get(&record.line)) {
                    photos[*at].tags.insert((*tag).into());
                }
            }
        }
        let leaking: BTreeSet<PathBuf> = found
            .leaks
            .iter()
            .flat_map(|(folder, pairs)| pairs.iter().filter(|p| p.crosses()).map(move |p| (folder, p)))
            .flat_map(|(folder, p)| [&p.a, &p.b].map(|m| resolved(folder, &m.image)))
            .collect();
        for photo in &mut photos {
            if photo.key.images.iter().any(|i| leaking.contains(i)) {
                photo.tags.insert("near_duplicate".into());
            }
        }
        let mut pictures: Vec<PathBuf> = photos.iter().filter_map(|p| p.key.images.first().cloned()).collect();
        for (folder, pairs) in &found.leaks {
            pictures.extend(pairs.iter().flat_map(|p| [&p.a, &p.b]).map(|m| resolved(folder, &m.image)));
        }
        pictures.sort();
        pictures.dedup();
        let shared = |a: PathBuf, b: PathBuf| -> PathBuf {
            a.components().zip(b.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
        };
        let folders = pictures.iter().filter_map(|p| p.parent()).map(Path::to_path_buf);
        let common = folders.reduce(shared).unwrap_or_default();
        Gallery { photos, pictures, common }
    }

    /// The place of a picture among the thumbnails.
    pub fn picture(&self, path: &Path) -> Option<usize> {
        self.pictures.binary_search_by(|p| p.as_path().cmp(path)).ok()
    }

    /// What a picture is called on the page: its path below the folder that all have in common.
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.common).unwrap_or(path).display().to_string()
    }

    /// Decodes and shrinks every picture, on all threads.
    pub fn thumbnails(&self, progress: &mut dyn FnMut(usize, usize)) -> Thumbnails {
        let n = self.pictures.len();
        let longest = if n <= 1000 { 240 } else { 144 };
        let mut all = Thumbnails { pictures: Vec::with_capacity(n), missing: Vec::new() };
        for chunk in self.pictures.chunks(CHUNK) {
            let made: Vec<Result<Vec<u8>>> = chunk.par_iter().map(|path| thumbnail(path, longest)).collect();
            for picture in made {
                match picture {
                    Ok(bytes) => all.pictures.push(Some(bytes)),
                    Err(e) => {
                        all.pictures.push(None);
                        all.missing.push(e.to_string());
                    }
                }
            }
            progress(all.pictures.len(), n);
        }
        all
    }

    /// What the script shows: `evals` (names), `classes`, and `photos` with `i` (place of the picture, or -1), `n` (path
    /// below the folder that all have in common), `l` (label), `t` (tags) and `a`: per evaluation null or `p` (prediction), `r` (right: 0 or 1), `q` (probabilities
    /// by class), `w` (the written answer).
    pub fn json(&self, found: &Sources, names: &[String], made: &Thumbnails) -> Value {
        let classes: BTreeSet<&String> = found.evaluations.iter().flat_map(|e| e.metrics.per_class.keys()).collect();
        let answer = |record: &Option<Record>| {
            let Some(r) = record else { return Value::Null };
            json!({"p": r.prediction, "r": u8::from(r.right), "q": r.probabilities, "w": r.answer})
        };
        let name = |photo: &Photo| photo.key.images.first().map_or_else(|| photo.key.shown(), |path| self.shown(path));
        let photo = |photo: &Photo| {
            let path = photo.key.images.first();
            let place = path.and_then(|p| self.picture(p)).filter(|i| made.pictures[*i].is_some());
            json!({
                "i": place.map_or(-1, |i| i as i64),
                "n": name(photo),
                "l": photo.label,
                "t": photo.tags,
                "a": photo.answers.iter().map(answer).collect::<Vec<_>>(),
            })
        };
        json!({
            "evals": names,
            "classes": classes,
            "photos": self.photos.iter().map(photo).collect::<Vec<_>>(),
        })
    }
}

/// A picture's path as evaluations know it.
pub fn resolved(folder: &Path, image: &str) -> PathBuf {
    crate::classify::records::plain(&folder.join(image))
}

/// The picture at `path` as a JPEG file whose longer side is at most `longest`.
fn thumbnail(path: &Path, longest: usize) -> Result<Vec<u8>> {
    let small = look::thumbnail(&image::load(path)?, longest);
    image::to_jpeg(&small, QUALITY).map_err(|e| Error::file(path, e.to_string()))
}
