//! Pairs of photos that show the same, and the sets without what leaks from one into another.
//!
//! Sets have an order: what an earlier one holds (train) may not be in a later one (validation, test), and goes from the
//! later. Start at [`search`], which does all of it; [`find`] is the part without a model.

use super::calibrate::{Calibration, Photos, Plan, calibrated, cosine};
use super::embed::{Embedder, Wanted, Watch};
use super::space::Space;
use crate::base::{Error, Result};
use crate::data::dataset::{Dataset, OnBad, read_dataset};
use crate::data::messages::ImageSource;
use crate::data::pairs::{self, Member, Pair};
use crate::data::paths;
use crate::data::rewrite::Lines;
use crate::data::whole;
use crate::data::{alike, look};
use crate::io::{atomic, json};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The names of what is written into a folder, besides the cleaned sets.
pub const PAIRS: &str = "pairs.jsonl";
pub const SUMMARY: &str = "summary.json";

/// A dataset that takes part.
#[derive(Debug)]
pub struct Set {
    /// Of its file, without folder and ending.
    pub name: String,
    pub file: PathBuf,
    pub data: Dataset,
}

/// Opens the sets, in the order in which they keep their photos: those named train first, then those named val or dev,
/// then the others. Errors: those of reading; two files of one name.
pub fn open(files: &[PathBuf], on_bad: OnBad) -> Result<Vec<Set>> {
    let mut sets = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if sets.iter().any(|s: &Set| s.name == name) {
            let said =
                format!("two of the sets are named {name}, and their cleaned ones would be one file; rename one");
            return Err(Error::Usage(said));
        }
        sets.push(Set { name, file: file.clone(), data: read_dataset(file, Some(""), on_bad)? });
    }
    sets.sort_by_key(|set| {
        let name = set.name.to_lowercase();
        let is = |part: &str| name.contains(part);
        if is("train") {
            0
        } else if is("val") || is("dev") {
            1
        } else {
            2
        }
    });
    Ok(sets)
}

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// None: calibrated.
    pub threshold: Option<f64>,
    pub plan: Plan,
    /// Of photos that show the same within a set, leave only the first too.
    pub within: bool,
    /// What a photo that cannot be read is.
    pub on_bad: OnBad,
}

/// One photo of a set.
#[derive(Debug, Clone, Copy)]
pub struct Photo<'a> {
    /// By its place among the sets, and among the set's samples.
    pub set: usize,
    pub sample: usize,
    pub source: &'a ImageSource,
}

/// A set's share of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cleaned {
    pub name: String,
    /// Those that could be read, line and photos.
    pub samples: usize,
    /// For what they show.
    pub removed: usize,
    /// The others, which are left out.
    pub skipped: usize,
}

#[derive(Debug)]
pub struct Outcome {
    pub threshold: f64,
    pub calibration: Option<Calibration>,
    /// Most alike first.
    pub pairs: Vec<Pair>,
    pub sets: Vec<Cleaned>,
    /// Whether each set is written without what has to go.
    pub cleaned: bool,
    /// Photos that are in a pair.
    pub photos: usize,
    /// Per set and sample: whether it has to go, for whatever reason.
    pub removed: Vec<Vec<bool>>,
    /// Samples with a photo that could not be read: what is wrong with the first.
    pub damaged: Vec<Error>,
}

impl Outcome {
    /// Pairs of photos of two sets.
    pub fn crossing(&self) -> usize {
        self.pairs.iter().filter(|p| p.crosses()).count()
    }
}

