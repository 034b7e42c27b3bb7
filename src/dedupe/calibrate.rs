//! The cosine above which two photos show the same, by this tower and on these photos.
//!
//! Changed copies of some photos are held against all photos, as a leak would be: its own original should be found, all
//! others not. The threshold with the best F1 on one half of the photos is taken; precision and recall are those of the
//! other half, which had no say in it.

use super::embed::{Embedder, Wanted, Watch};
use super::plant::Change;
use super::space::Space;
use crate::base::rng::Stream;
use crate::base::{Error, Result};
use crate::data::messages::ImageSource;
use crate::data::{alike, look};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

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

/// A changed copy.
#[derive(Debug, Clone)]
pub struct Planted {
    /// The original, by its place.
    pub source: usize,
    /// Whether it is of the half that tests, and not of that which chooses.
    pub tests: bool,
    pub change: Change,
    pub embedding: Vec<f32>,
}

/// How many photos to change, and by which random numbers.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub photos: usize,
    pub seed: u64,
}

/// Plants changes into some of `photos`, whose embeddings in `space` are given, and calibrates on them. None: interrupted.
///
/// Photos that look the same already ([`alike`]) are no mistake when they are found, and do not count as one. Errors:
/// fewer than four photos; those of reading them.
pub fn calibrated(
    embedder: &mut Embedder,
    photos: &[&ImageSource],
    (space, embeddings): (&Space, &[Vec<f32>]),
    plan: Plan,
    watch: &mut Watch,
) -> Result<Option<Calibration>> {
    if photos.len() < 4 {
        let said = "a threshold is calibrated on four photos or more; give one with --threshold";
        return Err(Error::Unsupported(said.into()));
    }
    let looks = photos.par_iter().map(|p| look::look(p, None)).collect::<Result<Vec<_>>>()?;
    let prints: Vec<_> = looks.iter().map(|look| look.print.clone()).collect();
    let same: HashSet<(usize, usize)> = alike::pairs(&prints).into_iter().collect();
    // by a random rank that follows from the content: in whatever sets and order they come, it is the same photos
    let rank = |look: &look::Look| {
        let words = look.sha256.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        Stream::new(plan.seed, &std::iter::once(PLANT).chain(words).collect::<Vec<_>>()).bits(0)
    };
    let mut chosen: Vec<usize> = (0..photos.len()).collect();
    chosen.sort_by_key(|i| (rank(&looks[*i]), looks[*i].sha256));
    chosen.dedup_by_key(|i| looks[*i].sha256);
    chosen.truncate(plan.photos.max(4));
    // the halves are of photos, not of copies: a photo's three copies are much alike
    let halves = chosen.iter().enumerate().map(|(at, i)| (*i, at % 2 == 1));
    let wanted: Vec<(usize, bool, Change)> =
        halves.flat_map(|(i, tests)| Change::ALL.map(|change| (i, tests, change))).collect();
    let of = |(i, _, change): &(usize, bool, Change)| Wanted { source: photos[*i], change: Some((*change, plan.seed)) };
    let list: Vec<Wanted> = wanted.iter().map(of).collect();
    let Some(found) = embedder.embed(&list, watch)? else { return Ok(None) };
    let planted = wanted
        .into_iter()
        .zip(found)
        .map(|((source, tests, change), features)| {
            Ok(Planted { source, tests, change, embedding: space.embedding(&features?) })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Some(calibrate(embeddings, &planted, &same)))
}

/// Scores of one half: of copies with their originals, by kind, and of copies with other photos.
#[derive(Default)]
struct Half {
    right: Vec<(Change, f64)>,
    wrong: Vec<f64>,
}

/// The threshold of `planted` against `originals`; `same` are pairs (i < j) of originals that show the same.
pub fn calibrate(originals: &[Vec<f32>], planted: &[Planted], same: &HashSet<(usize, usize)>) -> Calibration {
    let sources: HashSet<usize> = planted.iter().map(|p| p.source).collect();
    let (mut choose, mut test) = (Half::default(), Half::default());
    let scores: Vec<Vec<f64>> =
        planted.par_iter().map(|p| originals.iter().map(|o| cosine(o, &p.embedding)).collect()).collect();
    for (p, scores) in planted.iter().zip(scores) {
        let half = if p.tests { &mut test } else { &mut choose };
        for (i, score) in scores.into_iter().enumerate() {
            if i == p.source {
                half.right.push((p.change, score));
            } else if !same.contains(&(i.min(p.source), i.max(p.source))) {
                half.wrong.push(score);
            }
        }
    }
    let threshold = choose.best();
    let recall_of = |change: Change| {
        let (all, found) = test
            .right
            .iter()
            .filter(|(c, _)| *c == change)
            .fold((0, 0), |(all, found), (_, score)| (all + 1, found + usize::from(*score >= threshold)));
        (change.name(), found as f64 / f64::from(all.max(1)))
    };
    let at = test.point(threshold);
    let mut curve: Vec<Point> = SHOWN.iter().map(|t| test.point(*t)).chain([at]).collect();
    curve.sort_by(|a, b| a.threshold.total_cmp(&b.threshold));
    Calibration {
        threshold,
        photos: sources.len(),
        planted: planted.len(),
        precision: at.precision,
        recall: at.recall,
        recall_of: Change::ALL.into_iter().map(recall_of).collect(),
        curve,
    }
}

impl Half {
    /// The threshold of the best F1, in the middle of the gap below the last score that it takes in.
    fn best(&self) -> f64 {
        let mut scores: Vec<(f64, bool)> = self.right.iter().map(|(_, s)| (*s, true)).collect();
        scores.extend(self.wrong.iter().map(|s| (*s, false)));
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut right, mut taken) = (0, 0);
        let (mut best, mut threshold) = (-1.0, 1.0);
        for (i, (score, is_right)) in scores.iter().enumerate() {
            taken += 1;
            right += usize::from(*is_right);
            let next = scores.get(i + 1).map_or(-1.0, |(next, _)| *next);
            // equal scores are taken together
            let f1 = 2.0 * right as f64 / (taken + self.right.len()) as f64;
            if next < *score && f1 > best {
                (best, threshold) = (f1, (score + next) / 2.0);
            }
        }
        threshold
    }

    fn point(&self, threshold: f64) -> Point {
        let found = self.right.iter().filter(|(_, s)| *s >= threshold).count();
        let wrong = self.wrong.iter().filter(|s| **s >= threshold).count();
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
