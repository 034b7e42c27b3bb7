//! One optimiser step: micro-batches add to the gradients, their norm is taken, AdamW moves the parameters.

use crate::base::rng::Stream;
use crate::base::{Error, Precision, Result};
use crate::host::adamw;
use crate::infer::engine::Engine;
use crate::io::HostTensor;
use crate::ops::Op;
use crate::ops::adamw::AdamW;
use crate::ops::grad_norm::GradNorm;
use crate::qwen3vl::model::{Direction, Images, Labels, LossPass, Model};
use crate::qwen3vl::pack::{Packed, Sequence};
use crate::qwen3vl::trainable::Trainable;
use crate::qwen3vl::vision::Features;
use crate::tape::Tape;

/// One sample, ready to be learnt.
#[derive(Debug, Clone)]
pub struct Example {
    /// Which sample it is, for what is random about it.
    pub id: u64,
    /// Without pixels where the features are there.
    pub sequence: Sequence,
    /// Which ids are learnt.
    pub labels: Vec<bool>,
    /// What the frozen tower made of the images.
    pub features: Option<Features>,
}

impl Example {
    /// Tokens that are learnt: those marked, apart from a first one, which nothing predicts.
    pub fn label_tokens(&self) -> usize {
        self.labels.iter().skip(1).filter(|l| **l).count()
    }
}

/// The pass of some examples up to their losses, on a tape.
pub struct Forward {
    pub tape: Tape,
    pub pass: LossPass,
}

impl Forward {
    /// Of a batch with `n_labels` tokens to learn. Image features are inputs where they are kept, else the tower is part of
    /// the pass.
    pub fn new(
        model: &Model,
        precision: Precision,
        keeps_features: bool,
        packed: &Packed,
        n_labels: usize,
        direction: Direction,
    ) -> Result<Forward> {
        let images = if keeps_features { Images::Features(&[]) } else { Images::Pixels };
        let mut tape = Tape::new(precision);
        let pass = model.loss(&mut tape, packed, n_labels, images, direction)?;
        Ok(Forward { tape, pass })
    }
}

/// Examples side by side, and which of their tokens are learnt.
pub fn batch(model: &Model, examples: &[&Example]) -> Result<(Packed, Labels)> {
    let sequences: Vec<&Sequence> = examples.iter().map(|e| &e.sequence).collect();
    let packed = Packed::new(&sequences, model.config.vision.merge_size)?;
    let labels = labels(&packed, examples);
    Ok((packed, labels))
}

/// What the tape of a pass follows from: batches of the same sizes run the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    tokens: usize,
    sequences: usize,
    images: usize,
    visual_tokens: usize,
    patches: usize,
    patch_pairs: u64,
    causal_pairs: u64,
    labels: usize,
    direction: Direction,
    budget: Option<usize>,
}

impl Sizes {
    fn of(packed: &Packed, labels: &Labels, direction: Direction, budget: Option<usize>) -> Sizes {
        Sizes {
            tokens: packed.tokens(),
            sequences: packed.deltas.len(),
            images: packed.grids.len(),
            visual_tokens: packed.visual_tokens.len(),
            patches: packed.patches(),
            patch_pairs: packed.patch_pairs(),
            causal_pairs: packed.causal_pairs(),
            labels: labels.ids.len(),
            direction,
            budget,
        }
    }
}

/// So many tapes are held.
const TAPES: usize = 32;

/// The numbers of one step of the optimiser.
#[derive(Debug, Clone, Copy)]
pub struct Optimizer {
    /// From 1.
    pub number: u32,
    /// The same for the tower and its mergers, where only steps count that have photos. None: this one has none. PyTorch has
    /// no gradients then, and its AdamW leaves these parameters and their moments alone, where gradients of zero would have
    /// them decay and drift on.
    pub vision_number: Option<u32>,
    pub learning_rate: f64,
    pub vision_learning_rate: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
    pub max_norm: Option<f64>,
}

/// A model in training. The engine runs it on its device; it answers prompts too, for evaluation on the way.
pub struct Trainer {
    pub engine: Engine,
    pub trainable: Trainable,
    /// The most bytes that the activations of a step may take; as little as possible is computed twice for that.
    pub budget: Option<usize>,
    /// Of the last batches, the oldest first: writing one takes milliseconds in which the device has nothing to do.
    passes: Vec<(Sizes, Forward)>,
}

impl Trainer {
    pub fn new(engine: Engine, trainable: Trainable, budget: Option<usize>) -> Trainer {
        Trainer { engine, trainable, budget, passes: Vec::new() }
    }

    /// Whether image features stay the same, and can be kept.
    pub fn keeps_features(&self) -> bool {
        !self.trainable.trains_vision()
    }

    /// What the frozen tower makes of a sequence's images; None without images.
    pub fn features(&mut self, sequence: &Sequence) -> Result<Option<Features>> {
        self.engine.features(sequence)
    }

    /// Forgets the gradients.
    pub fn zero_gradients(&mut self) -> Result<()> {
        self.engine.device.memory().zero(self.trainable.gradients)
    }

    /// Adds the gradients of `scale` times the sum of the losses of all label tokens of these examples. Returns each
    /// example's losses, summed. `random` is the step's stream, for what drops out.
    pub fn micro_batch(&mut self, examples: &[&Example], scale: f32, random: Stream) -> Result<Vec<f64>> {
        self.pass(examples, Some((scale, random)))
    }

