//! The whole model: prompts with their images, and the steps that follow them, written onto a tape.

use super::adapter::Adapter;
use super::checkpoint::Checkpoint;
use super::config::Config;
use super::pack::Packed;
use super::parameters::Parameters;
use super::positions::{Frequencies, Position};
use super::text::{self, Attend, CacheInputs, TextModel, Visual};
use super::trainable::Trainable;
use super::vision::{self, Features, VisionTower};
use crate::base::rng::Stream;
use crate::base::{DType, Error, Result};
use crate::device::Device;
use crate::io::safetensors::SafetensorsFile;
use crate::ops::sample::{Choice, Sample};
use crate::tape::Tape;
use crate::tensor::Tensor;

/// What the keys of a dropout are of, so that no two rows share one.
const TOKENS: u64 = 0;
const PATCHES: u64 = 1;
const MERGED: u64 = 2;

pub struct Model {
    pub config: Config,
    vision: VisionTower,
    text: TextModel,
    frequencies: Frequencies,
    /// Whether a pass that is learnt from needs keys for a dropout.
    drops_out: bool,
    /// Where its weights come from; none of a dry one.
    files: Vec<SafetensorsFile>,
}

/// For which tokens logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    All,
    /// The last of each sequence.
    Last,
}

/// The values of a prompt pass that are written before it, and those that can be read after it.
pub struct PromptPass {
    ids: Tensor,
    angles: Tensor,
    starts: Tensor,
    rows: Option<Tensor>,
    slots: Option<Tensor>,
    images: Option<ImageInputs>,
    /// Image features [U, D] and deepstack features, kept when tracing.
    pub features: Option<(Tensor, Vec<Tensor>)>,
    /// The pixels as the tower sees them, kept when tracing.
    pub pixels: Option<Tensor>,
    /// Hidden states (see [`super::text::Hidden`]), kept when tracing.
    pub hidden: Vec<Tensor>,
    /// f32 [R, V]
    pub logits: Tensor,
}

/// The values of a pass that ends in a loss.
pub struct LossPass {
    ids: Tensor,
    angles: Tensor,
    starts: Tensor,
    rows: Tensor,
    labels: Tensor,
    scale: Tensor,
    noise: Option<Noise>,
    images: Option<LossImages>,
    /// f32 [R], one a label token.
    pub losses: Tensor,
}

/// Keys of a dropout.
struct Noise {
    text: text::Noise,
    vision: Option<vision::Noise>,
}

struct LossImages {
    source: LossSource,
    rows: Tensor,
    tokens: Tensor,
}

enum LossSource {
    Pixels(vision::Inputs),
    Features(Features),
}

/// Where a training pass gets its image features from.
#[derive(Clone, Copy)]
pub enum Images<'a> {
    /// The tower, in the same pass: it is trained.
    Pixels,
    /// An earlier pass of the frozen tower, of these images one after the other.
    Features(&'a [&'a Features]),
}

/// Whether a loss is to be learnt from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    /// With what backward starts from.
    Both,
}

/// Which tokens are learnt: token t of the packed sequences is predicted by row t - 1.
pub struct Labels {
    /// [R] rows that predict.
    pub rows: Vec<i32>,
    /// [R] what they should predict.
    pub ids: Vec<i32>,
}

/// The values of a pass of the tower alone.
pub struct VisionPass {
    inputs: vision::Inputs,
    pub features: Features,
}

struct ImageInputs {
    vision: vision::Inputs,
    rows: Tensor,
    tokens: Tensor,
}

/// The values of a step: new tokens of sequences that the cache holds.
pub struct StepPass {
    ids: Tensor,
    angles: Tensor,
    starts: Tensor,
    slots: Tensor,
    lengths: Tensor,
    blocks: Tensor,
    /// f32 [T, V]
    pub logits: Tensor,
}

/// What a step is given, in the words of [`crate::ops::attention_cached`] and [`crate::ops::qk_rope`].
pub struct StepValues<'a> {
    pub ids: &'a [i32],
    pub positions: &'a [Position],
    pub starts: &'a [i32],
    pub slots: &'a [i32],
    pub lengths: &'a [i32],
    pub blocks: &'a [i32],
}

