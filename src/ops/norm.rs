//! `norm`: y_i = (x_i - mean) / sqrt(var + eps) * w + b (layer), or x_i / sqrt(mean(x^2) + eps) * w (RMS).
//!
//! Specification: `host/norm.rs`. Rounding points: the normalised row before the weight (RMS only, as
//! Qwen3VLTextRMSNorm does), and y.

use super::{Gradient, Op, indices, open_trained, require, shape, trained, weight_shape, whole};
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
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}

/// The gradients of [`Norm`]: dy [R, D] adds to dx [T, D] and to those of trained parameters.
#[derive(Debug, Clone)]
pub struct NormBackward {
    pub forward: Norm,
    pub dy: Tensor,
    pub dx: Option<Gradient>,
}

impl Op for NormBackward {
    fn name(&self) -> &'static str {
        "norm_backward"
    }

    fn contract(&self) -> Result<()> {
        shape("norm_backward", "dy", &self.dy, self.forward.y.shape)?;
        self.dx.iter().try_for_each(|dx| shape("norm_backward", "dx", &dx.tensor, self.forward.x.shape))
    }

    fn inputs(&self) -> Vec<Tensor> {
        let rows = self.forward.rows;
        [self.forward.x, self.dy].into_iter().chain(rows).collect()
    }

    fn outputs(&self) -> Vec<Tensor> {
        self.dx.iter().map(|dx| dx.tensor).chain(trained(self.forward.weights())).collect()
    }

    fn weights(&self) -> Vec<&Weight> {
        self.forward.weights()
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let Norm { x, rows, kind, eps, precision, .. } = &self.forward;
                let weights = self.weights();
                let mut lent = memory.borrow(&self.inputs(), &weights, &self.outputs())?;
                let width = x.shape.width();
                let (x, dy) = (lent.f32(*x)?, lent.f32(self.dy)?);
                let rows = rows.map(|r| lent.i32(r)).transpose()?;
                let values = weights.iter().map(|w| lent.values(w, *precision)).collect::<Result<Vec<_>>>()?;
                let (weight, bias, kind) = match kind {
                    Kind::Layer { weight, bias } => {
                        (weight, Some(bias), host::norm::Kind::Layer { weight: &values[0], bias: &values[1] })
                    }
                    Kind::Rms { weight } => (weight, None, host::norm::Kind::Rms { weight: &values[0] }),
                };
                let mut dx = self.dx.map(|dx| dx.open(&mut lent)).transpose()?;
                let mut dweight = open_trained(&mut lent, Some(weight))?;
                let mut dbias = open_trained(&mut lent, bias)?;
                let frozen = dweight.is_none() && dbias.is_none();
                match (&mut dx, rows) {
                    // rows that are apart from each other, and nothing shared between them
                    (Some(dx), None) if frozen => {
                        let rows = x.par_chunks_exact(width).zip(dy.par_chunks_exact(width));
                        let rows = rows.zip(dx.values().par_chunks_exact_mut(width)).with_min_len(64);
                        rows.for_each(|((x, dy), dx)| {
                            host::norm::row_backward(x, kind, *eps, dy, dx, &mut host::norm::Gradients::default())
                        });
                    }
                    _ => {
                        let mut nowhere = Vec::new();
                        let dx = match &mut dx {
                            Some(dx) => dx.values(),
                            None => {
                                nowhere.resize(x.len(), 0.0);
                                &mut nowhere
                            }
                        };
                        let gradients = host::norm::Gradients {
                            dweight: dweight.as_mut().map(|g| g.values()),
                            dbias: dbias.as_mut().map(|g| g.values()),
                        };
                        host::norm::norm_backward(&x, width, rows, kind, *eps, &dy, dx, gradients);
                    }
                }
                [dx, dweight, dbias].into_iter().flatten().for_each(|g| g.close());
                Ok(())
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}