/// Embeds every photo of `sets`, calibrates where no threshold is given, and finds the pairs; image paths in them are
/// relative to `out`, which is canonical. None: interrupted.
pub fn search(
    sets: &[Set],
    embedder: &mut Embedder,
    options: &Options,
    out: &Path,
    watch: &mut Watch,
) -> Result<Option<Outcome>> {
    let all: Vec<Photo> = photos(sets);
    let images = all.iter().map(|p| image(p.source, out)).collect::<Result<Vec<_>>>()?;
    let wanted: Vec<Wanted> = all.iter().map(|p| Wanted { source: p.source, change: None }).collect();
    let Some(found) = embedder.embed(&wanted, watch)? else { return Ok(None) };
    let damaged = damaged(sets, &all, &found, options.on_bad)?;
    let (mut photos, mut names, mut features) = (Vec::new(), Vec::new(), Vec::new());
    for ((photo, name), found) in all.into_iter().zip(images).zip(found) {
        // of a sample that is left out no other photo takes part either
        if let (Ok(found), false) = (found, damaged.contains_key(&(photo.set, photo.sample))) {
            photos.push(photo);
            names.push(name);
            features.push(found);
        }
    }
    let space = Space::of(&features);
    let embeddings: Vec<Vec<f32>> = features.par_iter().map(|of| space.embedding(of)).collect();
    let sources: Vec<&ImageSource> = photos.iter().map(|p| p.source).collect();
    let looks = sources.par_iter().map(|source| look::look(source, None)).collect::<Result<Vec<_>>>()?;
    let same = alike::pairs(&looks.iter().map(|look| &look.print).collect::<Vec<_>>());
    let known = Photos { sources: &sources, looks: &looks, same: &same, space: &space, embeddings: &embeddings };
    let calibration = match options.threshold {
        Some(_) => None,
        None => match calibrated(embedder, known, options.plan, watch)? {
            None => return Ok(None),
            calibration => calibration,
        },
    };
    let threshold = options.threshold.or(calibration.as_ref().map(|c| c.threshold)).unwrap_or(1.0);
    let (close, mut removed) = find(sets, &photos, (&embeddings, threshold), &same, options.within);
    let members: BTreeSet<usize> = close.iter().flat_map(|pair| [pair.a, pair.b]).collect();
    let member = |i: usize| {
        let Photo { set, sample, .. } = photos[i];
        let of = &sets[set].data.samples[sample];
        Member { set: sets[set].name.clone(), line: of.line, image: names[i].clone(), label: of.label.clone() }
    };
    let pair = |pair: &Alike| {
        let Alike { a, b, cosine, by_pixels } = *pair;
        let removed = removed[photos[b].set][photos[b].sample];
        Pair { cosine, by_pixels, a: member(a), b: member(b), removed }
    };
    let cleaned = |(i, set): (usize, &Set)| {
        let damaged = damaged.keys().filter(|(of, _)| *of == i).count();
        Cleaned {
            name: set.name.clone(),
            samples: set.data.samples.len() - damaged,
            removed: removed[i].iter().filter(|r| **r).count(),
            skipped: set.data.skipped.len() + damaged,
        }
    };
    let (pairs, of_sets) = (close.iter().map(pair).collect(), sets.iter().enumerate().map(cleaned).collect());
    damaged.keys().for_each(|(set, sample)| removed[*set][*sample] = true);
    let damaged = damaged.into_values().collect();
    let (cleaned, photos) = (cleans(sets, options.within), members.len());
    Ok(Some(Outcome { threshold, pairs, sets: of_sets, cleaned, photos, calibration, removed, damaged }))
}

/// What a photo is called in the pairs.
fn image(source: &ImageSource, out: &Path) -> Result<String> {
    match source {
        ImageSource::File(path) => {
            let whole = path.canonicalize().map_err(|e| Error::io("find", path, e))?;
            paths::text(&paths::relative(&whole, out))
        }
        ImageSource::Bytes { name, .. } => Ok(name.clone()),
    }
}

/// Samples, by set and place in it, with a photo that was not `found`, and what is wrong with the first. Errors: where none
/// is left out, the first of all; a set that nothing is left of.
fn damaged(
    sets: &[Set],
    photos: &[Photo],
    found: &[Result<Vec<f32>>],
    on_bad: OnBad,
) -> Result<BTreeMap<(usize, usize), Error>> {
    let mut damaged = BTreeMap::new();
    for (photo, found) in photos.iter().zip(found) {
        let Err(e) = found else { continue };
        let set = &sets[photo.set];
        let line = set.data.samples[photo.sample].line;
        if on_bad == OnBad::Fail {
            return whole::refused(&set.file, line, e);
        }
        damaged.entry((photo.set, photo.sample)).or_insert_with(|| Error::line(&set.file, line, e.to_string()));
    }
    for (i, set) in sets.iter().enumerate() {
        let (all, mut here) = (set.data.samples.len(), damaged.range((i, 0)..(i + 1, 0)).map(|(_, e)| e));
        if let Some(first) = here.next()
            && here.count() + 1 == all
        {
            return Err(whole::none_left(&set.file, all, first));
        }
    }
    Ok(damaged)
}

/// Every photo of the sets, in order.
pub fn photos(sets: &[Set]) -> Vec<Photo<'_>> {
    let mut all = Vec::new();
    for (set, s) in sets.iter().enumerate() {
        for (sample, of) in s.data.samples.iter().enumerate() {
            all.extend(of.images().map(|source| Photo { set, sample, source }));
        }
    }
    all
}

/// Two photos, by their places, that show the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alike {
    pub a: usize,
    pub b: usize,
    pub cosine: f64,
    pub by_pixels: bool,
}

