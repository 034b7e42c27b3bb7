//! `swiglu`: y = silu(gate) * up. Specification: `host/swiglu.rs`. Rounding point: y.

use super::{Op, shape};
use crate::base::Result;
use crate::device::Device;
use crate::host;
use crate::tensor::Tensor;
use rayon::prelude::*;

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
        }
    }
}
