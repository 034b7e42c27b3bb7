//! What is in a dataset: classes, sizes, tokens, and everything that looks odd. Start at [`census`].

use super::dataset::Dataset;
use super::image::PatchSpec;
use super::label::normalised;
use super::look::{Look, look};
use super::messages::ImageSource;
use crate::base::error::at_line;
use crate::base::{Error, Result, counted};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bars of a histogram.
const BINS: u64 = 10;
/// A class with fewer photos is said to be small.
const FEW: usize = 10;
/// The longer side over the shorter, above which a photo's shape is odd.
const LONG: f64 = 3.0;
/// Shorter sides below this hold little to see.
const TINY: usize = 64;
const HUGE_PIXELS: usize = 24_000_000;
const HUGE_BYTES: u64 = 20 << 20;

/// Values from `from` up to and with `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bin {
    pub from: u64,
    pub to: u64,
    pub n: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Histogram {
    pub min: u64,
    pub median: u64,
    pub max: u64,
    pub bins: Vec<Bin>,
}

/// A photo with everything that is odd about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Odd {
    pub line: usize,
    pub image: String,
    pub what: Vec<String>,
}

/// Photos of the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Same {
    pub lines: Vec<usize>,
    pub images: Vec<String>,
    /// More than one: the same photo is called different things.
    pub labels: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Census {
    pub samples: usize,
    pub photos: usize,
    /// By name.
    pub classes: BTreeMap<String, usize>,
    pub without_label: usize,
    pub without_photo: usize,
    /// Of photos that could be read; absent where none could.
    pub width: Option<Histogram>,
    pub height: Option<Histogram>,
    pub tokens: Option<Histogram>,
    pub formats: BTreeMap<String, usize>,
    /// Lines and photos that cannot be read, a sentence each.
    pub unreadable: Vec<String>,
    pub odd: Vec<Odd>,
    pub same: Vec<Same>,
    /// Sentences about the labels.
    pub labels: Vec<String>,
    /// Per class some small copies, for a contact sheet.
    #[serde(skip)]
    pub sheet: Vec<Section>,
}

/// One class of a contact sheet.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    pub class: String,
    pub photos: usize,
    pub thumbnails: Vec<super::image::Rgb>,
}

/// What a contact sheet is to hold: `per_class` photos of each class, at most `side` pixels long.
#[derive(Debug, Clone, Copy)]
pub struct SheetSize {
    pub per_class: usize,
    pub side: usize,
}

/// A photo of the set.
struct Photo<'a> {
    line: usize,
    label: Option<&'a str>,
    source: &'a ImageSource,
    /// Whether the contact sheet shows it.
    shown: bool,
}

/// Looks at every photo of a set, in parallel; `done` is told how many are through. What cannot be read is listed. Errors: a
/// photo that `spec` brings to no size.
pub fn census(
    file: &Path,
    set: &Dataset,
    spec: &PatchSpec,
    sheet: Option<SheetSize>,
    done: &(dyn Fn(usize) + Sync),
) -> Result<Census> {
    let mut classes: BTreeMap<String, usize> = BTreeMap::new();
    set.samples.iter().filter_map(|s| s.label.as_ref()).for_each(|l| *classes.entry(l.clone()).or_default() += 1);
    let photos = photos(set, &classes, sheet.map_or(0, |s| s.per_class));
    let count = AtomicUsize::new(0);
    let looks: Vec<Result<Look>> = photos
        .par_iter()
        .map(|photo| {
            let seen = look(photo.source, sheet.filter(|_| photo.shown).map(|s| s.side));
            done(count.fetch_add(1, Ordering::Relaxed) + 1);
            seen
        })
        .collect();
    let read: Vec<(&Photo, &Look)> =
        photos.iter().zip(&looks).filter_map(|(p, l)| Some((p, l.as_ref().ok()?))).collect();
    let unread = photos.iter().zip(&looks).filter_map(|(p, l)| Some((p, l.as_ref().err()?)));
    let unread = unread.map(|(p, e)| format!("{}: {e}", at_line(file, p.line)));
    let mut formats: BTreeMap<String, usize> = BTreeMap::new();
    read.iter().for_each(|(_, l)| *formats.entry(l.kind.format.into()).or_default() += 1);
    let tokens = |(p, l): &(&Photo, &Look)| match spec.tokens(l.height, l.width) {
        Ok(n) => Ok(n as u64),
        Err(e) => Err(Error::line(file, p.line, e.to_string())),
    };
    let tokens = read.iter().map(tokens).collect::<Result<Vec<u64>>>()?;
    Ok(Census {
        samples: set.samples.len(),
        photos: photos.len(),
        without_label: set.samples.iter().filter(|s| s.label.is_none()).count(),
        without_photo: set.samples.iter().filter(|s| s.images().next().is_none()).count(),
        width: histogram(read.iter().map(|(_, l)| l.width as u64).collect()),
        height: histogram(read.iter().map(|(_, l)| l.height as u64).collect()),
        tokens: histogram(tokens),
        formats,
        unreadable: set.skipped.iter().map(Error::to_string).chain(unread).collect(),
        odd: read.iter().filter_map(|(p, l)| odd(p, l)).collect(),
        same: same(&read),
        labels: label_oddities(&classes),
        sheet: sections(&classes, &read),
        classes,
    })
}

