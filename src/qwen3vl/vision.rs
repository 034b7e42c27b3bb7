//! The vision tower: patches become image features, and the features of its deepstack taps.
//!
//! Semantics: transformers `modeling_qwen3_vl.py`, Qwen3VLVisionModel.

use super::config::VisionConfig;
use super::parameters::Parameters;
use super::{names, positions};
use crate::base::{DType, Result};
use crate::device::Device;
use crate::nn::{self, Linear, Norm, NormKind};
use crate::ops::attention::{Attention, Heads, Mask};
use crate::ops::linear::Activation;
use crate::ops::patch_embed::PatchEmbed;
use crate::ops::qk_rope::QkRope;
use crate::tape::Tape;
use crate::tensor::{Tensor, Weight};

const EPS: f32 = 1e-6;

struct Block {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

/// A square of `merge` x `merge` patches becomes one row of the text model's width. The final merger's norm is over one
/// patch, a deepstack merger's over all of the square.
struct Merger {
    norm: Norm,
    norm_width: usize,
    fc1: Linear,
    fc2: Linear,
}

pub struct VisionTower {
    config: VisionConfig,
    patch_weight: Weight,
    patch_bias: Weight,
    position_table: Weight,
    blocks: Vec<Block>,
    merger: Merger,
    deepstack: Vec<Merger>,
}

/// The tape's inputs that hold a batch of images.
pub struct Inputs {
    pub pixels: Tensor,
    corners: Tensor,
    shares: Tensor,
    angles: Tensor,
    starts: Tensor,
}

/// Keys of a dropout (i32): of every patch [P, 2], and of every merged row [U, 2].
pub struct Noise {
    pub patches: Tensor,
    pub merged: Tensor,
}

/// image_embeds [U, D], and the deepstack features [U, D] in the order of the text layers that they are added after.
#[derive(Debug, Clone)]
pub struct Features {
    pub embeds: Tensor,
    pub deepstack: Vec<Tensor>,
}

impl VisionTower {
    pub fn load(parameters: &Parameters, config: &VisionConfig) -> Result<VisionTower> {
        let norm = |path: &str| layer_norm(parameters, path);
        let linear = |path: &str| Ok(Linear { segments: vec![parameters.segment(path, true)?] });
        let block = |i: usize| {
            let at = names::vision_block(i);
            Ok(Block {
                norm1: norm(&at.norm1())?,
                qkv: linear(&at.qkv())?,
                proj: linear(&at.proj())?,
                norm2: norm(&at.norm2())?,
                fc1: linear(&at.fc1())?,
                fc2: linear(&at.fc2())?,
            })
        };
        let merger = |at: names::Merger, norm_width: usize| {
            Ok(Merger { norm: norm(&at.norm())?, norm_width, fc1: linear(&at.fc1())?, fc2: linear(&at.fc2())? })
        };
        let c = config.hidden_size;
        let deepstack = 0..config.deepstack_indexes.len();
        Ok(VisionTower {
            config: config.clone(),
            patch_weight: parameters.weight(&names::weight(names::PATCH_EMBED))?,
            patch_bias: parameters.weight(&names::bias(names::PATCH_EMBED))?,
            position_table: parameters.weight(&names::weight(names::VISION_POSITIONS))?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            merger: merger(names::merger(), c)?,
            deepstack: deepstack
                .map(|k| merger(names::deepstack_merger(k), config.merged_size()))
                .collect::<Result<_>>()?,
        })
    }

    /// Appends the inputs for `n_patches` patches in `n_images` images.
    pub fn inputs(&self, tape: &mut Tape, n_patches: usize, n_images: usize) -> Inputs {
        let width = self.config.head_dim();
        let pixels = tape.precision().dtype();
        Inputs {
            pixels: tape.input(pixels, [n_patches, self.patch_weight.shape().width()]),
            corners: tape.input(DType::I32, [n_patches, 4]),
            shares: tape.input(DType::F32, [n_patches, 4]),
            angles: tape.input(DType::F32, [n_patches, width]),
            starts: tape.input(DType::I32, [n_images + 1]),
        }
    }