/// The values of a choice of tokens at the end of a pass.
pub struct SamplePass {
    seen: Tensor,
    generated: Tensor,
    uniform: Tensor,
    /// i32 [B]
    pub tokens: Tensor,
}

/// How the next token of each sequence is chosen, and from what history.
#[derive(Debug, Clone)]
pub struct Sampling {
    pub choice: Choice,
    /// Ids from here on are never chosen.
    pub n_valid: usize,
    /// For each sequence the tokens of prompt and answer so far; `answers` says where the answer begins.
    pub seen: Vec<Vec<u32>>,
    pub answers: Vec<usize>,
    /// For each sequence a number in [0, 1).
    pub uniform: Vec<f32>,
    /// Room for the history, so that passes of the same sizes run the same tape.
    pub capacity: usize,
}

/// Sizes of a step: sequences, new tokens in all, and how many blocks a sequence may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSizes {
    pub sequences: usize,
    pub tokens: usize,
    pub max_blocks: usize,
    pub block: usize,
}

impl Model {
    pub fn load(checkpoint: &Checkpoint, adapter: Option<&Adapter>) -> Result<Model> {
        Model::build(&checkpoint.config, &Parameters::new(checkpoint, adapter), false, checkpoint.files())
    }

    /// A model of which some parameters are trained.
    pub fn training(checkpoint: &Checkpoint, trainable: &Trainable) -> Result<Model> {
        let parameters = Parameters::training(checkpoint, trainable);
        Model::build(&checkpoint.config, &parameters, trainable.drops_out(), checkpoint.files())
    }

    /// A model without weights: its tapes can be planned, costed and printed, and not run.
    pub fn dry(config: &Config, dtype: DType) -> Result<Model> {
        Model::build(config, &Parameters::dry(config, dtype), false, &[])
    }

    /// The first tensor of the model's files that holds NaN or an infinity, as an error: for whoever got no numbers. Reads
    /// all of the files where there is none. What is trained is taken as it was at the start.
    pub fn not_finite(&self) -> Option<Error> {
        self.files.iter().find_map(SafetensorsFile::not_finite)
    }

    fn build(config: &Config, parameters: &Parameters, drops_out: bool, files: &[SafetensorsFile]) -> Result<Model> {
        Ok(Model {
            vision: VisionTower::load(parameters, &config.vision)?,
            text: TextModel::load(parameters, config)?,
            frequencies: Frequencies::text(&config.text),
            config: config.clone(),
            drops_out,
            files: files.to_vec(),
        })
    }

    /// Appends a pass over packed prompts. `pools` keeps their keys and values; `trace` keeps what `vlm dump` writes.
    pub fn prompt(
        &self,
        tape: &mut Tape,
        packed: &Packed,
        rows: Rows,
        pools: Option<&[(Tensor, Tensor)]>,
        trace: bool,
    ) -> Result<PromptPass> {
        let (t, b, u) = (packed.tokens(), packed.deltas.len(), packed.visual_tokens.len());
        let images = (u > 0).then(|| ImageInputs {
            vision: self.vision.inputs(tape, packed.patches(), packed.grids.len()),
            rows: tape.input(DType::I32, [t]),
            tokens: tape.input(DType::I32, [u]),
        });
        let ids = tape.input(DType::I32, [t]);
        let angles = tape.input(DType::F32, [t, self.config.text.head_dim]);
        let starts = tape.input(DType::I32, [b + 1]);
        let rows = (rows == Rows::Last).then(|| tape.input(DType::I32, [b]));
        let slots = pools.map(|_| tape.input(DType::I32, [t]));
        let cache = pools.zip(slots).map(|(pools, slots)| CacheInputs { pools, slots });
        let attend = Attend::Prompt { starts, pairs: packed.causal_pairs(), cache };
        let mut pixels = None;
        let visual = match &images {
            Some(images) => {
                let features = self.vision.forward(tape, &images.vision, packed.patch_pairs(), None)?;
                if trace {
                    pixels = Some(tape.keep(images.vision.pixels));
                    tape.keep(features.embeds);
                    features.deepstack.iter().for_each(|f| _ = tape.keep(*f));
                }
                Some(Visual { features, rows: images.rows, tokens: images.tokens })
            }
            None => None,
        };
        let hidden = self.text.forward(tape, ids, angles, visual.as_ref(), &attend, rows, None, trace)?;
        let logits = self.text.logits(tape, hidden.last)?;
        let features = visual.map(|v| (v.features.embeds, v.features.deepstack));
        Ok(PromptPass { ids, angles, starts, rows, slots, images, features, pixels, hidden: hidden.trace, logits })
    }

