//! What each folder or file that a page is made of is, found from what lies in it.

use crate::base::{Error, Result};
use crate::classify::compare::{COMPARISON, Comparison, OnDifferent, compare};
use crate::classify::records::{Evaluation, PREDICTIONS, folder_name};
use crate::data::pairs::{Pair, read_pairs};
use crate::io::folder_kind::SUMMARY;
use crate::io::json;
use crate::train::metrics::{self, Log, LoggedStep};
use crate::train::run_folder;
use crate::train::sweep::{self, board::Outcome};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// All that a page shows.
#[derive(Debug, Default)]
pub struct Sources {
    pub evaluations: Vec<Evaluation>,
    pub runs: Vec<Run>,
    /// Of the first evaluation with the last one, where they have photos in common.
    pub comparison: Option<Comparison>,
    /// Near-duplicates, with the folder that their images are relative to.
    pub leaks: Vec<(PathBuf, Vec<Pair>)>,
    /// What `vlm curve --json` said.
    pub curve: Option<Value>,
    /// The order that evaluations of a folder were put in; why there is no comparison, where one was to be expected.
    pub notes: Vec<String>,
}

/// A training run's log.
#[derive(Debug)]
pub struct Run {
    pub dir: PathBuf,
    pub steps: Vec<Step>,
    /// (step, accuracy) of evaluations on the way.
    pub scores: Vec<(f64, f64)>,
    /// Of all steps.
    pub seconds: f64,
    /// What became of a run that left nothing to use, in words that follow its name.
    pub failure: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub step: f64,
    pub loss: f64,
    pub lr: f64,
}

impl Sources {
    /// What the evaluations are called.
    pub fn evaluation_names(&self) -> Vec<String> {
        names(self.evaluations.iter().map(|e| e.dir.as_path()))
    }

    /// What the runs are called.
    pub fn run_names(&self) -> Vec<String> {
        names(self.runs.iter().map(|r| r.dir.as_path()))
    }

    /// Reads the evaluation, once: a comparison names folders that may be given too.
    fn evaluation(&mut self, dir: &Path) -> Result<()> {
        if !self.evaluations.iter().any(|known| same(&known.dir, dir)) {
            self.evaluations.push(Evaluation::read(dir)?);
        }
        Ok(())
    }
}

/// Reads `paths` in order. Errors: one that is nothing that a page can show, or is broken.
pub fn read(paths: &[PathBuf]) -> Result<Sources> {
    let mut found = Sources::default();
    for path in paths {
        let known = if path.is_dir() { folder(path, &mut found)? } else { file(path, &mut found)? };
        if !known && path.is_dir() {
            folders(path, &mut found)?;
        }
    }
    if found.evaluations.is_empty() && found.runs.is_empty() {
        return Err(Error::Usage("nothing to show: name folders of vlm eval or vlm train".into()));
    }
    if let [first, .., last] = &found.evaluations[..] {
        match compare(first, last, OnDifferent::Intersect) {
            Ok(comparison) => found.comparison = Some(comparison),
            Err(e) => found.notes.push(format!("No comparison: {e}.")),
        }
    }
    Ok(found)
}

/// Reads the folders in `path`. Nobody gave them an order: evaluations of a model that others were trained from come first,
/// the rest as they were written.
fn folders(path: &Path, found: &mut Sources) -> Result<()> {
    let mut inner: Vec<PathBuf> = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .map_err(|e| Error::io("list", path, e))?;
    inner.retain(|p| p.is_dir());
    inner.sort();
    inner.sort_by_key(|dir| {
        [SUMMARY, metrics::FILE, COMPARISON].iter().filter_map(|name| written(&dir.join(name))).min()
    });
    let known = found.evaluations.len();
    let mut any = false;
    for dir in &inner {
        any |= folder(dir, found)?;
    }
    if !any {
        let said = "holds no evaluation, run or comparison, and neither does a folder in it";
        return Err(Error::file(path, said));
    }
    let new = &mut found.evaluations[known..];
    let trained_from: Vec<String> =
        new.iter().filter(|e| e.text("adapter").is_some()).filter_map(|e| e.text("model").map(String::from)).collect();
    let untrained =
        |e: &Evaluation| e.text("adapter").is_none() && trained_from.iter().any(|m| e.text("model") == Some(m));
    new.sort_by_key(|e| (!untrained(e), written(&e.dir.join(SUMMARY))));
    if new.len() > 1 {
        let names: Vec<String> = new.iter().map(Evaluation::name).collect();
        found.notes.push(format!(
            "The evaluations in {} stand in this order: {}. An untrained model comes first, the rest as they were written; \
             name the folders one by one for another order.",
            path.display(),
            names.join(", ")
        ));
    }
    Ok(())
}

