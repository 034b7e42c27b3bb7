//! `patch_embed`: y[p] = pixels[p] W^T + b + interpolated position row of p.
//!
//! The convolution of transformers' Qwen3VLVisionPatchEmbed has kernel = stride, so it is a product. Specification:
//! `host/linear.rs` and `host/patch_embed.rs`; kernels: `cuda/patch_embed.cu` and those of `linear`. Rounding points: the product, the position row, and y, as transformers
//! 5.x stores them.

use super::linear::arguments::*;
use super::linear::matrix;
use super::linear::plan::{self, Form, Tile};
use super::linear::run::{run_bias, run_gradients};
use super::{Op, bf16, f32, indices, open_trained, require, shape, trained, weight_shape, whole};
use crate::base::{Precision, Result};
use crate::device::{Accelerator, Device, Facts, Launch, Memory};
use crate::host::linear_tuned::Segment;
use crate::host::{self, linear::Activation, linear_tuned, linear_tuned_backward};
use crate::tensor::{Tensor, Weight};

/// pixels [P, K], weight [C, K], bias [C], table [n, C] of positions; corners [P, 4] (i32, rows of the table) and
/// shares [P, 4] (f32); y [P, C].
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    pub pixels: Tensor,
    pub weight: Weight,
    pub bias: Weight,
    pub table: Weight,
    pub corners: Tensor,
    pub shares: Tensor,
    pub precision: Precision,
    pub y: Tensor,
}

impl Op for PatchEmbed {
    fn name(&self) -> &'static str {
        "patch_embed"
    }

    fn contract(&self) -> Result<()> {
        let (p, k) = (self.pixels.shape.rows(), self.pixels.shape.width());
        let c = self.weight.shape().rows();
        weight_shape("patch_embed", "weight", &self.weight, [c, k])?;
        weight_shape("patch_embed", "bias", &self.bias, [c])?;
        let table = self.table.shape();
        require("patch_embed", "table", table.width() == c, || format!("rows of {c}"), &table)?;
        shape("patch_embed", "corners", &self.corners, [p, 4])?;
        whole("patch_embed", "corners", &self.corners)?;
        shape("patch_embed", "shares", &self.shares, [p, 4])?;
        f32("patch_embed", "shares", &self.shares)?;
        shape("patch_embed", "y", &self.y, [p, c])
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.pixels, self.corners, self.shares]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.y]
    }

    fn weights(&self) -> Vec<&Weight> {
        vec![&self.weight, &self.bias, &self.table]
    }

    fn flops(&self) -> u64 {
        2 * (self.pixels.shape.elements() * self.weight.shape().rows()) as u64
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        indices("patch_embed", "corners", memory.indices(&self.corners)?, self.table.shape().rows(), false)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let (pixels, corners, shares) =
                    (lent.f32(self.pixels)?, lent.i32(self.corners)?, lent.f32(self.shares)?);
                let bias = Some(lent.values(&self.bias, self.precision)?);
                let segment = Segment { weight: matrix(&lent, &self.weight, self.precision)?, bias, low_rank: None };
                let table = lent.values(&self.table, self.precision)?;
                let (k, c) = (self.pixels.shape.width(), self.y.shape.width());
                lent.output(self.y)?.fill(|y| {
                    linear_tuned::linear(&pixels, k, &[segment], &mut [], 1, Activation::None, y, false);
                    host::patch_embed::add_positions(&table, c, corners, &shares, self.precision, y);
                })
            }
            Device::Launch(gpu) => self.launch(gpu),
        }
    }
}

/// The gradients of [`PatchEmbed`]'s trained parameters; pixels have none.
#[derive(Debug, Clone)]
pub struct PatchEmbedBackward {
    pub forward: PatchEmbed,
    pub dy: Tensor,
}

impl Op for PatchEmbedBackward {
    fn name(&self) -> &'static str {
        "patch_embed_backward"
    }

    fn contract(&self) -> Result<()> {
        shape("patch_embed_backward", "dy", &self.dy, self.forward.y.shape)
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.forward.pixels, self.forward.corners, self.forward.shares, self.dy]
    }

    fn outputs(&self) -> Vec<Tensor> {
        trained(self.forward.weights())
    }

    fn flops(&self) -> u64 {
        self.forward.flops()
    }

    fn scratch(&self, facts: &Facts) -> Result<Vec<usize>> {
        // the parts of the weight's gradient that are summed in a second stage
        let trained = self.forward.weight.as_trained().is_some();
        Ok(vec![if trained { self.gradient([0; 4], facts).partial_bytes() } else { 0 }])
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        let (corners, table) = (memory.indices(&self.forward.corners)?, self.forward.table.shape());
        indices("patch_embed_backward", "corners", corners, table.rows(), false)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let f = &self.forward;
                let mut lent = memory.borrow(&self.inputs(), &[&f.weight], &self.outputs())?;
                let (pixels, dy) = (lent.f32(f.pixels)?, lent.f32(self.dy)?);
                let (corners, shares) = (lent.i32(f.corners)?, lent.f32(f.shares)?);
                let segment = Segment { weight: matrix(&lent, &f.weight, f.precision)?, bias: None, low_rank: None };
                let (k, c) = (f.pixels.shape.width(), self.dy.shape.width());
                let mut dw = open_trained(&mut lent, Some(&f.weight))?;
                let mut dbias = open_trained(&mut lent, Some(&f.bias))?;
                let gradients = linear_tuned_backward::Gradients {
                    dw: dw.as_mut().map(|g| g.values()),
                    dbias: dbias.as_mut().map(|g| g.values()),
                    ..Default::default()
                };
                linear_tuned_backward::linear_backward(&dy, &pixels, k, &[segment], &[], 1, None, &mut [gradients]);
                let mut dtable = open_trained(&mut lent, Some(&f.table))?;
                if let Some(dtable) = &mut dtable {
                    host::patch_embed::add_positions_backward(corners, &shares, c, &dy, dtable.values());
                }
                [dw, dbias, dtable].into_iter().flatten().for_each(|g| g.close());
                Ok(())
            }
            Device::Launch(gpu) => self.launch(gpu),
        }
    }
}