    /// Writes a prompt pass's inputs. `slots` names each token's row in the cache, where it has one.
    pub fn write_prompt(&self, device: &mut Device, pass: &PromptPass, packed: &Packed, slots: &[i32]) -> Result<()> {
        if let Some(images) = &pass.images {
            self.vision.write(device, &images.vision, &packed.pixels, &packed.grids)?;
            device.memory().write_i32(images.rows, &packed.image_rows)?;
            device.memory().write_i32(images.tokens, &packed.visual_tokens)?;
        }
        let memory = device.memory();
        memory.write_i32(pass.ids, &packed.ids)?;
        memory.write_f32(pass.angles, &self.frequencies.angles(&packed.positions))?;
        memory.write_i32(pass.starts, &packed.starts)?;
        if let Some(rows) = pass.rows {
            memory.write_i32(rows, &packed.last_rows())?;
        }
        match pass.slots {
            Some(to) => memory.write_i32(to, slots),
            None => Ok(()),
        }
    }

    /// Appends a pass of the tower over the images of packed sequences; the features are kept.
    pub fn vision(&self, tape: &mut Tape, packed: &Packed) -> Result<VisionPass> {
        let inputs = self.vision.inputs(tape, packed.patches(), packed.grids.len());
        let features = self.vision.forward(tape, &inputs, packed.patch_pairs(), None)?;
        tape.keep(features.embeds);
        features.deepstack.iter().for_each(|f| _ = tape.keep(*f));
        Ok(VisionPass { inputs, features })
    }

    /// Writes the inputs of a pass of the tower.
    pub fn write_vision(&self, device: &mut Device, pass: &VisionPass, packed: &Packed) -> Result<()> {
        self.vision.write(device, &pass.inputs, &packed.pixels, &packed.grids)
    }

    /// Appends a pass over packed sequences that ends in the loss of `n_labels` tokens.
    pub fn loss(
        &self,
        tape: &mut Tape,
        packed: &Packed,
        n_labels: usize,
        images: Images,
        direction: Direction,
    ) -> Result<LossPass> {
        let (t, b, u) = (packed.tokens(), packed.deltas.len(), packed.visual_tokens.len());
        let images = (u > 0).then(|| LossImages {
            source: match images {
                Images::Pixels => LossSource::Pixels(self.vision.inputs(tape, packed.patches(), packed.grids.len())),
                Images::Features(_) => {
                    let (dtype, shape) = (tape.precision().dtype(), [u, self.config.text.hidden_size]);
                    let taps = 0..self.config.vision.deepstack_indexes.len();
                    let deepstack = taps.map(|_| tape.input(dtype, shape)).collect();
                    LossSource::Features(Features { embeds: tape.input(dtype, shape), deepstack })
                }
            },
            rows: tape.input(DType::I32, [t]),
            tokens: tape.input(DType::I32, [u]),
        });
        let ids = tape.input(DType::I32, [t]);
        let angles = tape.input(DType::F32, [t, self.config.text.head_dim]);
        let starts = tape.input(DType::I32, [b + 1]);
        let rows = tape.input(DType::I32, [n_labels]);
        let labels = tape.input(DType::I32, [n_labels]);
        let scale = tape.input(DType::F32, [1]);
        let noise = (self.drops_out && direction == Direction::Both).then(|| {
            let mut keys = |n: usize| tape.input(DType::I32, [n, 2]);
            let text = text::Noise { tokens: keys(t), rows: keys(n_labels) };
            let pixels = images.as_ref().is_some_and(|i| matches!(i.source, LossSource::Pixels(_)));
            let vision = pixels.then(|| vision::Noise { patches: keys(packed.patches()), merged: keys(u) });
            Noise { text, vision }
        });
        let attend = Attend::Prompt { starts, pairs: packed.causal_pairs(), cache: None };
        let visual = match &images {
            Some(images) => {
                let features = match &images.source {
                    LossSource::Pixels(inputs) => {
                        let keys = noise.as_ref().and_then(|n| n.vision.as_ref());
                        self.vision.forward(tape, inputs, packed.patch_pairs(), keys)?
                    }
                    LossSource::Features(features) => features.clone(),
                };
                Some(Visual { features, rows: images.rows, tokens: images.tokens })
            }
            None => None,
        };
        let hidden = self.text.forward(
            tape,
            ids,
            angles,
            visual.as_ref(),
            &attend,
            Some(rows),
            noise.as_ref().map(|n| n.text),
            false,
        )?;
        let losses = self.text.loss(tape, hidden.last, labels, scale, direction)?;
        Ok(LossPass { ids, angles, starts, rows, labels, scale, noise, images, losses })
    }

