//! COCO annotations: photos, categories, and boxes or outlines that say which photo shows which category.
//!
//! A photo is of a class where all of its annotations are of one category; where they are of several, of none, or, with
//! `majority`, of that with the largest area in all. Photos of several classes and photos without annotations are left
//! out, and listed. A photo that a wrong annotation names is wrong as a whole: without that annotation its class would
//! be a guess. Source of the format: cocodataset.org, "Data format".

use super::place::place;
use super::{Imported, Named, Options, Photo, Place, images_folder, take};
use crate::base::{Error, Result, input};
use crate::data::label::composed;
use crate::data::messages::json_error;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

#[derive(Deserialize)]
struct Coco {
    images: Option<Vec<Image>>,
    annotations: Option<Vec<Annotation>>,
    categories: Option<Vec<Category>>,
}

/// Values, because what is wrong with one entry must not be the end of the file.
#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    file_name: Value,
}

#[derive(Deserialize)]
struct Category {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    name: Value,
}

#[derive(Deserialize)]
struct Annotation {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    image_id: Value,
    #[serde(default)]
    category_id: Value,
    #[serde(default)]
    area: Value,
    #[serde(default)]
    bbox: Value,
}

/// What the annotations say of one photo: area by class, or the first thing that is wrong.
#[derive(Default)]
struct Seen {
    areas: BTreeMap<String, f64>,
    wrong: Option<String>,
}

/// Reads the annotations `file`. Errors: unreadable, not JSON (with its line), not of this format.
pub fn annotations(file: &Path, options: &Options) -> Result<Imported> {
    let text = input::read_unmarked(file)?;
    if text.trim_ascii().is_empty() {
        return Err(Error::file(file, "is empty; wanted COCO annotations"));
    }
    let coco: Coco = serde_json::from_slice(&text).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => {
            let said = "is not COCO annotations: wanted an object with the lists images, annotations and categories";
            Error::line(file, e.line().max(1), format!("{said} ({e})"))
        }
        _ => Error::line(file, e.line().max(1), json_error(&e)),
    })?;
    let missing = |name: &str| Error::file(file, format!("is not COCO annotations: there is no list {name:?}"));
    let images = coco.images.ok_or_else(|| missing("images"))?;
    let annotations = coco.annotations.ok_or_else(|| missing("annotations"))?;
    let categories = coco.categories.ok_or_else(|| missing("categories"))?;

    let mut found = Imported::default();
    let names = category_names(file, categories, &mut found);
    let (by_id, twice) = image_ids(file, &images, &mut found);
    let mut seen: Vec<Seen> = images.iter().map(|_| Seen::default()).collect();
    let mut ids: HashMap<String, usize> = HashMap::new();
    for (number, a) in annotations.iter().enumerate() {
        let entry = format!("annotation {}", shown(&a.id, number));
        let Some(at) = key(&a.image_id).and_then(|id| by_id.get(&id)) else {
            found.bad.push(Error::file(file, format!("{entry}: no image has its image_id {}", a.image_id)));
            continue;
        };
        let seen = &mut seen[*at];
        let repeated = key(&a.id).is_some_and(|id| ids.insert(id, number).is_some());
        match (key(&a.category_id).and_then(|id| names.get(&id)), area(a)) {
            _ if repeated => _ = seen.wrong.get_or_insert(format!("{entry} is there twice")),
            (None, _) => {
                let said = format!("{entry} is of the unknown category {}", a.category_id);
                seen.wrong.get_or_insert(said);
            }
            (Some(_), None) if options.majority => {
                seen.wrong.get_or_insert(format!("{entry} has neither area nor bbox"));
            }
            (Some(name), area) => *seen.areas.entry(name.clone()).or_default() += area.unwrap_or(0.0),
        }
    }

    let root = images_folder(file, options.images.as_deref())?;
    let mut named = Vec::new();
    for (image, seen) in images.iter().zip(seen) {
        let Some(id) = key(&image.id).filter(|id| !twice.contains(id)) else { continue };
        let entry = format!("image {id} ({})", image.file_name.as_str().unwrap_or("without a name"));
        let wrong = |reason: String| Error::file(file, format!("{entry}: {reason}"));
        if let Some(reason) = seen.wrong {
            found.bad.push(wrong(reason));
            continue;
        }
        let class = match class(&seen.areas, options.majority) {
            Ok(class) => class,
            Err(reason) => {
                found.left_out.push(wrong(reason));
                continue;
            }
        };
        let Some(name) = image.file_name.as_str() else {
            found.bad.push(wrong("has no file_name".into()));
            continue;
        };
        match place(name, &root) {
            Ok(path) => named.push(Named { place: Place::Entry(entry), photo: Photo { path, class } }),
            Err(reason) => found.bad.push(wrong(reason)),
        }
    }
    take(file, named, &mut found);
    Ok(found)
}