    /// Writes the inputs of a run: the images' patches one after the other, and their grids [t, h, w] (t is 1).
    pub fn write(&self, device: &mut Device, inputs: &Inputs, pixels: &[f32], grids: &[[usize; 3]]) -> Result<()> {
        let (merge, side) = (self.config.merge_size, self.config.n_positions.isqrt());
        let (mut corners, mut shares, mut coordinates, mut starts) = (vec![], vec![], vec![], vec![0]);
        for grid in grids {
            let (c, s) = positions::position_corners(*grid, merge, side);
            corners.extend(c);
            shares.extend(s);
            coordinates.extend(positions::patch_coordinates(*grid, merge));
            starts.push(coordinates.len() as i32);
        }
        let angles = positions::Frequencies::vision(&self.config).angles(&coordinates);
        let memory = device.memory();
        memory.write_f32(inputs.pixels, pixels)?;
        memory.write_i32(inputs.corners, &corners)?;
        memory.write_f32(inputs.shares, &shares)?;
        memory.write_f32(inputs.angles, &angles)?;
        memory.write_i32(inputs.starts, &starts)
    }

    /// The whole tower over packed images; `pairs` is the sum of the squares of their patch counts.
    /// `noise` holds the keys of a dropout.
    pub fn forward(&self, tape: &mut Tape, inputs: &Inputs, pairs: u64, noise: Option<&Noise>) -> Result<Features> {
        tape.scope("vision.patch_embed");
        let c = self.config.hidden_size;
        let n = inputs.pixels.shape.rows();
        let n_heads = self.config.n_heads;
        let heads = Heads { queries: n_heads, keys: n_heads, width: self.config.head_dim() };
        let mut x = tape.activation([n, c]);
        tape.push(PatchEmbed {
            pixels: inputs.pixels,
            weight: self.patch_weight.clone(),
            bias: self.patch_bias.clone(),
            table: self.position_table.clone(),
            corners: inputs.corners,
            shares: inputs.shares,
            precision: tape.precision(),
            y: x,
        })?;
        let keys = noise.map(|n| n.patches);
        let mut deepstack = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            tape.scope(format!("vision.block.{i}"));
            let y = block.norm1.apply(tape, x)?;
            let qkv = block.qkv.apply(tape, y, keys, Activation::None, None)?;
            let (q, k, y) = (tape.activation([n, c]), tape.activation([n, c]), tape.activation([n, c]));
            let (angles, precision) = (inputs.angles, tape.precision());
            tape.push(QkRope { qkv, angles, norms: None, heads, append: None, precision, q, k })?;
            let scale = (heads.width as f32).powf(-0.5);
            let (starts, mask) = (inputs.starts, Mask::Full);
            let lse = nn::attention_lse(tape, &q, &heads);
            tape.push(Attention { q, k, v: qkv, v_column: 2 * c, starts, heads, mask, scale, pairs, y, lse })?;
            x = block.proj.apply(tape, y, keys, Activation::None, Some(x))?;
            let y = block.norm2.apply(tape, x)?;
            let y = block.fc1.apply(tape, y, keys, Activation::GeluTanh, None)?;
            x = block.fc2.apply(tape, y, keys, Activation::None, Some(x))?;
            // the features are handed on in the order of blocks, each through the merger at its place in the list
            if let Some(k) = self.config.deepstack_indexes.iter().position(|tap| *tap == i) {
                tape.scope(format!("vision.deepstack.{k}"));
                deepstack.push(self.deepstack[k].forward(tape, x, self.config.merge_size, noise)?);
            }
        }
        tape.scope("vision.merger");
        Ok(Features { embeds: self.merger.forward(tape, x, self.config.merge_size, noise)?, deepstack })
    }
}

impl Merger {
    fn forward(&self, tape: &mut Tape, x: Tensor, merge: usize, noise: Option<&Noise>) -> Result<Tensor> {
        let keys = noise.map(|n| n.merged);
        let (n, c) = (x.shape.rows(), x.shape.width());
        let y = self.norm.apply(tape, x.reshaped([n * c / self.norm_width, self.norm_width]))?;
        let rows = n / (merge * merge);
        let y = self.fc1.apply(tape, y.reshaped([rows, n * c / rows]), keys, Activation::GeluErf, None)?;
        self.fc2.apply(tape, y, keys, Activation::None, None)
    }
}

fn layer_norm(parameters: &Parameters, path: &str) -> Result<Norm> {
    let weight = parameters.weight(&names::weight(path))?;
    let bias = parameters.weight(&names::bias(path))?;
    Ok(Norm { kind: NormKind::Layer { weight, bias }, eps: EPS })
}