    /// Writes a loss pass's inputs. The gradients are those of `scale` times the sum of the losses. `draws` has a random
    /// stream for each sequence: what drops out of it follows from that and the place in it alone.
    #[allow(clippy::too_many_arguments, reason = "each is one of the inputs that the pass names")]
    pub fn write_loss(
        &self,
        device: &mut Device,
        pass: &LossPass,
        packed: &Packed,
        labels: &Labels,
        scale: f32,
        images: Images,
        draws: &[Stream],
    ) -> Result<()> {
        if let Some(noise) = &pass.noise {
            self.write_noise(device, noise, packed, labels, draws)?;
        }
        if let Some(to) = &pass.images {
            match (&to.source, images) {
                (LossSource::Pixels(inputs), _) => self.vision.write(device, inputs, &packed.pixels, &packed.grids)?,
                (LossSource::Features(to), Images::Features(from)) => {
                    let mut row = 0;
                    for from in from {
                        let parts = from.deepstack.iter().zip(&to.deepstack);
                        for (from, to) in std::iter::once((&from.embeds, &to.embeds)).chain(parts) {
                            device.memory().copy(*from, *to, row)?;
                        }
                        row += from.embeds.shape.rows();
                    }
                }
                (LossSource::Features(_), Images::Pixels) => {
                    return Err(Error::Contract {
                        op: "loss",
                        argument: "images",
                        wanted: "the features that the pass reads".into(),
                        got: "pixels".into(),
                    });
                }
            }
            device.memory().write_i32(to.rows, &packed.image_rows)?;
            device.memory().write_i32(to.tokens, &packed.visual_tokens)?;
        }
        let memory = device.memory();
        memory.write_i32(pass.ids, &packed.ids)?;
        memory.write_f32(pass.angles, &self.frequencies.angles(&packed.positions))?;
        memory.write_i32(pass.starts, &packed.starts)?;
        memory.write_i32(pass.rows, &labels.rows)?;
        memory.write_i32(pass.labels, &labels.ids)?;
        memory.write_f32(pass.scale, &[scale])
    }

    /// Writes the keys of a dropout: of tokens, patches and merged rows, each by its place in its own sequence.
    fn write_noise(
        &self,
        device: &mut Device,
        noise: &Noise,
        packed: &Packed,
        labels: &Labels,
        draws: &[Stream],
    ) -> Result<()> {
        let lengths = |n_of: &dyn Fn(usize) -> usize| -> Vec<usize> { (0..draws.len()).map(n_of).collect() };
        let keys = |kind: u64, lengths: Vec<usize>| -> Vec<i32> {
            let of = |(draw, n): (&Stream, usize)| {
                let stream = draw.with(kind);
                (0..n as u64).flat_map(move |i| stream.with(i).key().map(|word| word as i32))
            };
            draws.iter().zip(lengths).flat_map(of).collect()
        };
        let memory = device.memory();
        let tokens = keys(TOKENS, lengths(&|b| (packed.starts[b + 1] - packed.starts[b]) as usize));
        let rows: Vec<i32> = labels.rows.iter().flat_map(|row| &tokens[2 * *row as usize..][..2]).copied().collect();
        memory.write_i32(noise.text.tokens, &tokens)?;
        memory.write_i32(noise.text.rows, &rows)?;
        if let Some(vision) = &noise.vision {
            let merged = |b: usize| packed.visual_tokens_of(b);
            let merge = self.config.vision.merge_size.pow(2);
            memory.write_i32(vision.patches, &keys(PATCHES, lengths(&|b| merged(b) * merge)))?;
            memory.write_i32(vision.merged, &keys(MERGED, lengths(&merged)))?;
        }
        Ok(())
    }