/// All photos of a set; of each class some, spread evenly, are marked for the contact sheet.
fn photos<'a>(set: &'a Dataset, classes: &BTreeMap<String, usize>, per_class: usize) -> Vec<Photo<'a>> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut photos = Vec::new();
    for sample in &set.samples {
        let label = sample.label.as_deref();
        let n = label.and_then(|l| classes.get(l)).copied().unwrap_or(0);
        let before = label.map_or(0, |l| {
            let seen = seen.entry(l).or_default();
            *seen += 1;
            *seen - 1
        });
        // evenly spread: k of n are shown, where i k / n reaches the next whole number
        let k = per_class.min(n);
        let shown = n > 0 && (before + 1) * k / n > before * k / n;
        for (i, source) in sample.images().enumerate() {
            photos.push(Photo { line: sample.line, label, source, shown: shown && i == 0 });
        }
    }
    photos
}

/// A histogram of up to ten bars; one for each value where these are few. None without values.
fn histogram(mut values: Vec<u64>) -> Option<Histogram> {
    values.sort_unstable();
    let (min, max) = (*values.first()?, *values.last()?);
    let mut distinct = values.clone();
    distinct.dedup();
    let bounds: Vec<(u64, u64)> = if distinct.len() as u64 <= BINS {
        distinct.into_iter().map(|v| (v, v)).collect()
    } else {
        let width = (max - min + 1).div_ceil(BINS);
        let starts = (0..BINS).map(|i| min + i * width).filter(|from| *from <= max);
        starts.map(|from| (from, (from + width - 1).min(max))).collect()
    };
    let n = |(from, to)| Bin { from, to, n: values.iter().filter(|v| (from..=to).contains(*v)).count() };
    Some(Histogram { min, median: values[values.len() / 2], max, bins: bounds.into_iter().map(n).collect() })
}

fn odd(photo: &Photo, look: &Look) -> Option<Odd> {
    let (width, height) = (look.width, look.height);
    let (longer, shorter) = (width.max(height), width.min(height));
    let mut what = Vec::new();
    if longer as f64 > LONG * shorter as f64 {
        what.push(format!("long: {width} x {height}"));
    }
    if shorter < TINY {
        what.push(format!("tiny: {width} x {height}"));
    }
    if width * height > HUGE_PIXELS || look.bytes > HUGE_BYTES {
        what.push(format!("huge: {width} x {height}, {} bytes", look.bytes));
    }
    if look.gray {
        what.push("without colour".into());
    }
    if look.kind.transparent {
        what.push("with transparency, which is shown on white".into());
    }
    (!what.is_empty()).then(|| Odd { line: photo.line, image: photo.source.to_string(), what })
}

