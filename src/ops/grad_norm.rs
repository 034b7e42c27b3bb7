//! `grad_norm`: the length of all gradients together. Specification: `host/grad_norm.rs`: sums of squares in f64, in a
//! fixed order; kernels: `cuda/grad_norm.cu`.

use super::{Op, THREADS, f32, shape};
use crate::base::{DType, Result};
use crate::device::{Device, Facts, Launch};
use crate::host;
use crate::tensor::Tensor;

crate::arguments! {
    /// `GradNormArgs` of `cuda/grad_norm.cu`.
    pub struct GradNormArgs {
        gradients: u64,
        partial: u64,
        norm: u64,
        n: i64,
        n_chunks: i64,
    }
}

/// Gradients of one partial sum.
const CHUNK: usize = 1 << 14;

/// A block a chunk, then one for all.
fn plan(n: usize) -> [Launch; 2] {
    let first = Launch::of("grad_norm_fwd_f32", n.div_ceil(CHUNK) as u32, THREADS as u32);
    [first, Launch::of("grad_norm_fwd_sum_f32", 1, THREADS as u32)]
}

/// gradients [N] (f32) to norm [1] (f32).
#[derive(Debug, Clone)]
pub struct GradNorm {
    pub gradients: Tensor,
    pub norm: Tensor,
}

impl Op for GradNorm {
    fn name(&self) -> &'static str {
        "grad_norm"
    }

    fn contract(&self) -> Result<()> {
        f32("grad_norm", "gradients", &self.gradients)?;
        shape("grad_norm", "norm", &self.norm, [1])?;
        f32("grad_norm", "norm", &self.norm)
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.gradients]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.norm]
    }

    fn scratch(&self, _facts: &Facts) -> Result<Vec<usize>> {
        let [first, _] = plan(self.gradients.shape.elements());
        Ok(vec![first.grid[0] as usize * DType::F64.bytes()])
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &[], &self.outputs())?;
                let norm = host::grad_norm::grad_norm(&[&*lent.f32(self.gradients)?]);
                lent.output(self.norm)?.fill(|to| to[0] = norm as f32)
            }
            Device::Launch(gpu) => {
                let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
                let n = self.gradients.shape.elements();
                let [first, second] = plan(n);
                let n_chunks = first.grid[0];
                let [partial] = gpu.scratch(&self.scratch(gpu.facts())?)?;
                let (gradients, norm) = (at.of(&self.gradients)?, at.of(&self.norm)?);
                let arguments = GradNormArgs { gradients, partial, norm, n: n as i64, n_chunks: i64::from(n_chunks) };
                // SAFETY: there are n gradients, one norm, and scratch memory for a number a chunk.
                unsafe {
                    gpu.launch("grad_norm", &first, &arguments)?;
                    gpu.launch("grad_norm", &second, &arguments)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_has_a_block() {
        for (n, blocks) in [(0, 0), (1, 1), (CHUNK, 1), (CHUNK + 1, 2)] {
            let [first, second] = plan(n);
            assert_eq!((first.grid, second.grid), ([blocks, 1, 1], [1, 1, 1]));
        }
    }
}
