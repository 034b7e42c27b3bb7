//! `swiglu`: y = silu(gate) * up. Specification: `host/swiglu.rs`; kernels: `cuda/swiglu.cu`. Rounding point: y.

use super::{Gradient, Op, bf16, plan_pieces, shape};
use crate::base::Result;
use crate::device::{Accumulate, Device};
use crate::host;
use crate::tensor::Tensor;
use rayon::prelude::*;

crate::arguments! {
    /// `SwigluArgs` of `cuda/swiglu.cu`.
    pub struct SwigluArgs {
        gate_up: u64,
        y: u64,
        t: i64,
        f: i64,
    }
}

crate::arguments! {
    /// `SwigluBackwardArgs` of `cuda/swiglu.cu`.
    pub struct SwigluBackwardArgs {
        gate_up: u64,
        dy: u64,
        dgate_up: u64,
        t: i64,
        f: i64,
        add: i64,
    }
}

/// gate_up [T, 2F], gate first, becomes y [T, F].
#[derive(Debug, Clone)]
pub struct Swiglu {
    pub gate_up: Tensor,
    pub y: Tensor,
}

impl Op for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn contract(&self) -> Result<()> {
        let (t, f) = (self.y.shape.rows(), self.y.shape.width());
        shape("swiglu", "gate_up", &self.gate_up, [t, 2 * f])
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.gate_up]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.y]
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let gate_up = lent.f32(self.gate_up)?;
                let f = self.y.shape.width();
                lent.output(self.y)?.fill(|y| {
                    let rows = gate_up.par_chunks_exact(2 * f).zip(y.par_chunks_exact_mut(f));
                    rows.with_min_len(16).for_each(|(gu, y)| host::math::silu_times(&gu[..f], &gu[f..], y))
                })
            }
            Device::Launch(gpu) => {
                bf16("swiglu", &[&self.gate_up, &self.y])?;
                let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
                let (t, f) = (self.y.shape.rows(), self.y.shape.width());
                let (gate_up, y) = (at.of(&self.gate_up)?, at.of(&self.y)?);
                let arguments = SwigluArgs { gate_up, y, t: t as i64, f: f as i64 };
                // SAFETY: gate_up has t rows of 2 f, y of f: the contract.
                unsafe { gpu.launch("swiglu", &plan_pieces("swiglu_fwd_bf16", t, f), &arguments) }
            }
        }
    }
}

/// The gradient of [`Swiglu`]: dy [T, F] adds to dgate_up [T, 2F].
#[derive(Debug, Clone)]
pub struct SwigluBackward {
    pub forward: Swiglu,
    pub dy: Tensor,
    pub dgate_up: Gradient,
}

impl Op for SwigluBackward {
    fn name(&self) -> &'static str {
        "swiglu_backward"
    }

    fn contract(&self) -> Result<()> {
        shape("swiglu_backward", "dy", &self.dy, self.forward.y.shape)?;
        shape("swiglu_backward", "dgate_up", &self.dgate_up.tensor, self.forward.gate_up.shape)
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.forward.gate_up, self.dy]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.dgate_up.tensor]
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &[], &self.outputs())?;
                let (gate_up, dy) = (lent.f32(self.forward.gate_up)?, lent.f32(self.dy)?);
                let f = self.dy.shape.width();
                let mut d = self.dgate_up.open(&mut lent)?;
                let rows = gate_up.par_chunks_exact(2 * f).zip(dy.par_chunks_exact(f));
                let rows = rows.zip(d.values().par_chunks_exact_mut(2 * f)).with_min_len(16);
                rows.for_each(|((gu, dy), d)| {
                    let (dgate, dup) = d.split_at_mut(f);
                    host::math::silu_times_backward(&gu[..f], &gu[f..], dy, dgate, dup)
                });
                d.close();
                Ok(())
            }
            Device::Launch(gpu) => {
                let dgate_up = self.dgate_up.tensor;
                bf16("swiglu_backward", &[&self.forward.gate_up, &self.dy, &dgate_up])?;
                let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
                let (t, f) = (self.dy.shape.rows(), self.dy.shape.width());
                let arguments = SwigluBackwardArgs {
                    gate_up: at.of(&self.forward.gate_up)?,
                    dy: at.of(&self.dy)?,
                    dgate_up: at.of(&dgate_up)?,
                    t: t as i64,
                    f: f as i64,
                    add: (self.dgate_up.accumulate == Accumulate::Add) as i64,
                };
                // SAFETY: gate_up and its gradient have t rows of 2 f, dy of f: the contract.
                unsafe { gpu.launch("swiglu_backward", &plan_pieces("swiglu_bwd_bf16", t, f), &arguments) }
            }
        }
    }
}
