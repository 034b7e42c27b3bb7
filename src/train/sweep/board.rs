//! Results of trials, best first.

use crate::base::{Error, Result};
use crate::classify::statistics::wilson;
use crate::io::atomic;
use crate::io::folder_kind::LEADERBOARD;
use crate::train::metrics::{self, LoggedEvaluation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The files of a board.
pub const CSV: &str = "leaderboard.csv";

/// How a trial ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Outcome {
    Done {
        /// On the validation set, at the best evaluation.
        accuracy: f64,
        interval: [f64; 2],
        correct: u64,
        samples: u64,
        /// Of that evaluation.
        step: u64,
        /// Of that evaluation; trials of older programs did not say it.
        eval_loss: Option<f64>,
        /// Steps in all, and the loss of the last.
        steps: u64,
        loss: Option<f64>,
        /// Of all steps and evaluations, resumed ones too.
        seconds: f64,
    },
    Failed {
        reason: String,
        /// For want of memory, of which there may be more another time.
        #[serde(default)]
        out_of_memory: bool,
    },
}

impl Outcome {
    /// Of a run that is done. Errors: its metrics.jsonl cannot be read, or has no evaluation.
    pub fn of(run: &Path, steps: u64, loss: Option<f64>) -> Result<Outcome> {
        let log = metrics::read(run)?;
        let best = log.evaluations.iter().reduce(|best, e| if e.is_better_than(best) { e } else { best });
        let best = best.ok_or_else(|| Error::file(run.join(metrics::FILE), "holds no evaluation"))?;
        let LoggedEvaluation { step, correct, samples, loss: eval_loss, .. } = *best;
        let steps_took: f64 = log.steps.iter().map(|s| s.seconds).sum();
        let seconds = steps_took + log.evaluations.iter().map(|e| e.seconds).sum::<f64>();
        Ok(Outcome::Done {
            accuracy: correct as f64 / samples.max(1) as f64,
            interval: wilson(correct as usize, samples as usize),
            correct,
            samples,
            step,
            eval_loss,
            steps,
            loss,
            seconds,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Counted from 1.
    pub trial: usize,
    pub folder: PathBuf,
    /// The settings that differ between trials.
    pub varied: Map<String, Value>,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Best first: by accuracy, of equals by the loss on the validation set, then by number; failed ones last.
pub fn sort(rows: &mut [Row]) {
    let rank = |row: &Row| match row.outcome {
        Outcome::Done { accuracy, eval_loss, .. } => (-accuracy, eval_loss.unwrap_or(f64::INFINITY)),
        Outcome::Failed { .. } => (f64::INFINITY, f64::INFINITY),
    };
    rows.sort_by(|a, b| {
        let ((a_first, a_loss), (b_first, b_loss)) = (rank(a), rank(b));
        a_first.total_cmp(&b_first).then(a_loss.total_cmp(&b_loss)).then(a.trial.cmp(&b.trial))
    });
}

/// Writes [`LEADERBOARD`] and [`CSV`] into `folder`.
pub fn write(folder: &Path, rows: &[Row]) -> Result<()> {
    let file = folder.join(LEADERBOARD);
    let text = serde_json::to_string_pretty(rows).map_err(|e| Error::file(&file, e.to_string()))?;
    atomic::write_file(&file, |out| out.write(text.as_bytes()))?;
    let file = folder.join(CSV);
    let table = table(rows).map_err(|e| Error::file(&file, e.to_string()))?;
    atomic::write_file(&file, |out| out.write(&table))
}

fn table(rows: &[Row]) -> Result<Vec<u8>, csv::Error> {
    let keys = keys(rows);
    let mut out = csv::Writer::from_writer(Vec::new());
    let fixed =
        ["trial", "status", "accuracy", "low", "high", "correct", "samples", "step", "eval_loss", "loss", "seconds"];
    out.write_record(fixed.into_iter().chain(keys.iter().map(String::as_str)))?;
    for row in rows {
        let mut cells = vec![row.trial.to_string()];
        match &row.outcome {
            Outcome::Done { accuracy, interval, correct, samples, step, eval_loss, loss, seconds, .. } => {
                cells.push("done".into());
                cells.extend([*accuracy, interval[0], interval[1]].map(|x| x.to_string()));
                cells.extend([*correct, *samples, *step].map(|n| n.to_string()));
                cells.extend([eval_loss, loss].map(|loss| loss.map_or(String::new(), |l| l.to_string())));
                cells.push(seconds.to_string());
            }
            Outcome::Failed { .. } => {
                cells.push("failed".into());
                cells.extend(vec![String::new(); fixed.len() - 2]);
            }
        }
        cells.extend(keys.iter().map(|key| row.varied.get(key).map_or(String::new(), shown)));
        out.write_record(&cells)?;
    }
    out.into_inner().map_err(|e| e.into_error().into())
}

/// The settings that trials vary.
pub fn keys(rows: &[Row]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for key in rows.iter().flat_map(|row| row.varied.keys()) {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

/// A setting's value for a table.
pub fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}