    /// Each example's losses, summed, without gradients.
    pub fn losses(&mut self, examples: &[&Example]) -> Result<Vec<f64>> {
        self.pass(examples, None)
    }

    fn pass(&mut self, examples: &[&Example], learn: Option<(f32, Stream)>) -> Result<Vec<f64>> {
        let keeps_features = self.keeps_features();
        let direction = if learn.is_some() { Direction::Both } else { Direction::Forward };
        let (packed, labels) = batch(&self.engine.model, examples)?;
        if labels.ids.is_empty() {
            return Ok(vec![0.0; examples.len()]);
        }
        let sizes = Sizes::of(&packed, &labels, direction, self.budget);
        let at = match self.passes.iter().position(|(of, _)| *of == sizes) {
            Some(at) => at,
            None => {
                let written = self.write(&packed, &labels, direction)?;
                if self.passes.len() == TAPES {
                    self.passes.remove(0);
                }
                self.passes.push((sizes, written));
                self.passes.len() - 1
            }
        };
        let (_, Forward { tape, pass }) = &self.passes[at];
        let Engine { model, device, clock, .. } = &mut self.engine;
        tape.begin(device)?;
        let (scale, random) = learn.unwrap_or((0.0, Stream::new(0, &[])));
        let draws: Vec<Stream> = examples.iter().map(|e| random.with(e.id)).collect();
        let features: Vec<&Features> = examples.iter().filter_map(|e| e.features.as_ref()).collect();
        let images = if keeps_features { Images::Features(&features) } else { Images::Pixels };
        model.write_loss(device, pass, &packed, &labels, scale, images, &draws)?;
        tape.run(device, clock, &mut |_, _| ())?;
        let losses = device.memory().read_f32(pass.losses)?;
        let mut losses = losses.iter().map(|l| *l as f64);
        Ok(examples.iter().map(|e| losses.by_ref().take(e.label_tokens()).sum()).collect())
    }

    /// The tape of a batch's pass, with as little computed twice as the budget allows.
    fn write(&self, packed: &Packed, labels: &Labels, direction: Direction) -> Result<Forward> {
        let Engine { model, precision, .. } = &self.engine;
        let forward = Forward::new(model, *precision, self.keeps_features(), packed, labels.ids.len(), direction)?;
        if direction == Direction::Forward {
            return Ok(forward);
        }
        let fitted = forward.tape.fit(self.budget)?;
        match self.budget.filter(|budget| fitted.bytes > *budget) {
            Some(budget) => Err(Error::OutOfMemory(format!(
                "--memory: a batch of {} tokens needs {} bytes for activations, and {budget} are left; raise it, or lower \
                 --batch-size or --max-pixels",
                packed.tokens(),
                fitted.bytes
            ))),
            None => Ok(Forward { tape: fitted.tape, ..forward }),
        }
    }

    /// The length of all gradients together, before any clipping.
    pub fn gradient_norm(&mut self) -> Result<f64> {
        let op = GradNorm { gradients: self.trainable.gradients, norm: self.trainable.norm };
        op.contract()?;
        op.run(&mut self.engine.device, &mut self.engine.clock)?;
        Ok(self.engine.device.memory().read_f32(self.trainable.norm)?[0] as f64)
    }

    /// Moves the parameters, with the norm that [`Trainer::gradient_norm`] left on the device.
    pub fn update(&mut self, o: &Optimizer) -> Result<()> {
        for group in &self.trainable.groups {
            let Some(number) = (if group.vision { o.vision_number } else { Some(o.number) }) else { continue };
            let step = adamw::Step {
                number,
                learning_rate: if group.vision { o.vision_learning_rate } else { o.learning_rate },
                beta1: o.betas[0],
                beta2: o.betas[1],
                eps: o.eps,
                weight_decay: if group.decayed { o.weight_decay } else { 0.0 },
                gradient_scale: 1.0,
            };
            let (value, gradient, first, second) = (group.value, group.gradient, group.first, group.second);
            let (norm, max_norm) = (self.trainable.norm, o.max_norm);
            let op = AdamW { value, gradient, first, second, norm, max_norm, step };
            op.contract()?;
            op.run(&mut self.engine.device, &mut self.engine.clock)?;
        }
        Ok(())
    }

    /// Every trained tensor's gradient, under its name.
    pub fn gradients(&mut self) -> Result<Vec<(String, HostTensor)>> {
        let memory = self.engine.device.memory();
        self.trainable.entries.iter().map(|e| Ok((e.name.clone(), e.gradient(memory)?))).collect()
    }

    /// Every trained tensor's numbers, under its name.
    pub fn values(&mut self) -> Result<Vec<(String, HostTensor)>> {
        let memory = self.engine.device.memory();
        self.trainable.entries.iter().map(|e| Ok((e.name.clone(), e.value(memory)?))).collect()
    }
}

/// The rows that predict label tokens, and the tokens.
fn labels(packed: &Packed, examples: &[&Example]) -> Labels {
    let mut labels = Labels { rows: Vec::new(), ids: Vec::new() };
    for (example, start) in examples.iter().zip(&packed.starts) {
        for (t, _) in example.labels.iter().enumerate().skip(1).filter(|(_, l)| **l) {
            labels.rows.push(start + t as i32 - 1);
            labels.ids.push(example.sequence.ids[t] as i32);
        }
    }
    labels
}