/// When the file was last written.
fn written(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|m| m.modified()).ok()
}

/// Whether the folder is of one of the kinds. It can be several: a run that was scored or compared in place. Of a
/// comparison's own predictions nothing is read but through the two evaluations.
fn folder(dir: &Path, found: &mut Sources) -> Result<bool> {
    let compared = dir.join(COMPARISON).exists();
    let mut known = compared;
    if compared {
        // its records are the second evaluation's, tagged: the comparison itself is made again from both
        let about = json::read(&dir.join(COMPARISON))?;
        for side in ["before", "after"] {
            let evaluation = about[side]["dir"].as_str().map(PathBuf::from);
            if let Some(evaluation) = evaluation {
                found.evaluation(&evaluation)?;
            }
        }
    }
    if dir.join(metrics::FILE).exists() || sweep::result_in(dir)?.is_some() {
        found.runs.push(run(dir)?);
        known = true;
    }
    if !compared && dir.join(PREDICTIONS).exists() {
        found.evaluation(dir)?;
        known = true;
    }
    Ok(known)
}

/// What a person would call the folders: by their names, or the whole path where two have one name.
fn names<'a>(folders: impl Iterator<Item = &'a Path>) -> Vec<String> {
    let folders: Vec<(&Path, String)> = folders.map(|dir| (dir, folder_name(dir))).collect();
    let name = |(dir, plain): &(&Path, String)| match folders.iter().filter(|(_, other)| other == plain).count() {
        1 => plain.clone(),
        _ => dir.display().to_string(),
    };
    folders.iter().map(name).collect()
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// A file of pairs (JSONL) or of a curve (JSON).
fn file(path: &Path, found: &mut Sources) -> Result<bool> {
    if path.extension().is_some_and(|e| e == "jsonl") {
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        found.leaks.push((folder, read_pairs(path)?));
        return Ok(true);
    }
    let value = json::read(path)?;
    if value.get("sizes").is_none() {
        return Err(Error::file(path, "is neither a file of pairs (.jsonl) nor what vlm curve --json prints"));
    }
    found.curve = Some(value);
    Ok(true)
}

fn run(dir: &Path) -> Result<Run> {
    // a trial may have failed before it was a run
    let log = if dir.join(metrics::FILE).exists() { metrics::read(dir)? } else { Log::default() };
    let step = |s: &LoggedStep| Step { step: s.step as f64, loss: s.loss, lr: s.lr };
    Ok(Run {
        dir: dir.into(),
        steps: log.steps.iter().map(step).collect(),
        scores: log.evaluations.iter().map(|e| (e.step as f64, e.accuracy)).collect(),
        seconds: log.steps.iter().map(|s| s.seconds).sum(),
        failure: failure(dir)?,
    })
}

/// A trial of a sweep says why it failed, a run of its own does too. One that was killed says nothing of it, and only that
/// which it leaves at its end is missing.
fn failure(dir: &Path) -> Result<Option<String>> {
    let reason = match sweep::result_in(dir)?.map(|row| row.outcome) {
        Some(Outcome::Failed { reason, .. }) => Some(reason),
        Some(Outcome::Done { .. }) => return Ok(None),
        None => run_folder::failure(dir),
    };
    let unfinished = || "has left neither an adapter nor a model: it was killed, or has not ended".into();
    Ok(match reason {
        Some(reason) => Some(format!("failed: {reason}")),
        None => (!run_folder::has_result(dir)).then(unfinished),
    })
}
