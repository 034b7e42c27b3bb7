//! The lines of metrics.jsonl, the scalars that TensorBoard shows of them, and how they are read again.

use crate::base::{Error, Result};
use crate::device::WordSeconds;
use crate::io::json;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The log's name in a run's folder.
pub const FILE: &str = "metrics.jsonl";

/// The steps whose words are timed: the first ten and every tenth. On a GPU timing costs two events a word.
pub fn words_are_timed(step: u64) -> bool {
    step <= 10 || step.is_multiple_of(10)
}

/// One step. `seconds`, `tokens_per_second`, `mfu` and `word_seconds` are the clock's; all else is the same whenever the
/// run is repeated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Counted from 1.
    pub step: u64,
    /// Epochs done after it, in steps.
    pub epoch: f64,
    /// Mean over the label tokens of the step.
    pub loss: f64,
    /// The one that the step was taken with.
    pub lr: f64,
    /// Over all trained tensors, before clipping.
    pub grad_norm: f64,
    pub label_tokens: u64,
    pub tokens: u64,
    pub seconds: f64,
    pub tokens_per_second: f64,
    /// Part of the device's peak that the tokens made use of, see [`super::mfu`]; None where the peak is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Seconds that each word took, as the device ran it; empty where they were not timed. What is left of `seconds` went to
    /// what is no word: copies, plans, waiting for the host.
    #[serde(skip_serializing_if = "WordSeconds::is_empty")]
    pub word_seconds: WordSeconds,
}

/// One evaluation on the way, after step `step`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EvalMetrics {
    pub step: u64,
    pub epoch: f64,
    pub eval_accuracy: f64,
    pub eval_correct: u64,
    pub eval_samples: u64,
    /// Mean over the label tokens, as `loss` is.
    pub eval_loss: f64,
    pub eval_seconds: f64,
}

/// What can stand in the log.
pub trait Record: Serialize {
    fn step(&self) -> u64;
    /// Name and value of what is plotted.
    fn scalars(&self) -> Vec<(&'static str, f64)>;

    /// The JSON object and the end of its line. JSON has no word for what is not finite: that is null.
    fn line(&self) -> Result<String> {
        let text = serde_json::to_string(self).map_err(|e| Error::file(FILE, e.to_string()))?;
        Ok(text + "\n")
    }
}

impl Record for StepMetrics {
    fn step(&self) -> u64 {
        self.step
    }

    fn scalars(&self) -> Vec<(&'static str, f64)> {
        vec![("loss", self.loss), ("lr", self.lr), ("grad_norm", self.grad_norm)]
    }
}

impl Record for EvalMetrics {
    fn step(&self) -> u64 {
        self.step
    }

    fn scalars(&self) -> Vec<(&'static str, f64)> {
        vec![("eval_accuracy", self.eval_accuracy), ("eval_loss", self.eval_loss)]
    }
}

/// What pages, leaderboards and benches ask of a run's log, in its order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Log {
    /// Those whose loss is a number.
    pub steps: Vec<LoggedStep>,
    pub evaluations: Vec<LoggedEvaluation>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoggedStep {
    pub step: u64,
    pub epoch: f64,
    pub loss: f64,
    pub lr: f64,
    pub tokens: u64,
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoggedEvaluation {
    pub step: u64,
    pub accuracy: f64,
    pub correct: u64,
    pub samples: u64,
    pub loss: Option<f64>,
    pub seconds: f64,
}

impl LoggedEvaluation {
    /// By the rule of [`is_better`].
    pub fn is_better_than(&self, other: &LoggedEvaluation) -> bool {
        let score = |e: &LoggedEvaluation| (e.correct, e.loss.unwrap_or(f64::INFINITY));
        is_better(score(self), score(other))
    }
}

/// Of two evaluations of one set, each as its right answers and its loss, whether the first is better: by the answers, where
/// as many are right by the loss.
pub fn is_better((correct, loss): (u64, f64), (than, least): (u64, f64)) -> bool {
    correct > than || correct == than && loss < least
}

/// A line of either kind. Other programs that write such a log leave out what they do not know; then it counts nothing.
#[derive(Deserialize)]
struct Line {
    step: u64,
    #[serde(default)]
    epoch: f64,
    loss: Option<f64>,
    lr: Option<f64>,
    #[serde(default)]
    tokens: u64,
    #[serde(default)]
    seconds: f64,
    eval_accuracy: Option<f64>,
    #[serde(default)]
    eval_correct: u64,
    #[serde(default)]
    eval_samples: u64,
    eval_loss: Option<f64>,
    #[serde(default)]
    eval_seconds: f64,
}

/// Reads the log in a run's folder. Errors: there is none; a line that is no JSON or has no step, by its number.
pub fn read(run: &Path) -> Result<Log> {
    let mut log = Log::default();
    for line in json::read_lines::<Line>(&run.join(FILE))? {
        let Line { step, epoch, tokens, seconds, .. } = line;
        if let (Some(loss), Some(lr)) = (line.loss, line.lr) {
            log.steps.push(LoggedStep { step, epoch, loss, lr, tokens, seconds });
        }
        if let Some(accuracy) = line.eval_accuracy {
            let (correct, samples, seconds) = (line.eval_correct, line.eval_samples, line.eval_seconds);
            log.evaluations.push(LoggedEvaluation { step, accuracy, correct, samples, loss: line.eval_loss, seconds });
        }
    }
    Ok(log)
}
