//! The cosine above which two photos show the same, by this tower and on these photos.
//!
//! Changed copies of some photos are held against all photos, as a leak would be: its own original should be found, all
//! others not. A pair is found by its cosine or its pixels. The threshold with the best F1 on one half of the photos is
//! taken, the lowest where several have it; precision and recall are those of the other half, which had no say in it.

use super::embed::{Embedder, Wanted, Watch};
use super::plant::Change;
use super::space::Space;
use crate::base::rng::Stream;
use crate::base::{Error, Result};
use crate::data::alike::{self, Print};
use crate::data::look::Look;
use crate::data::messages::ImageSource;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Keeps these random numbers apart from others of the same seed.
const PLANT: u64 = 0x706c_616e;
/// Thresholds that are shown beside the chosen one.
const SHOWN: [f64; 8] = [0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999];

/// What a threshold finds, of the half that was kept for testing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    pub threshold: f64,
    /// Absent where nothing is found.
    pub precision: Option<f64>,
    pub recall: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    pub threshold: f64,
    /// Photos that were changed, half of which were kept for testing.
    pub photos: usize,
    /// Changed copies.
    pub planted: usize,
    pub precision: Option<f64>,
    pub recall: f64,
    /// Recall by the kind of change.
    pub recall_of: BTreeMap<&'static str, f64>,
    /// Other thresholds, ascending.
    pub curve: Vec<Point>,
}

impl Calibration {
    /// The best of the other thresholds, the lowest where several are: by a hundredth or more better in precision or recall than
    /// the chosen one, and worse in neither. The half that chooses may have no pair as near as the nearest wrong ones of the half
    /// that tests; to choose by those would leave nothing to test it by, so that it is said and not done.
    pub fn better(&self) -> Option<&Point> {
        let precision = self.precision?;
        let gain = |p: &Point| Some((p.precision? - precision, p.recall - self.recall));
        let is_better = |p: &Point| gain(p).is_some_and(|(a, b)| a.min(b) >= 0.0 && a.max(b) >= 0.01);
        let sum = |p: &Point| p.precision.unwrap_or(0.0) + p.recall;
        // of equal ones max_by takes the last
        self.curve.iter().rev().filter(|p| is_better(p)).max_by(|a, b| sum(a).total_cmp(&sum(b)))
    }
}

/// A changed copy.
#[derive(Debug, Clone)]
pub struct Planted {
    /// The original, by its place.
    pub source: usize,
    /// Whether it is of the half that tests, and not of that which chooses.
    pub tests: bool,
    pub change: Change,
    pub embedding: Vec<f32>,
    /// The originals that its pixels are like, by their places.
    pub like: BTreeSet<usize>,
}

/// What is known of the photos.
#[derive(Clone, Copy)]
pub struct Photos<'a> {
    pub sources: &'a [&'a ImageSource],
    pub looks: &'a [Look],
    /// Pairs (i < j) whose pixels are alike.
    pub same: &'a BTreeSet<(usize, usize)>,
    pub space: &'a Space,
    pub embeddings: &'a [Vec<f32>],
}

/// How many photos to change, and by which random numbers.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub photos: usize,
    pub seed: u64,
}

/// Plants changes into some of the photos and calibrates on them. None: interrupted.
///
/// Photos that look the same already ([`alike`]) are no mistake when they are found, and do not count as one. Errors:
/// fewer than four photos that differ, or too few that look different; those of reading them.
pub fn calibrated(
    embedder: &mut Embedder,
    photos: Photos,
    plan: Plan,
    watch: &mut Watch,
) -> Result<Option<Calibration>> {
    let Photos { sources, looks, same, space, embeddings } = photos;
    // by a random rank that follows from the content: in whatever sets and order they come, it is the same photos
    let rank = |look: &Look| {
        let words = look.sha256.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        Stream::new(plan.seed, &std::iter::once(PLANT).chain(words).collect::<Vec<_>>()).bits(0)
    };
    let mut chosen: Vec<usize> = (0..sources.len()).collect();
    chosen.sort_by_key(|i| (rank(&looks[*i]), looks[*i].sha256));
    chosen.dedup_by_key(|i| looks[*i].sha256);
    if chosen.len() < 4 {
        let said = "a threshold is calibrated on four different photos or more; give one with --threshold";
        return Err(Error::Unsupported(said.into()));
    }
    chosen.truncate(plan.photos.max(4));
    // the halves are of photos, not of copies: a photo's three copies are much alike
    let halves = chosen.iter().enumerate().map(|(at, i)| (*i, at % 2 == 1));
    let wanted: Vec<(usize, bool, Change)> =
        halves.flat_map(|(i, tests)| Change::ALL.map(|change| (i, tests, change))).collect();
    let of =
        |(i, _, change): &(usize, bool, Change)| Wanted { source: sources[*i], change: Some((*change, plan.seed)) };
    let list: Vec<Wanted> = wanted.iter().map(of).collect();
    let Some(found) = embedder.embed(&list, watch)? else { return Ok(None) };
    let copies = list.par_iter().map(|w| Ok(Print::of(&w.load()?))).collect::<Result<Vec<_>>>()?;
    let prints: Vec<&Print> = looks.iter().map(|look| &look.print).collect();
    let like = alike::pairs_between(&copies.iter().collect::<Vec<_>>(), &prints);
    let planted = wanted
        .into_iter()
        .zip(found)
        .enumerate()
        .map(|(at, ((source, tests, change), features))| {
            let like = like.range((at, 0)..(at + 1, 0)).map(|(_, i)| *i).collect();
            Ok(Planted { source, tests, change, embedding: space.embedding(&features?), like })
        })
        .collect::<Result<Vec<_>>>()?;
    calibrate(embeddings, &planted, same).map(Some)
}

