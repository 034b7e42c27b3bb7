//! `adamw`: one step of the optimiser over one flat buffer, the gradient clipped by a norm that the device holds.
//!
//! Specification: `host/adamw.rs` (PyTorch's AdamW) and `host/grad_norm.rs` (its clipping). Everything is f32.

use super::{Op, require, shape};
use crate::base::{DType, Result};
use crate::device::Device;
use crate::host::{adamw, grad_norm};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Elements of one piece; each is computed alone.
const PIECE: usize = 1 << 14;

/// value, gradient, first and second moment [N] (f32); norm [1] of all gradients, and the most it may be.
#[derive(Debug, Clone)]
pub struct AdamW {
    pub value: Tensor,
    pub gradient: Tensor,
    pub first: Tensor,
    pub second: Tensor,
    pub norm: Tensor,
    /// None: no clipping.
    pub max_norm: Option<f64>,
    /// `gradient_scale` is computed here from the norm.
    pub step: adamw::Step,
}

impl Op for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn contract(&self) -> Result<()> {
        let n = self.value.shape;
        for (name, t) in [("gradient", &self.gradient), ("first", &self.first), ("second", &self.second)] {
            shape("adamw", name, t, n)?;
            require("adamw", name, t.dtype == DType::F32, || "f32".into(), &t.dtype)?;
        }
        shape("adamw", "norm", &self.norm, [1])
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.gradient, self.norm]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.value, self.first, self.second]
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &[], &self.outputs())?;
                let (g, norm) = (lent.f32(self.gradient)?, lent.f32(self.norm)?[0]);
                let gradient_scale = self.max_norm.map_or(1.0, |max| grad_norm::clip_coefficient(norm as f64, max));
                let step = adamw::Step { gradient_scale, ..self.step };
                let (first, second) = (lent.output(self.first)?, lent.output(self.second)?);
                let mut done = Ok(());
                lent.output(self.value)?.update(|p| {
                    done = first.update(|m| {
                        _ = second.update(|v| {
                            let pieces = p.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE));
                            let pieces = pieces.zip(m.par_chunks_mut(PIECE)).zip(v.par_chunks_mut(PIECE));
                            pieces.for_each(|(((p, g), m), v)| adamw::adamw(&step, p, g, m, v));
                        })
                    });
                })?;
                done
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}