crate::arguments! {
    /// The product, and what is added to it.
    pub struct PatchEmbedArgs {
        pub product: LinearArgs,
        pub table: u64,
        pub corners: u64,
        pub shares: u64,
    }
}

crate::arguments! {
    /// dtable [n, width] from dy, four corners for each of its rows.
    pub struct PatchEmbedTableArgs {
        pub corners: u64,
        pub shares: u64,
        pub dy: u64,
        pub dtable: u64,
        pub n_corners: i32,
        pub width: i32,
    }
}

impl PatchEmbed {
    fn launch(&self, gpu: &mut Accelerator) -> Result<()> {
        bf16("patch_embed", &[&self.pixels, &self.y])?;
        let at = gpu.addresses(&self.inputs(), &self.weights(), &self.outputs())?;
        let (p, k, c) = (self.pixels.shape.rows(), self.pixels.shape.width(), self.y.shape.width());
        let mut product =
            LinearArgs { y: at.of(&self.y)?, stride: c as i64, m: p as i32, splits: 1, ..LinearArgs::default() };
        let piece = LinearPiece {
            left: at.of(&self.pixels)?,
            right: at.weight(&self.weight)?,
            left_stride: k as i64,
            right_stride: k as i64,
            depth: k as i32,
            ..LinearPiece::default()
        };
        let band = LinearBand { bias: at.weight(&self.bias)?, width: c as i32, ..LinearBand::default() };
        product.push(band, &[piece]);
        let kernel = match plan::tile(&product, Form::Forward, gpu.facts()) {
            Tile::Large => (Tile::Large, "patch_embed_fwd_128x128_bf16"),
            Tile::Small | Tile::Few => (Tile::Small, "patch_embed_fwd_64x64_bf16"),
            Tile::Any => (Tile::Any, "patch_embed_fwd_any_bf16"),
        };
        let arguments = PatchEmbedArgs {
            product,
            table: at.weight(&self.table)?,
            corners: at.of(&self.corners)?,
            shares: at.of(&self.shares)?,
        };
        let launch = plan::launch_of(&product, kernel.0, kernel.1);
        // SAFETY: all shapes are those of the contract, and every corner names a row of the table, as `check` found.
        unsafe { gpu.launch("patch_embed", &launch, &arguments) }
    }
}

impl PatchEmbedBackward {
    /// The weight's gradient, where its operands lie there, with the patches cut into parts.
    fn gradient(&self, [dy, pixels, dw, partial]: [u64; 4], facts: &Facts) -> LinearGradientArgs {
        let pixels_shape = self.forward.pixels.shape;
        let (c, k) = (self.dy.shape.width(), pixels_shape.width());
        let m = pixels_shape.rows() as i32;
        let mut args = LinearGradientArgs { left_stride: c as i64, m, ..LinearGradientArgs::default() };
        args.push(LinearGradientBand {
            left: dy,
            right: pixels,
            gradient: dw,
            right_stride: k as i64,
            height: c as i32,
            width: k as i32,
            scale: 1.0,
            ..LinearGradientBand::default()
        });
        plan::cut_gradients(args, partial, facts)
    }

    fn launch(&self, gpu: &mut Accelerator) -> Result<()> {
        const OP: &str = "patch_embed_backward";
        let f = &self.forward;
        bf16(OP, &[&f.pixels, &self.dy])?;
        let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
        let c = self.dy.shape.width();
        let (m, dy) = (f.pixels.shape.rows() as i32, at.of(&self.dy)?);
        let dw = at.gradient(&f.weight)?;
        if dw != 0 {
            let [partial] = gpu.scratch(&self.scratch(gpu.facts())?)?;
            let args = self.gradient([dy, at.of(&f.pixels)?, dw, partial], gpu.facts());
            // SAFETY: dy and pixels have m rows, of the weight's c and k by contract; the scratch memory has all parts.
            unsafe { run_gradients(gpu, OP, &[args])? }
        }
        if f.bias.as_trained().is_some() {
            let dbias = at.gradient(&f.bias)?;
            // SAFETY: dy is [m, c] and the bias [c] by contract.
            unsafe { run_bias(gpu, OP, &LinearBiasArgs { dz: dy, dbias, stride: c as i64, m, n: c as i32 })? }
        }
        let dtable = at.gradient(&f.table)?;
        if dtable == 0 {
            return Ok(());
        }
        let arguments = PatchEmbedTableArgs {
            corners: at.of(&f.corners)?,
            shares: at.of(&f.shares)?,
            dy,
            dtable,
            n_corners: 4 * m,
            width: c as i32,
        };
        let launch = Launch::of("patch_embed_bwd_table_bf16", f.table.shape().rows() as u32, 128);
        // SAFETY: corners and shares have four for each row of dy by contract; a block writes one row of the gradient.
        unsafe { gpu.launch(OP, &launch, &arguments) }
    }
}
