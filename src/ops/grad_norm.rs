//! `grad_norm`: the length of all gradients together. Specification: `host/grad_norm.rs`: sums of squares in f64, in a
//! fixed order.

use super::{Op, require, shape};
use crate::base::{DType, Result};
use crate::device::Device;
use crate::host;
use crate::tensor::Tensor;

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
        let dtype = self.gradients.dtype;
        require("grad_norm", "gradients", dtype == DType::F32, || "f32".into(), &dtype)?;
        shape("grad_norm", "norm", &self.norm, [1])
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.gradients]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.norm]
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &[], &self.outputs())?;
                let norm = host::grad_norm::grad_norm(&[&*lent.f32(self.gradients)?]);
                lent.output(self.norm)?.fill(|to| to[0] = norm as f32)
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}
