//! What an evaluation leaves behind: a [`Record`] per photo in predictions.jsonl, and summary.json.

use super::metrics::Metrics;
use crate::base::{Error, Result};
use crate::data::paths;
use crate::io::folder_kind::{self, SUMMARY, Wanted};
use crate::io::json;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

pub const PREDICTIONS: &str = "predictions.jsonl";

/// Tags of answers that the model has not ended itself, by which summary.json has their numbers, too: the server refused
/// the question; the answer reached the most tokens that it may have; a server's filter stopped it.
pub const REFUSED: &str = "refused";
pub const CUT_OFF: &str = "cut_off";
pub const FILTERED: &str = "content_filter";
pub const UNENDED: [&str; 3] = [REFUSED, CUT_OFF, FILTERED];

/// One line of predictions.jsonl.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The line of the data file, from 1.
    pub line: usize,
    /// The photo; where a line has several, the first. Relative to the file that this stands in. Absent where the
    /// question has no picture; `data:` and a fingerprint where the picture stands in the data file itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// All of them, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    pub label: String,
    pub prediction: String,
    pub right: bool,
    /// Each choice's probability; with several labels a photo, that of being named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probabilities: Option<BTreeMap<String, f64>>,
    /// What was written, where it was generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The label and the prediction one by one, where a photo can have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictions: Option<Vec<String>>,
    /// Of an endpoint: what this answer cost in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What another model said, in the records that a comparison writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Words to filter by: [`REFUSED`], [`CUT_OFF`], [`FILTERED`], a comparison's `fixed`, `broken`, `both_right`,
    /// `both_wrong`, or anything.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// Tokens that an endpoint counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    #[serde(default)]
    pub prompt_tokens: u64,
    #[serde(default)]
    pub completion_tokens: u64,
}

impl Record {
    pub fn tagged(&self, tag: &str) -> bool {
        self.tags.iter().any(|t| t == tag)
    }

    pub fn images(&self) -> Vec<&str> {
        match (&self.image, &self.images[..]) {
            (None, _) => Vec::new(),
            (Some(one), []) => vec![one],
            (_, all) => all.iter().map(String::as_str).collect(),
        }
    }

    pub fn set_images(&mut self, images: Vec<String>) {
        self.image = images.first().cloned();
        self.images = if images.len() > 1 { images } else { Vec::new() };
    }
}

/// A folder that `vlm eval` has filled.
#[derive(Debug, Clone)]
pub struct Evaluation {
    pub dir: PathBuf,
    /// By line of the data file; pictures as seen from `dir`.
    pub records: Vec<Record>,
    /// summary.json as it is.
    pub summary: Map<String, Value>,
    pub metrics: Metrics,
}

impl Evaluation {
    /// Errors: as of [`summary`]; files that are none of ours.
    pub fn read(dir: &Path) -> Result<Evaluation> {
        let summary = summary(dir)?;
        let metrics = serde_json::from_value(summary.get("metrics").cloned().unwrap_or(Value::Null));
        let metrics = metrics.map_err(|e| Error::file(dir.join(SUMMARY), format!("metrics: {e}")))?;
        Ok(Evaluation { records: read(&dir.join(PREDICTIONS))?, dir: dir.into(), summary, metrics })
    }

    /// What a person would call it: the folder's name.
    pub fn name(&self) -> String {
        folder_name(&self.dir)
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.summary.get(key).and_then(Value::as_str)
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.summary.get(key).and_then(Value::as_f64)
    }

    /// The file that a picture's name in these records stands for; None for one that is no file.
    pub fn path(&self, image: &str) -> Option<PathBuf> {
        (!image.starts_with("data:")).then(|| plain(&self.dir.join(image)))
    }
}

/// The summary.json of a folder that `vlm eval` has filled. Errors: no such folder, no finished evaluation in it, no JSON
/// object.
pub fn summary(dir: &Path) -> Result<Map<String, Value>> {
    let file = dir.join(SUMMARY);
    let unfinished = dir.join(PREDICTIONS).exists();
    if !unfinished {
        folder_kind::check(dir, Wanted::Evaluation)?;
    }
    json::read_object_if_there(&file)?.ok_or_else(|| {
        let said = match (dir.is_dir(), unfinished) {
            (false, _) => "there is no such folder; wanted one that vlm eval has filled",
            (true, true) => "holds an unfinished evaluation; the same vlm eval with --resume finishes it",
            (true, false) => "holds no summary.json; wanted a folder that vlm eval has filled",
        };
        Error::file(dir, said)
    })
}

/// What an evaluation cost by its summary: dollars, as `show` writes them, and "at least" where an endpoint did not count the
/// tokens of every answer. None where no price was given.
pub fn dollars(summary: &Map<String, Value>, show: impl Fn(f64) -> String) -> Option<String> {
    let dollars = show(summary.get("dollars")?.as_f64()?);
    let least = summary.get("dollars_are_incomplete").and_then(Value::as_bool) == Some(true);
    Some(if least { format!("at least {dollars}") } else { dollars })
}

/// What a person would call a folder: its name, which `.` does not say.
pub fn folder_name(dir: &Path) -> String {
    let canonical = dir.canonicalize().unwrap_or_else(|_| dir.into());
    canonical.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// The records of a predictions.jsonl, by line of the data file.
pub fn read(file: &Path) -> Result<Vec<Record>> {
    let mut records: Vec<Record> = json::read_lines(file)?;
    records.sort_by_key(|r| r.line);
    Ok(records)
}

/// A photo's path as it is written into a file in `folder` (canonical): relative to it, unless the two share nothing but
/// the root. What is no file (a picture inside the data) stays as it is. Errors: the path is not UTF-8.
pub fn written(image: &Path, folder: &Path) -> Result<String> {
    let inside = image.as_os_str().as_encoded_bytes().starts_with(b"data:");
    match image.canonicalize() {
        Ok(path) if !inside => paths::text(&paths::relative(&path, folder)),
        _ => paths::text(image),
    }
}

/// The path without what `..` takes back, as the file system has it where it can be asked.
pub fn plain(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| {
        let mut plain = PathBuf::new();
        for part in path.components() {
            match part {
                Component::ParentDir if plain.file_name().is_some() => _ = plain.pop(),
                Component::CurDir => (),
                part => plain.push(part),
            }
        }
        plain
    })
}
