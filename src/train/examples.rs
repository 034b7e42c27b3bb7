//! Samples become examples: decoded and tokenised ahead of the step that needs them, once each where the tower is
//! frozen and its features can be kept.

use super::order::{Order, Step};
use super::step::{Example, Trainer};
use crate::base::{Error, Result, error::Context};
use crate::data::dataset::Sample;
use crate::qwen3vl::prepare::Preparer;
use crate::qwen3vl::template::Ending;
use rayon::prelude::*;
use std::collections::HashSet;
use std::path::Path;
use std::sync::mpsc::SyncSender;

/// The samples of a run.
pub struct Samples<'a> {
    pub file: &'a Path,
    pub all: &'a [Sample],
    pub preparer: &'a Preparer,
}

impl Samples<'_> {
    /// One sample, ready to be learnt. Errors name its line: a picture that cannot be read, nothing to learn.
    pub fn prepare(&self, at: usize) -> Result<Example> {
        let sample = &self.all[at];
        let prepared = self.preparer.prepare(&sample.conversation, Ending::Complete).context(format!(
            "{}, line {}",
            self.file.display(),
            sample.line
        ))?;
        let example = Example { sequence: prepared.sequence, labels: prepared.labels, features: None };
        if example.label_tokens() == 0 {
            let said = "has no token to learn: no assistant turn, or an empty one";
            return Err(Error::line(self.file, sample.line, said));
        }
        Ok(example)
    }

    /// Sends each step with the examples that were not sent before (all of them where `keep` is false), in order, until
    /// nobody listens any more.
    pub fn ahead(&self, order: &Order, done: u64, keep: bool, send: SyncSender<Result<(Step, Vec<Fresh>)>>) {
        let mut sent = HashSet::new();
        for step in order.steps_after(done) {
            let wanted: Vec<usize> =
                step.micro_batches.iter().flatten().copied().filter(|at| !keep || sent.insert(*at)).collect();
            let fresh: Result<Vec<Fresh>> =
                wanted.par_iter().map(|at| Ok(Fresh { at: *at, example: self.prepare(*at)? })).collect();
            let failed = fresh.is_err();
            if send.send(fresh.map(|fresh| (step, fresh))).is_err() || failed {
                return;
            }
        }
    }
}

/// An example that was just prepared, and the sample it is of.
pub struct Fresh {
    pub at: usize,
    pub example: Example,
}

/// Examples at hand, by sample.
pub struct Kept {
    examples: Vec<Option<Example>>,
    keep: bool,
}

impl Kept {
    pub fn new(n: usize, keep: bool) -> Kept {
        Kept { examples: vec![None; n], keep }
    }

    /// Takes fresh examples in; those whose features can be kept go through the tower, and lose their pixels.
    pub fn take(&mut self, trainer: &mut Trainer, fresh: Vec<Fresh>) -> Result<()> {
        for Fresh { at, mut example } in fresh {
            if self.keep {
                example.features = trainer.features(&example.sequence)?;
                example.sequence.pixels = Vec::new();
            }
            self.examples[at] = Some(example);
        }
        Ok(())
    }

    /// The examples of a micro-batch.
    pub fn of(&self, batch: &[usize]) -> Vec<&Example> {
        batch.iter().filter_map(|at| self.examples[*at].as_ref()).collect()
    }

    /// Lets go of what is prepared again next time.
    pub fn release(&mut self, step: &Step) {
        if !self.keep {
            step.micro_batches.iter().flatten().for_each(|at| self.examples[*at] = None);
        }
    }
}