    /// Appends a step through the cache; logits of every new token.
    pub fn step(&self, tape: &mut Tape, sizes: StepSizes, pools: &[(Tensor, Tensor)]) -> Result<StepPass> {
        let StepSizes { sequences: b, tokens: t, max_blocks, block } = sizes;
        let ids = tape.input(DType::I32, [t]);
        let angles = tape.input(DType::F32, [t, self.config.text.head_dim]);
        let starts = tape.input(DType::I32, [b + 1]);
        let slots = tape.input(DType::I32, [t]);
        let lengths = tape.input(DType::I32, [b]);
        let blocks = tape.input(DType::I32, [b, max_blocks]);
        let attend = Attend::Cached { cache: CacheInputs { pools, slots }, starts, lengths, blocks, block };
        let hidden = self.text.forward(tape, ids, angles, None, &attend, None, None, false)?;
        let logits = self.text.logits(tape, hidden.last)?;
        Ok(StepPass { ids, angles, starts, slots, lengths, blocks, logits })
    }

    /// Appends the choice of a token for each row of `logits` [B, V].
    pub fn sample(&self, tape: &mut Tape, logits: Tensor, sampling: &Sampling) -> Result<SamplePass> {
        let b = logits.shape.rows();
        let seen = tape.input(DType::I32, [b, sampling.capacity]);
        let generated = tape.input(DType::I32, [b, sampling.capacity]);
        let uniform = tape.input(DType::F32, [b]);
        let y = tape.value(DType::I32, [b]);
        let tokens = tape.keep(y);
        let (choice, n_valid) = (sampling.choice, sampling.n_valid.min(logits.shape.width()));
        tape.push(Sample { logits, seen, generated, uniform, choice, n_valid, y })?;
        Ok(SamplePass { seen, generated, uniform, tokens })
    }

    /// Writes the inputs of a choice.
    pub fn write_sample(&self, device: &mut Device, pass: &SamplePass, sampling: &Sampling) -> Result<()> {
        let padded = |rows: &mut dyn Iterator<Item = &[u32]>| -> Vec<i32> {
            let row = |r: &[u32]| {
                let mut row: Vec<i32> = r.iter().map(|id| *id as i32).collect();
                row.resize(sampling.capacity, -1);
                row
            };
            rows.flat_map(row).collect()
        };
        let seen = padded(&mut sampling.seen.iter().map(Vec::as_slice));
        let generated = padded(&mut sampling.seen.iter().zip(&sampling.answers).map(|(s, from)| &s[*from..]));
        let memory = device.memory();
        memory.write_i32(pass.seen, &seen)?;
        memory.write_i32(pass.generated, &generated)?;
        memory.write_f32(pass.uniform, &sampling.uniform)
    }

    /// Writes a step's inputs.
    pub fn write_step(&self, device: &mut Device, pass: &StepPass, values: &StepValues) -> Result<()> {
        let memory = device.memory();
        memory.write_i32(pass.ids, values.ids)?;
        memory.write_f32(pass.angles, &self.frequencies.angles(values.positions))?;
        memory.write_i32(pass.starts, values.starts)?;
        memory.write_i32(pass.slots, values.slots)?;
        memory.write_i32(pass.lengths, values.lengths)?;
        memory.write_i32(pass.blocks, values.blocks)
    }
}
