//! `linear_loss`: the head and the cross-entropy of label rows, loss_i = -log softmax(x_i W^T)[label_i], and in the same
//! pass the gradient of scale * sum(loss), since the logits would have to be computed again in another.
//!
//! Specification: `host/linear_loss.rs`; what the host device runs: `host/linear_loss_tuned.rs`. Logits are never
//! stored; sums are f32 within a row's products and f64 over the vocabulary. Rounding point: dx.

use super::linear::matrix;
use super::{Op, indices, open_trained, require, shape, trained, weight_shape, whole};
use crate::base::{DType, Precision, Result};
use crate::device::Device;
use crate::host::linear_loss_tuned::{Gradients, linear_loss};
use crate::tensor::{Tensor, Weight};

/// x [R, D], head [V, D], labels [R] (i32), scale [1] (f32); losses [R] (f32), and dx [R, D] where gradients are
/// wanted.
#[derive(Debug, Clone)]
pub struct LinearLoss {
    pub x: Tensor,
    pub head: Weight,
    pub labels: Tensor,
    pub scale: Tensor,
    pub precision: Precision,
    pub losses: Tensor,
    pub dx: Option<Tensor>,
}

impl Op for LinearLoss {
    fn name(&self) -> &'static str {
        "linear_loss"
    }

    fn contract(&self) -> Result<()> {
        let (r, d) = (self.x.shape.rows(), self.x.shape.width());
        weight_shape("linear_loss", "head", &self.head, [self.head.shape().rows(), d])?;
        shape("linear_loss", "labels", &self.labels, [r])?;
        whole("linear_loss", "labels", &self.labels)?;
        shape("linear_loss", "scale", &self.scale, [1])?;
        shape("linear_loss", "losses", &self.losses, [r])?;
        let dtype = self.losses.dtype;
        require("linear_loss", "losses", dtype == DType::F32, || "f32".into(), &dtype)?;
        self.dx.iter().try_for_each(|dx| shape("linear_loss", "dx", dx, self.x.shape))
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.x, self.labels, self.scale]
    }

    fn outputs(&self) -> Vec<Tensor> {
        let gradient = if self.dx.is_some() { trained([&self.head]) } else { Vec::new() };
        std::iter::once(self.losses).chain(self.dx).chain(gradient).collect()
    }

    fn weights(&self) -> Vec<&Weight> {
        vec![&self.head]
    }

    fn flops(&self) -> u64 {
        let products = 1 + self.dx.is_some() as u64 * (1 + self.head.as_trained().is_some() as u64);
        2 * products * (self.x.shape.elements() * self.head.shape().rows()) as u64
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let (x, labels) = (lent.f32(self.x)?, lent.i32(self.labels)?);
                indices("linear_loss", "labels", labels, self.head.shape().rows(), false)?;
                let scale = lent.f32(self.scale)?[0];
                let head = matrix(&lent, &self.head, self.precision)?;
                let (k, mut losses) = (self.x.shape.width(), vec![0.0; labels.len()]);
                match self.dx {
                    Some(dx) => {
                        let mut dw = open_trained(&mut lent, Some(&self.head))?;
                        lent.output(dx)?.fill(|dx| {
                            dx.fill(0.0);
                            let gradients = Gradients { scale, dx, dw: dw.as_mut().map(|g| g.values()) };
                            linear_loss(&x, k, head, labels, &mut losses, Some(gradients));
                        })?;
                        dw.into_iter().for_each(|g| g.close());
                    }
                    None => linear_loss(&x, k, head, labels, &mut losses, None),
                }
                lent.output(self.losses)?.fill(|to| to.iter_mut().zip(&losses).for_each(|(to, l)| *to = *l as f32))
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}
