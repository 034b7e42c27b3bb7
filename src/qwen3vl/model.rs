//! The whole model: prompts with their images, and the steps that follow them, written onto a tape.

use super::adapter::Adapter;
use super::checkpoint::Checkpoint;
use super::config::Config;
use super::pack::Packed;
use super::parameters::Parameters;
use super::positions::{Frequencies, Position};
use super::text::{Attend, CacheInputs, Outputs, TextModel, Visual};
use super::vision::{self, VisionTower};
use crate::base::{DType, Result};
use crate::device::Device;
use crate::ops::sample::{Choice, Sample};
use crate::tape::Tape;
use crate::tensor::Tensor;

pub struct Model {
    pub config: Config,
    vision: VisionTower,
    text: TextModel,
    frequencies: Frequencies,
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
    pub outputs: Outputs,
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
        Model::build(&checkpoint.config, &Parameters::new(checkpoint, adapter))
    }

    /// A model without weights: its tapes can be planned, costed and printed, and not run.
    pub fn dry(config: &Config, dtype: DType) -> Result<Model> {
        Model::build(config, &Parameters::dry(config, dtype))
    }

    fn build(config: &Config, parameters: &Parameters) -> Result<Model> {
        Ok(Model {
            vision: VisionTower::load(parameters, &config.vision)?,
            text: TextModel::load(parameters, config)?,
            frequencies: Frequencies::text(&config.text),
            config: config.clone(),
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
        let images = (u > 0).then(|| {
            let patches = packed.grids.iter().map(|g| g.iter().product::<usize>()).sum();
            ImageInputs {
                vision: self.vision.inputs(tape, patches, packed.grids.len()),
                rows: tape.input(DType::I32, [t]),
                tokens: tape.input(DType::I32, [u]),
            }
        });
        let ids = tape.input(DType::I32, [t]);
        let angles = tape.input(DType::F32, [t, self.config.text.head_dim]);
        let starts = tape.input(DType::I32, [b + 1]);
        let rows = (rows == Rows::Last).then(|| tape.input(DType::I32, [b]));
        let slots = pools.map(|_| tape.input(DType::I32, [t]));
        let cache = pools.zip(slots).map(|(pools, slots)| CacheInputs { pools, slots });
        let lengths = packed.starts.windows(2).map(|p| (p[1] - p[0]) as u64);
        let attend = Attend::Prompt { starts, pairs: lengths.map(|s| s * (s + 1) / 2).sum(), cache };
        let mut pixels = None;
        let visual = match &images {
            Some(images) => {
                let squares = packed.grids.iter().map(|g| (g.iter().product::<usize>() as u64).pow(2));
                let features = self.vision.forward(tape, &images.vision, squares.sum())?;
                if trace {
                    pixels = Some(tape.keep(images.vision.pixels));
                    tape.keep(features.embeds);
                    features.deepstack.iter().for_each(|f| _ = tape.keep(*f));
                }
                Some(Visual { features, rows: images.rows, tokens: images.tokens })
            }
            None => None,
        };
        let outputs = self.text.forward(tape, ids, angles, visual.as_ref(), &attend, rows, trace)?;
        let features = visual.map(|v| (v.features.embeds, v.features.deepstack));
        Ok(PromptPass { ids, angles, starts, rows, slots, images, features, pixels, outputs })
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
        let outputs = self.text.forward(tape, ids, angles, None, &attend, None, false)?;
        Ok(StepPass { ids, angles, starts, slots, lengths, blocks, logits: outputs.logits })
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
