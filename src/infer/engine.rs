//! A model on a device with a cache: prompts in, logits out, one pass at a time.

use super::cache::{self, BLOCK, Cache, CachedSequence};
use crate::base::{Error, Precision, Result, dtype};
use crate::device::{Clock, Device};
use crate::ops::sample::{self, Choice};
use crate::qwen3vl::model::{Model, Rows, SamplePass, Sampling, StepPass, StepSizes, StepValues};
use crate::qwen3vl::pack::{Packed, Sequence};
use crate::tape::{Repeated, Tape};
use crate::tensor::Tensor;

/// Told (records done, records in all) while a pass runs.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

pub struct Engine {
    pub model: Model,
    pub device: Device,
    pub precision: Precision,
    /// Of all that the engine runs; off unless somebody starts it.
    pub clock: Clock,
    cache: Option<Cache>,
    /// The last step's tape: steps of the same sizes run it again, from the second on as one launch.
    step: Option<Step>,
}

/// A step's tape, and the sizes that it was written for.
struct Step {
    sizes: StepSizes,
    /// The kind of choice at its end, and the room for the history.
    choice: Option<(Choice, usize)>,
    tape: Repeated,
    pass: StepPass,
    sample: Option<SamplePass>,
}

/// What a pass is read for.
pub enum Read<'a> {
    /// The logits: of a prompt for these rows, of a step for all.
    Logits(Rows),
    /// A token for each sequence, chosen on the device.
    Tokens(&'a Sampling),
}

/// What was read.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A row [V] each.
    Logits(Vec<Vec<f32>>),
    Tokens(Vec<u32>),
}

impl Engine {
    pub fn new(model: Model, device: Device, precision: Precision) -> Engine {
        Engine { model, device, precision, clock: Clock::default(), cache: None, step: None }
    }

    /// Lays out a cache for sequences of these lengths in tokens, forgetting all others.
    pub fn reserve(&mut self, lengths: impl IntoIterator<Item = usize>) -> Result<()> {
        let blocks = lengths.into_iter().map(cache::blocks_for).sum();
        self.step = None;
        self.cache = Some(Cache::new(&mut self.device, &self.model.config.text, self.precision, blocks)?);
        Ok(())
    }

    /// Runs prompts side by side and keeps them in the cache.
    pub fn prefill(
        &mut self,
        sequences: &[&Sequence],
        read: Read,
        progress: Progress,
    ) -> Result<(Vec<CachedSequence>, Answer)> {
        let packed = Packed::new(sequences, self.model.config.vision.merge_size)?;
        let Some(cache) = &mut self.cache else { return Err(no_cache()) };
        let mut tape = Tape::new(self.precision);
        let rows = match read {
            Read::Logits(rows) => rows,
            Read::Tokens(_) => Rows::Last,
        };
        let pass = self.model.prompt(&mut tape, &packed, rows, Some(&cache.pools), false)?;
        let sample = read.append(&self.model, &mut tape, pass.logits)?;
        let (mut cached, mut slots) = (Vec::new(), Vec::new());
        for (sequence, delta) in sequences.iter().zip(&packed.deltas) {
            let mut kept = CachedSequence::new(*delta);
            cache.grow(&mut self.device, &mut kept, sequence.ids.len())?;
            kept.length = sequence.ids.len();
            slots.extend((0..kept.length).map(|t| kept.row(t)));
            cached.push(kept);
        }
        self.step = None;
        tape.begin(&mut self.device)?;
        self.model.write_prompt(&mut self.device, &pass, &packed, &slots)?;
        read.write(&self.model, &mut self.device, sample.as_ref())?;
        tape.run(&mut self.device, &mut self.clock, progress)?;
        Ok((cached, self.answer(pass.logits, sample.as_ref())?))
    }

