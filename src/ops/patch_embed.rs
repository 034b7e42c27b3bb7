//! `patch_embed`: y[p] = pixels[p] W^T + b + interpolated position row of p.
//!
//! The convolution of transformers' Qwen3VLVisionPatchEmbed has kernel = stride, so it is a product. Specification:
//! `host/linear.rs` and `host/patch_embed.rs`. Rounding points: the product, the position row, and y, as transformers
//! 5.x stores them.

use super::linear::matrix;
use super::{Op, indices, open_trained, require, shape, trained, weight_shape, whole};
use crate::base::{Precision, Result};
use crate::device::Device;
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

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let (pixels, corners, shares) =
                    (lent.f32(self.pixels)?, lent.i32(self.corners)?, lent.f32(self.shares)?);
                indices("patch_embed", "corners", corners, self.table.shape().rows(), false)?;
                let bias = Some(lent.values(&self.bias, self.precision)?);
                let segment = Segment { weight: matrix(&lent, &self.weight, self.precision)?, bias, low_rank: None };
                let table = lent.values(&self.table, self.precision)?;
                let (k, c) = (self.pixels.shape.width(), self.y.shape.width());
                lent.output(self.y)?.fill(|y| {
                    linear_tuned::linear(&pixels, k, &[segment], &mut [], 1, Activation::None, y, false);
                    host::patch_embed::add_positions(&table, c, corners, &shares, self.precision, y);
                })
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
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

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let f = &self.forward;
                let mut lent = memory.borrow(&self.inputs(), &[&f.weight], &self.outputs())?;
                let (pixels, dy) = (lent.f32(f.pixels)?, lent.f32(self.dy)?);
                let (corners, shares) = (lent.i32(f.corners)?, lent.f32(f.shares)?);
                indices("patch_embed_backward", "corners", corners, f.table.shape().rows(), false)?;
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
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}
