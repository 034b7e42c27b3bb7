//! `norm`: y_i = (x_i - mean) / sqrt(var + eps) * w + b (layer), or x_i / sqrt(mean(x^2) + eps) * w (RMS).
//!
//! Specification: `host/norm.rs`. Rounding points: the normalised row before the weight (RMS only, as
//! Qwen3VLTextRMSNorm does), and y.

use super::{Op, indices, require, shape, weight_shape, whole};
use crate::base::{Precision, Result};
use crate::device::Device;
use crate::host;
use crate::tensor::{Tensor, Weight};
use rayon::prelude::*;

/// Which norm, with its parameters [D].
#[derive(Debug, Clone)]
pub enum Kind {
    Layer { weight: Weight, bias: Weight },
    Rms { weight: Weight },
}

/// x [T, D] becomes y [R, D]; R = T, or the rows that `rows` [R] (i32) names, in that order.
#[derive(Debug, Clone)]
pub struct Norm {
    pub x: Tensor,
    pub rows: Option<Tensor>,
    pub kind: Kind,
    pub eps: f32,
    pub precision: Precision,
    pub y: Tensor,
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn contract(&self) -> Result<()> {
        let d = self.x.shape.width();
        let rows = self.rows.map_or(self.x.shape.rows(), |r| r.shape.elements());
        shape("norm", "y", &self.y, [rows, d])?;
        if let Some(rows) = &self.rows {
            whole("norm", "rows", rows)?;
        }
        require("norm", "eps", self.eps > 0.0, || "a positive number".into(), &self.eps)?;
        self.weights().into_iter().try_for_each(|w| weight_shape("norm", "weight", w, [d]))
    }

    fn inputs(&self) -> Vec<Tensor> {
        std::iter::once(self.x).chain(self.rows).collect()
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.y]
    }

    fn weights(&self) -> Vec<&Weight> {
        match &self.kind {
            Kind::Layer { weight, bias } => vec![weight, bias],
            Kind::Rms { weight } => vec![weight],
        }
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &[self.y])?;
                let x = lent.f32(self.x)?;
                let rows = self.rows.map(|r| lent.i32(r)).transpose()?;
                if let Some(rows) = rows {
                    indices("norm", "rows", rows, self.x.shape.rows(), false)?;
                }
                let weights = self.weights();
                let values = weights.iter().map(|w| lent.values(w, self.precision)).collect::<Result<Vec<_>>>()?;
                let kind = match self.kind {
                    Kind::Layer { .. } => host::norm::Kind::Layer { weight: &values[0], bias: &values[1] },
                    Kind::Rms { .. } => host::norm::Kind::Rms { weight: &values[0] },
                };
                let width = self.x.shape.width();
                lent.output(self.y)?.fill(|y| {
                    y.par_chunks_exact_mut(width).with_min_len(64).enumerate().for_each(|(i, y)| {
                        let at = rows.map_or(i, |r| r[i] as usize);
                        host::norm::row(&x[at * width..][..width], kind, self.eps, self.precision, y);
                    })
                })
            }
        }
    }
}
