//! What a run is judged by on the way: the score and the loss of a validation set, the answers of an overfit check,
//! whether a step came to numbers.
//!
//! A signal ends each of them after the batch that is computed, with [`crate::base::Error::Interrupted`] and nothing kept
//! or logged: a run that goes on does it again from its start.

use super::examples::{Fresh, Kept, Samples};
use super::features::Store;
use super::inputs::Evaluation;
use super::metrics::{EvalMetrics, is_better};
use super::order::Step;
use super::session::{Best, Said, Session, Watch, Why, now};
use super::step::Trainer;
use crate::base::error::lines_of;
use crate::base::{Error, Result};
use crate::classify::evaluate::{self, Method};
use crate::qwen3vl::prepare::Preparer;
use rayon::prelude::*;
use std::time::Instant;

impl Session<'_> {
    /// [`Why::Passed`] where all samples are learnt: every batch of one pass over them has a loss below the bound, and every
    /// answer is right.
    pub fn overfitted(&mut self, samples: &Samples, per_epoch: u64, watch: &Watch) -> Result<Option<Why>> {
        if self.state.below < per_epoch {
            return Ok(None);
        }
        let (right, n) = (self.answers(samples, watch)?, samples.all.len());
        let passed = right.is_none_or(|right| right == n);
        Ok(passed.then_some(Why::Passed { samples: n, answered: right.is_some() }))
    }

    /// How many of the samples are answered right; None where their answers are no closed set.
    pub fn answers(&mut self, samples: &Samples, watch: &Watch) -> Result<Option<usize>> {
        let Some(classes) = samples.closed_set()? else { return Ok(None) };
        let (method, batch) = (Method::Choices(classes), self.settings.batch_size);
        let mut right = 0;
        let engine = &mut self.trainer.engine;
        evaluate::evaluate(engine, samples.preparer, samples.file, samples.all, &method, batch, &mut |p| {
            right += usize::from(p.right);
            watch.go_on().map(|()| true)
        })?;
        Ok(Some(right))
    }

    /// Scores the evaluation set; keeps the result where it is the best so far. Where it is time to stop: the number of
    /// evaluations that brought no more right answers.
    pub fn evaluate(&mut self, preparer: &Preparer, step: &Step, watch: &mut Watch) -> Result<Option<u64>> {
        let Some(Evaluation { file, samples, classes }) = &self.evaluation else { return Ok(None) };
        let start = Instant::now();
        let method = Method::Choices(classes.clone());
        let (mut correct, mut n) = (0, 0);
        let batch = self.settings.batch_size;
        evaluate::evaluate(&mut self.trainer.engine, preparer, file, samples, &method, batch, &mut |p| {
            correct += p.right as u64;
            n += 1;
            watch.go_on().map(|()| true)
        })?;
        let samples = Samples { file, all: samples, preparer };
        let eval_loss = mean_loss(&mut self.trainer, &mut self.features, &samples, batch, watch)?;
        if !eval_loss.is_finite() {
            let what = format!("the loss on the validation set is {eval_loss}");
            let (advice, kept) = ("lower --learning-rate, or look at its samples", self.folder.last_checkpoint()?);
            return Err(Error::Diverged { what, step: step.number, advice, kept });
        }
        let metrics = EvalMetrics {
            step: step.number,
            epoch: step.epochs_done,
            eval_accuracy: correct as f64 / n as f64,
            eval_correct: correct,
            eval_samples: n,
            eval_loss,
            eval_seconds: start.elapsed().as_secs_f64(),
        };
        self.folder.log(&metrics, now())?;
        (watch.said)(Said::Eval(metrics));
        let since = match &self.state.best {
            Some(best) if correct <= best.correct => best.since + 1,
            _ => 0,
        };
        match &mut self.state.best {
            Some(best) if !is_better((correct, eval_loss), (best.correct, best.loss)) => best.since = since,
            _ => {
                self.write_result()?;
                let result = self.result_fingerprint()?;
                self.state.best = Some(Best { step: step.number, correct, loss: eval_loss, since, result });
            }
        }
        Ok(self.settings.early_stop.is_some_and(|most| since >= most).then_some(since))
    }

    /// The error of a step that came to no numbers before anything was updated.
    pub fn diverged(&mut self, samples: &Samples, of: &[usize], what: &str, step: &Step) -> Result<Error> {
        let advice = match step.number {
            // nothing is learnt yet, at whatever rate
            1 => match self.trainer.engine.model.not_finite() {
                Some(tensor) => return Ok(tensor),
                None => {
                    "training has changed nothing yet, so look at the weights that it starts from, and at the sample"
                }
            },
            _ => "lower --learning-rate, or look at the sample",
        };
        let lines: Vec<usize> = of.iter().map(|at| samples.all[*at].line).collect();
        let what = format!("{}, {}: {what}", samples.file.display(), lines_of(&lines));
        Ok(Error::Diverged { what, step: step.number, advice, kept: self.folder.last_checkpoint()? })
    }
}

/// Mean over the label tokens of all samples, as a step's loss is; without dropout.
fn mean_loss(trainer: &mut Trainer, store: &mut Store, samples: &Samples, batch: usize, watch: &Watch) -> Result<f64> {
    let (mut sum, mut tokens) = (0.0, 0);
    // numbers that no sample of the training set has: what is kept of those stays
    let first = store.keeps();
    let all: Vec<usize> = (first..first + samples.all.len()).collect();
    let mut kept = Kept::new(first + samples.all.len());
    for chunk in all.chunks(batch) {
        let fresh = chunk.par_iter().map(|at| Ok(Fresh { at: *at, example: samples.prepare(at - first)? }));
        kept.take(trainer, store, fresh.collect::<Result<_>>()?)?;
        let examples = kept.of(chunk);
        sum += trainer.losses(&examples)?.iter().sum::<f64>();
        tokens += examples.iter().map(|e| e.label_tokens()).sum::<usize>();
        kept.release(store, chunk.iter().copied());
        watch.go_on()?;
    }
    Ok(sum / tokens as f64)
}
