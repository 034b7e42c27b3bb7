//! Near-duplicates as records, an object a line: what finding them writes, and what pages and splits read.

use super::messages::json_error;
use crate::base::{Error, Result, input};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::path::Path;

/// A photo of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The name of the set's file, without folder and ending: `train`.
    pub set: String,
    /// Of that file, from 1.
    pub line: usize,
    /// Relative to the folder of the file of pairs, or absolute.
    pub image: String,
    #[serde(default)]
    pub label: Option<String>,
}

/// Two photos that show the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Of their embeddings.
    pub cosine: f64,
    /// Whether their pixels tell: they are one picture, or one is a part of the other. Not in older files.
    #[serde(default)]
    pub by_pixels: bool,
    /// Of the set that comes first, or in the same set the earlier line.
    pub a: Member,
    pub b: Member,
    /// Whether `b` was left out of its cleaned set.
    pub removed: bool,
}

impl Pair {
    /// Whether the photos are of two sets: what one learns from, the other is asked.
    pub fn crosses(&self) -> bool {
        self.a.set != self.b.set
    }

    /// How near to each other these two are beside the two of `other`: what pixels tell comes before any cosine.
    pub fn nearer(&self, other: &Pair) -> Ordering {
        self.by_pixels.cmp(&other.by_pixels).then(self.cosine.total_cmp(&other.cosine))
    }
}

/// The line of a pair.
pub fn line(pair: &Pair) -> String {
    // no number in it is infinite, so it can be written
    serde_json::to_string(pair).unwrap_or_default()
}

/// Reads a file of pairs. Errors name file and line.
pub fn read_pairs(file: &Path) -> Result<Vec<Pair>> {
    let text = input::read_text(file)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let pair = |(i, line): (usize, &str)| {
        let said = |e| format!("is no pair of photos as vlm data dedupe writes them: {}", json_error(&e));
        serde_json::from_str(line).map_err(|e| Error::line(file, i + 1, said(e)))
    };
    lines.map(pair).collect()
}