fn same(read: &[(&Photo, &Look)]) -> Vec<Same> {
    let mut by_hash: BTreeMap<[u8; 32], Vec<&Photo>> = BTreeMap::new();
    read.iter().for_each(|(p, l)| by_hash.entry(l.sha256).or_default().push(p));
    let mut same: Vec<Same> = by_hash
        .into_values()
        .filter(|photos| photos.len() > 1)
        .map(|photos| {
            let mut labels: Vec<String> = photos.iter().filter_map(|p| p.label.map(String::from)).collect();
            labels.sort();
            labels.dedup();
            Same {
                lines: photos.iter().map(|p| p.line).collect(),
                images: photos.iter().map(|p| p.source.to_string()).collect(),
                labels,
            }
        })
        .collect();
    same.sort_by_key(|s| s.lines.clone());
    same
}

/// Classes with few photos, one class far larger than another, names that differ in dress only.
fn label_oddities(classes: &BTreeMap<String, usize>) -> Vec<String> {
    let mut said = Vec::new();
    // as eval compares them, and by their words
    let (mut one, mut dressed) = (BTreeMap::<String, Vec<&String>>::new(), BTreeMap::<String, Vec<&String>>::new());
    for label in classes.keys() {
        let compared = normalised(label);
        let words: Vec<&str> = compared.split([' ', '\t', '_', '-']).filter(|w| !w.is_empty()).collect();
        dressed.entry(words.join(" ")).or_default().push(label);
        one.entry(compared).or_default().push(label);
    }
    let named = |names: &[&String]| {
        let names: Vec<String> = names.iter().map(|n| format!("{n:?} ({})", classes[*n])).collect();
        names.join(" and ")
    };
    for names in one.values().filter(|names| names.len() > 1) {
        let differ = "differ only in case, in spaces around them or in a final full stop";
        said.push(format!("{} {differ}; vlm eval takes them for one class", named(names)));
    }
    let several = |names: &[&String]| names.iter().any(|name| normalised(name) != normalised(names[0]));
    for names in dressed.values().filter(|names| several(names)) {
        said.push(format!("{} differ only in case or spaces; is it one class?", named(names)));
    }
    for (label, n) in classes.iter().filter(|(_, n)| **n < FEW) {
        said.push(format!("{label:?} has only {}; a score of so few says little", counted(*n, "photo", "photos")));
    }
    if let (Some((large, most)), Some((small, least))) =
        (classes.iter().max_by_key(|(_, n)| **n), classes.iter().min_by_key(|(_, n)| **n))
        && *most > 10 * least
    {
        said.push(format!("{large:?} has {most} photos and {small:?} {least}; accuracy alone hides the small one"));
    }
    said
}

fn sections(classes: &BTreeMap<String, usize>, read: &[(&Photo, &Look)]) -> Vec<Section> {
    let of = |(class, n): (&String, &usize)| Section {
        class: class.clone(),
        photos: *n,
        thumbnails: read
            .iter()
            .filter(|(p, _)| p.label == Some(class.as_str()))
            .filter_map(|(_, l)| l.thumbnail.clone())
            .collect(),
    };
    classes.iter().map(of).filter(|s| !s.thumbnails.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_may_be_one_class_are_said_with_who_takes_them_for_one() {
        let said = |names: &[&str]| label_oddities(&names.iter().map(|name| (name.to_string(), 20)).collect());
        let [one] = &said(&["Dent", "dent", "dent.", "scratch"])[..] else { panic!("one sentence") };
        assert!(one.starts_with("\"Dent\" (20) and \"dent\" (20) and \"dent.\" (20) differ"), "{one}");
        assert!(one.ends_with("; vlm eval takes them for one class"), "{one}");
        let [one] = &said(&["paint chip", "Paint_chip."])[..] else { panic!("one sentence") };
        assert!(one.ends_with(" differ only in case or spaces; is it one class?"), "{one}");
        assert_eq!(said(&["Dent", "dent", "d-ent", "DENT_"]).len(), 2);
        assert!(said(&["dent", "scratch"]).is_empty());
    }
}