/// Pairs of photos whose embeddings' cosine is at or above the threshold or which are among the `same`, most alike first, and
/// per set and sample whether it goes: a photo that shows what a photo of an earlier set shows that stays (with `within`, of
/// its own set too).
pub fn find(
    sets: &[Set],
    photos: &[Photo],
    (embeddings, threshold): (&[Vec<f32>], f64),
    same: &BTreeSet<(usize, usize)>,
    within: bool,
) -> (Vec<Alike>, Vec<Vec<bool>>) {
    let of = |a: usize| {
        let other = move |b: &usize| (photos[*b].set, photos[*b].sample) != (photos[a].set, photos[a].sample);
        let scored = (a + 1..photos.len()).filter(other).map(move |b| {
            let cosine = cosine(&embeddings[a], &embeddings[b]);
            Alike { a, b, cosine, by_pixels: same.contains(&(a, b)) }
        });
        scored.filter(move |pair| pair.by_pixels || pair.cosine >= threshold)
    };
    let mut close: Vec<Alike> = (0..photos.len()).into_par_iter().flat_map_iter(of).collect();
    let mut removed: Vec<Vec<bool>> = sets.iter().map(|s| vec![false; s.data.samples.len()]).collect();
    // photos are in the order of the sets: when a pair's second is judged, its first has been
    close.sort_by_key(|pair| (pair.b, pair.a));
    for pair in &close {
        let (a, b) = (photos[pair.a], photos[pair.b]);
        if (a.set != b.set || within) && !removed[a.set][a.sample] {
            removed[b.set][b.sample] = true;
        }
    }
    close.sort_by(|p, q| {
        q.by_pixels.cmp(&p.by_pixels).then(q.cosine.total_cmp(&p.cosine)).then((p.a, p.b).cmp(&(q.a, q.b)))
    });
    (close, removed)
}

/// Every file that [`write`] writes or removes: none of them may be one that was read.
pub fn files(sets: &[Set], within: bool, out: &Path) -> Vec<PathBuf> {
    let cleaned = sets.iter().filter(|_| cleans(sets, within)).map(|set| cleaned_file(&set.name, out));
    [PAIRS, SUMMARY].map(|name| out.join(name)).into_iter().chain(cleaned).chain(earlier(out)).collect()
}

/// The cleaned sets of the result in `out`, as its summary names them; none where there is none, or where it is not ours.
fn earlier(out: &Path) -> Vec<PathBuf> {
    let summary = json::read(&out.join(SUMMARY)).unwrap_or_default();
    if summary["cleaned"] != true {
        return Vec::new();
    }
    let names = summary["sets"].as_array().into_iter().flatten().filter_map(|set| set["name"].as_str());
    // a set's name is that of a file, whatever somebody wrote there
    names.filter(|name| !name.contains('/')).map(|name| cleaned_file(name, out)).filter(|file| file.exists()).collect()
}

/// Whether there is anything that a set can be cleaned of: another one, or photos of its own.
fn cleans(sets: &[Set], within: bool) -> bool {
    sets.len() > 1 || within
}

fn cleaned_file(name: &str, out: &Path) -> PathBuf {
    out.join(format!("{name}.jsonl"))
}

/// Writes [`files`]: the pairs, the summary, and, where there are several sets or photos were to go from one, each without
/// what has to go. Those of an earlier result go. `out` is canonical.
pub fn write(sets: &[Set], outcome: &Outcome, out: &Path) -> Result<()> {
    let pairs: String = outcome.pairs.iter().map(|pair| pairs::line(pair) + "\n").collect();
    let summary = serde_json::to_string_pretty(&summary(outcome)).unwrap_or_default();
    let mut files = vec![(out.join(PAIRS), Some(pairs)), (out.join(SUMMARY), Some(summary))];
    if outcome.cleaned {
        for (set, removed) in sets.iter().zip(&outcome.removed) {
            let lines = Lines::read(&set.file)?;
            let kept = set.data.samples.iter().zip(removed).filter(|(_, removed)| !**removed);
            let text = kept.map(|(s, _)| Ok(lines.moved(s.line, out)? + "\n")).collect::<Result<String>>()?;
            files.push((cleaned_file(&set.name, out), Some(text)));
        }
    }
    let old: Vec<PathBuf> = earlier(out).into_iter().filter(|old| files.iter().all(|(new, _)| new != old)).collect();
    files.extend(old.into_iter().map(|old| (old, None)));
    // a cleaned set beside an earlier result's others could hold what they do
    atomic::write_together(&files)
}

/// What was found, as one object.
pub fn summary(outcome: &Outcome) -> serde_json::Value {
    serde_json::json!({
        "threshold": outcome.threshold,
        "calibration": outcome.calibration,
        "pairs": outcome.pairs.len(),
        "pairs_by_pixels": outcome.pairs.iter().filter(|p| p.by_pixels).count(),
        "pairs_across_sets": outcome.crossing(),
        "photos_in_pairs": outcome.photos,
        "sets": outcome.sets,
        "cleaned": outcome.cleaned,
        "skipped": outcome.sets.iter().map(|set| set.skipped).sum::<usize>(),
    })
}