    /// Appends tokens to cached sequences; reads every new token, sequence by sequence. Tokens can be chosen only where
    /// each sequence gets one.
    pub fn extend(&mut self, sequences: &mut [&mut CachedSequence], new: &[&[u32]], read: Read) -> Result<Answer> {
        let Some(cache) = &mut self.cache else { return Err(no_cache()) };
        let (mut ids, mut positions, mut starts, mut slots, mut lengths) = (vec![], vec![], vec![0], vec![], vec![]);
        for (sequence, new) in sequences.iter_mut().zip(new) {
            let length = sequence.length + new.len();
            cache.grow(&mut self.device, sequence, length)?;
            for (t, id) in (sequence.length..).zip(*new) {
                ids.push(*id as i32);
                positions.push([t as i32 + sequence.delta; 3]);
                slots.push(sequence.row(t));
            }
            sequence.length = length;
            starts.push(ids.len() as i32);
            lengths.push(length as i32);
        }
        let max_blocks = cache::table_width(sequences.iter().map(|s| s.blocks().len()).max().unwrap_or(0));
        let mut blocks = vec![0; sequences.len() * max_blocks];
        for (row, sequence) in blocks.chunks_exact_mut(max_blocks.max(1)).zip(sequences.iter()) {
            row.iter_mut().zip(sequence.blocks()).for_each(|(to, block)| *to = *block as i32);
        }
        let sizes = StepSizes { sequences: sequences.len(), tokens: ids.len(), max_blocks, block: BLOCK };
        let choice = read.choice();
        let mut step = match self.step.take() {
            Some(step) if (step.sizes, step.choice) == (sizes, choice) => step,
            _ => {
                let mut tape = Tape::new(self.precision);
                let pass = self.model.step(&mut tape, sizes, &cache.pools)?;
                let sample = read.append(&self.model, &mut tape, pass.logits)?;
                tape.begin(&mut self.device)?;
                Step { sizes, choice, tape: Repeated::new(tape), pass, sample }
            }
        };
        let values = StepValues {
            ids: &ids,
            positions: &positions,
            starts: &starts,
            slots: &slots,
            lengths: &lengths,
            blocks: &blocks,
        };
        self.model.write_step(&mut self.device, &step.pass, &values)?;
        read.write(&self.model, &mut self.device, step.sample.as_ref())?;
        step.tape.run(&mut self.device, &mut self.clock)?;
        let answer = self.answer(step.pass.logits, step.sample.as_ref())?;
        self.step = Some(step);
        Ok(answer)
    }

    fn answer(&mut self, logits: Tensor, sample: Option<&SamplePass>) -> Result<Answer> {
        let memory = self.device.memory();
        Ok(match sample {
            Some(pass) => {
                let tokens = sample::chosen(memory, pass.tokens)?.into_iter().enumerate();
                let token = |(row, token): (usize, Option<u32>)| token.ok_or_else(|| self.no_number(row, "NaN or inf"));
                Answer::Tokens(tokens.map(token).collect::<Result<_>>()?)
            }
            None => {
                let all = memory.read_f32(logits)?;
                Answer::Logits(all.chunks_exact(logits.shape.width()).map(<[f32]>::to_vec).collect())
            }
        })
    }

    /// The rows of logits of an answer. Errors: one of them is no number, so that there is nothing to score by.
    pub(super) fn numbers(&self, answer: Answer) -> Result<Vec<Vec<f32>>> {
        let Answer::Logits(rows) = answer else { return Ok(Vec::new()) };
        for (i, row) in rows.iter().enumerate() {
            if let Some(value) = dtype::not_finite(row) {
                return Err(self.no_number(i, &value.to_string()));
            }
        }
        Ok(rows)
    }

    /// What is said of logits that nothing can be chosen by: the tensor at fault, where it is one of the model's.
    fn no_number(&self, row: usize, got: &str) -> Error {
        self.model.not_finite().unwrap_or_else(|| Error::Contract {
            op: "sample",
            argument: "logits",
            wanted: "numbers".into(),
            got: format!(
                "{got} in row {row}: the model's files hold numbers only, which overflow with this prompt; vlm dump writes \
                 what each layer makes of it"
            ),
        })
    }

    /// A second sequence that continues from the same tokens.
    pub fn fork(&mut self, sequence: &CachedSequence) -> Result<CachedSequence> {
        self.cache.as_mut().map(|c| c.fork(sequence)).ok_or_else(no_cache)
    }

    /// Gives back what a sequence held.
    pub fn release(&mut self, sequence: CachedSequence) {
        if let Some(cache) = &mut self.cache {
            cache.release(sequence);
        }
    }
}

impl Read<'_> {
    fn choice(&self) -> Option<(Choice, usize)> {
        match self {
            Read::Logits(_) => None,
            Read::Tokens(sampling) => Some((sampling.choice, sampling.capacity)),
        }
    }

    fn append(&self, model: &Model, tape: &mut Tape, logits: Tensor) -> Result<Option<SamplePass>> {
        match self {
            Read::Logits(_) => Ok(None),
            Read::Tokens(sampling) => model.sample(tape, logits, sampling).map(Some),
        }
    }

    fn write(&self, model: &Model, device: &mut Device, pass: Option<&SamplePass>) -> Result<()> {
        match (self, pass) {
            (Read::Tokens(sampling), Some(pass)) => model.write_sample(device, pass, sampling),
            _ => Ok(()),
        }
    }
}

fn no_cache() -> Error {
    Error::Contract { op: "engine", argument: "cache", wanted: "a reserved cache".into(), got: "none".into() }
}