/// Names by id. Two ids of one name are one class.
fn category_names(file: &Path, categories: Vec<Category>, found: &mut Imported) -> HashMap<String, String> {
    let mut names = HashMap::new();
    for (number, category) in categories.into_iter().enumerate() {
        let entry = format!("category {}", shown(&category.id, number));
        let name = category.name.as_str().map(|name| composed(name.trim())).filter(|name| !name.is_empty());
        match (key(&category.id), name) {
            (None, _) => found.bad.push(Error::file(file, format!("{entry}: has no id"))),
            (_, None) => found.bad.push(Error::file(file, format!("{entry}: has no name"))),
            (Some(id), Some(name)) => {
                if let Some(other) = names.insert(id, name.clone()).filter(|other| *other != name) {
                    let said = format!("{entry}: the id is there twice, as {other:?} and {name:?}");
                    found.bad.push(Error::file(file, said));
                }
            }
        }
    }
    names
}

/// Places in the list by id, and the ids that are there twice: of which photo an annotation speaks, nobody knows.
fn image_ids(file: &Path, images: &[Image], found: &mut Imported) -> (HashMap<String, usize>, HashSet<String>) {
    let (mut by_id, mut twice) = (HashMap::new(), HashSet::new());
    for (number, image) in images.iter().enumerate() {
        match key(&image.id) {
            None => found.bad.push(Error::file(file, format!("image number {}: has no id", number + 1))),
            Some(id) => {
                if by_id.insert(id.clone(), number).is_some() && twice.insert(id.clone()) {
                    found.bad.push(Error::file(file, format!("image {id}: the id is there twice")));
                }
            }
        }
    }
    (by_id, twice)
}

fn class(areas: &BTreeMap<String, f64>, majority: bool) -> Result<String, String> {
    let names: Vec<&str> = areas.keys().map(String::as_str).collect();
    match names[..] {
        [] => return Err("has no annotation".into()),
        [name] => return Ok(name.into()),
        _ if !majority => {
            return Err(format!("shows {}; --majority takes that with the largest area", names.join(", ")));
        }
        _ => (),
    }
    let most = areas.values().fold(0.0, |a: f64, b| a.max(*b));
    let largest: Vec<&str> = areas.iter().filter(|(_, area)| **area == most).map(|(name, _)| name.as_str()).collect();
    match largest[..] {
        [name] => Ok(name.into()),
        _ => Err(format!("shows {} with the same area", largest.join(", "))),
    }
}

/// In pixels: the annotation's own, else that of its box.
fn area(annotation: &Annotation) -> Option<f64> {
    let usable = |x: &f64| x.is_finite() && *x >= 0.0;
    let of_box = || match annotation.bbox.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>()?[..] {
        [_, _, width, height] => Some(width * height),
        _ => None,
    };
    annotation.area.as_f64().filter(usable).or_else(of_box).filter(usable)
}

/// An id as a key: numbers and text are both in use.
fn key(id: &Value) -> Option<String> {
    match id {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// An entry's id, or its place in the list.
fn shown(id: &Value, number: usize) -> String {
    key(id).unwrap_or_else(|| format!("number {}", number + 1))
}