/// A copy and a photo.
struct Scored {
    change: Change,
    cosine: f64,
    by_pixels: bool,
}

impl Scored {
    fn is_found(&self, threshold: f64) -> bool {
        self.by_pixels || self.cosine >= threshold
    }
}

/// One half: copies with their originals, and with other photos.
#[derive(Default)]
struct Half {
    right: Vec<Scored>,
    wrong: Vec<Scored>,
}

/// The threshold of `planted` against `originals`; `same` are pairs (i < j) of originals that show the same. Errors: so do
/// all of a half, and there is nothing that a copy has to be told from.
pub fn calibrate(originals: &[Vec<f32>], planted: &[Planted], same: &BTreeSet<(usize, usize)>) -> Result<Calibration> {
    let sources: HashSet<usize> = planted.iter().map(|p| p.source).collect();
    let (mut choose, mut test) = (Half::default(), Half::default());
    let scores: Vec<Vec<f64>> =
        planted.par_iter().map(|p| originals.iter().map(|o| cosine(o, &p.embedding)).collect()).collect();
    for (p, scores) in planted.iter().zip(scores) {
        let half = if p.tests { &mut test } else { &mut choose };
        for (i, cosine) in scores.into_iter().enumerate() {
            let scored = Scored { change: p.change, cosine, by_pixels: p.like.contains(&i) };
            if i == p.source {
                half.right.push(scored);
            } else if !same.contains(&(i.min(p.source), i.max(p.source))) {
                half.wrong.push(scored);
            }
        }
    }
    if choose.wrong.is_empty() || test.wrong.is_empty() {
        let said = "too many of the photos look the same to calibrate a threshold on them; give one with --threshold";
        return Err(Error::Unsupported(said.into()));
    }
    let threshold = choose.best();
    let recall_of = |change: Change| {
        let of_kind = || test.right.iter().filter(|s| s.change == change);
        let found = of_kind().filter(|s| s.is_found(threshold)).count();
        (change.name(), found as f64 / of_kind().count().max(1) as f64)
    };
    let at = test.point(threshold);
    let mut curve: Vec<Point> = SHOWN.iter().map(|t| test.point(*t)).chain([at]).collect();
    curve.sort_by(|a, b| a.threshold.total_cmp(&b.threshold));
    Ok(Calibration {
        threshold,
        photos: sources.len(),
        planted: planted.len(),
        precision: at.precision,
        recall: at.recall,
        recall_of: Change::ALL.into_iter().map(recall_of).collect(),
        curve,
    })
}

impl Half {
    /// The threshold of the best F1, in the middle of the gap below the last score that it takes in. Copies that pixels find
    /// are found at any: they neither ask for a lower one nor for a higher, so that it comes down until it would find what is
    /// wrong, and photos of one thing that pixels do not tell are found as far as that allows.
    fn best(&self) -> f64 {
        let by_pixels = |scored: &[Scored]| scored.iter().filter(|s| s.by_pixels).count();
        let mut right = by_pixels(&self.right);
        let mut taken = right + by_pixels(&self.wrong);
        let mut scores: Vec<(&Scored, bool)> = self.right.iter().map(|s| (s, true)).collect();
        scores.extend(self.wrong.iter().map(|s| (s, false)));
        scores.sort_by(|a, b| b.0.cosine.total_cmp(&a.0.cosine));
        let (mut best, mut threshold) = (-1.0, 1.0);
        for (i, (scored, is_right)) in scores.iter().enumerate() {
            taken += usize::from(!scored.by_pixels);
            right += usize::from(*is_right && !scored.by_pixels);
            let (score, next) = (scored.cosine, scores.get(i + 1).map_or(-1.0, |(next, _)| next.cosine));
            // equal scores are taken together
            let f1 = 2.0 * right as f64 / (taken + self.right.len()) as f64;
            if next < score && f1 >= best {
                (best, threshold) = (f1, (score + next) / 2.0);
            }
        }
        threshold
    }

    fn point(&self, threshold: f64) -> Point {
        let found = self.right.iter().filter(|s| s.is_found(threshold)).count();
        let wrong = self.wrong.iter().filter(|s| s.is_found(threshold)).count();
        Point {
            threshold,
            precision: (found + wrong > 0).then(|| found as f64 / (found + wrong) as f64),
            recall: found as f64 / self.right.len().max(1) as f64,
        }
    }
}

/// Of two embeddings of length 1.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    // rounding may take it beyond
    alike::dot(a, b).clamp(-1.0, 1.0)
}
