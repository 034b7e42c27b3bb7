//! `adamw`: one step of the optimiser over one flat buffer, the gradient clipped by a norm that the device holds.
//!
//! Specification: `host/adamw.rs` (PyTorch's AdamW) and `host/grad_norm.rs` (its clipping); kernel: `cuda/adamw.cu`.
//! Everything is f32; on a device that runs kernels the bf16 shadow is written too.

use super::{Op, THREADS, f32, shape};
use crate::base::Result;
use crate::device::{Device, Launch};
use crate::host::adamw::Constants;
use crate::host::{adamw, grad_norm};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Elements of one piece; each is computed alone.
const PIECE: usize = 1 << 14;

crate::arguments! {
    /// `AdamWArgs` of `cuda/adamw.cu`.
    pub struct AdamWArgs {
        value: u64,
        gradient: u64,
        first: u64,
        second: u64,
        norm: u64,
        shadow: u64,
        n: i64,
        max_norm: f64,
        keep: f32,
        rest1: f32,
        beta2: f32,
        rest2: f32,
        rate: f32,
        root: f32,
        eps: f32,
        gradient_scale: f32,
    }
}

/// A thread an element; more than these blocks go round again.
fn plan(n: usize) -> Launch {
    Launch::of("adamw_fwd_f32", n.div_ceil(THREADS).min(1 << 20) as u32, THREADS as u32)
}

/// value, gradient, first and second moment [N] (f32); norm [1] (f32) of all gradients, and the most it may be.
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
        f32("adamw", "value", &self.value)?;
        for (name, t) in [("gradient", &self.gradient), ("first", &self.first), ("second", &self.second)] {
            shape("adamw", name, t, n)?;
            f32("adamw", name, t)?;
        }
        shape("adamw", "norm", &self.norm, [1])?;
        f32("adamw", "norm", &self.norm)
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
            Device::Launch(gpu) => {
                let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
                let Constants { keep, beta2, rest1, rest2, rate, root, eps, scale } = Constants::of(&self.step);
                let n = self.value.shape.elements();
                let arguments = AdamWArgs {
                    value: at.of(&self.value)?,
                    gradient: at.of(&self.gradient)?,
                    first: at.of(&self.first)?,
                    second: at.of(&self.second)?,
                    norm: at.of(&self.norm)?,
                    shadow: gpu.shadow(&self.value)?,
                    n: n as i64,
                    max_norm: self.max_norm.unwrap_or(-1.0),
                    keep,
                    rest1,
                    beta2,
                    rest2,
                    rate,
                    root,
                    eps,
                    gradient_scale: scale,
                };
                // SAFETY: all four buffers have n numbers, the norm one, and a shadow as many as its master.
                unsafe { gpu.launch("adamw", &plan(n), &arguments) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_a_thread_for_each_element_up_to_a_limit() {
        for (n, blocks) in [(0, 0), (1, 1), (256, 1), (257, 2), (1 << 30, 1 << 20)] {
            assert_eq!(plan(n).grid, [blocks, 1, 1]);
        }
    }
}
