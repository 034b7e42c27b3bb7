//! Samples become examples: decoded and tokenised ahead of the step that needs them, once each where the tower is
//! frozen and its features can be kept.

use super::features::Store;
use super::order::{Order, Step};
use super::step::{Example, Trainer};
use crate::base::error::{Context, at_line};
use crate::base::{Error, Result};
use crate::classify::evaluate::{Classes, MOST_CHOICES};
use crate::data::dataset::Sample;
use crate::data::messages::Conversation;
use crate::qwen3vl::prepare::{Prepared, Preparer};
use crate::qwen3vl::template::Ending;
use rayon::prelude::*;
use std::collections::HashSet;
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

/// So many samples are timed at the most.
const TIMED: usize = 32;

/// The samples of a run.
pub struct Samples<'a> {
    pub file: &'a Path,
    pub all: &'a [Sample],
    pub preparer: &'a Preparer,
}

impl Samples<'_> {
    /// One sample, ready to be learnt. Errors name its line: a picture that cannot be read, nothing to learn, more
    /// tokens than the model has positions for.
    pub fn prepare(&self, at: usize) -> Result<Example> {
        self.example(at, Preparer::prepare)
    }

    /// All samples without their pixels, to plan with: of pictures only the headers are read.
    pub fn measure(&self) -> Result<Vec<Example>> {
        (0..self.all.len()).into_par_iter().map(|at| self.example(at, Preparer::measure)).collect()
    }

    /// The answers of the samples, where these are few enough to be chosen among; None where a sample has none.
    pub fn closed_set(&self) -> Result<Option<Vec<String>>> {
        if self.all.iter().any(|s| s.label.is_none()) {
            return Ok(None);
        }
        let names = Classes::of(self.file, self.all, false)?.names;
        Ok((names.len() <= MOST_CHOICES).then_some(names))
    }

    /// Whether a step has photos.
    pub fn pictured(&self, step: &Step) -> bool {
        step.micro_batches.iter().flatten().any(|at| self.all[*at].images().next().is_some())
    }

    /// Seconds that one sample takes to be prepared where a step's are prepared together: the mean of some, the better of two
    /// tries.
    pub fn seconds_each(&self, step: usize) -> Result<f64> {
        let n = self.all.len();
        let some: Vec<usize> = (0..n).step_by(n.div_ceil(TIMED).max(1)).collect();
        let mut best = f64::INFINITY;
        for _ in 0..2 {
            let start = Instant::now();
            for together in some.chunks(step.max(1)) {
                together.par_iter().try_for_each(|at| self.prepare(*at).map(|_| ()))?;
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best / some.len().max(1) as f64)
    }

    fn example(
        &self,
        at: usize,
        prepare: impl Fn(&Preparer, &Conversation, Ending) -> Result<Prepared>,
    ) -> Result<Example> {
        let sample = &self.all[at];
        let prepared =
            prepare(self.preparer, &sample.conversation, Ending::Complete).context(at_line(self.file, sample.line))?;
        let id = sample.line as u64;
        let example = Example { id, sequence: prepared.sequence, labels: prepared.labels, features: None };
        if example.label_tokens() == 0 {
            let said = "has no token to learn: no assistant turn, or an empty one";
            return Err(Error::line(self.file, sample.line, said));
        }
        Ok(example)
    }

    /// Sends each step with the examples that are needed and not kept, in order, until nobody listens any more. Those of
    /// the first `keep` samples are kept once they were sent.
    pub fn ahead(&self, order: &Order, done: u64, keep: usize, send: SyncSender<Result<(Step, Vec<Fresh>)>>) {
        let mut sent = HashSet::new();
        for step in order.steps_after(done) {
            let wanted: Vec<usize> =
                step.micro_batches.iter().flatten().copied().filter(|at| *at >= keep || sent.insert(*at)).collect();
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

/// Examples at hand, by sample: those of the first samples stay, as many as `store` keeps.
pub struct Kept {
    examples: Vec<Option<Example>>,
}

impl Kept {
    pub fn new(n: usize) -> Kept {
        Kept { examples: vec![None; n] }
    }

    /// Takes fresh examples in; where the tower is frozen they go through it, and lose their pixels.
    pub fn take(&mut self, trainer: &mut Trainer, store: &mut Store, fresh: Vec<Fresh>) -> Result<()> {
        for Fresh { at, mut example } in fresh {
            if trainer.keeps_features() {
                let made = trainer.features(&example.sequence)?;
                let device = &mut trainer.engine.device;
                example.features = made.map(|made| store.take(device, at, &made)).transpose()?;
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

    /// Lets go of those of these samples that are prepared again next time.
    pub fn release(&mut self, store: &mut Store, samples: impl IntoIterator<Item = usize>) {
        let keeps = store.keeps();
        for at in samples.into_iter().filter(|at| *at >= keeps) {
            self.examples[at] = None;
            store.release(at);
        }
    }
}
