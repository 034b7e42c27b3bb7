//! `linear`: y = act(x W^T + b + scale (x A^T) B^T) + residual, for several weights that share x.
//!
//! Specification: `host/linear.rs`; what the host device runs: `host/linear_tuned.rs`. Rounding points: s = x A^T, and
//! y once at the end. Sums are f32.

use super::{Op, require, shape, weight_shape};
use crate::base::{Precision, Result};
use crate::device::{Borrowed, Device};
use crate::host::linear_tuned::{self, LowRank, Matrix};
use crate::tensor::{Tensor, Weight};

pub use crate::host::linear::Activation;

/// Columns of y that come from one weight [N, K], with its bias [N] and its adapter.
#[derive(Debug, Clone)]
pub struct Segment {
    pub weight: Weight,
    pub bias: Option<Weight>,
    pub adapter: Option<Adapter>,
}

/// A LoRA pair: A [R, K], B [N, R].
#[derive(Debug, Clone)]
pub struct Adapter {
    pub a: Weight,
    pub b: Weight,
    pub scale: f32,
}

/// x [M, K] becomes y [M, sum of N]. `s` [M, sum of R] keeps x A^T where a segment has an adapter.
#[derive(Debug, Clone)]
pub struct Linear {
    pub x: Tensor,
    pub segments: Vec<Segment>,
    pub activation: Activation,
    pub residual: Option<Tensor>,
    pub s: Option<Tensor>,
    pub precision: Precision,
    pub y: Tensor,
}

impl Linear {
    /// Sum of the segments' output widths.
    pub fn width(segments: &[Segment]) -> usize {
        segments.iter().map(|s| s.weight.shape().rows()).sum()
    }

    /// Sum of the adapters' ranks.
    pub fn rank(segments: &[Segment]) -> usize {
        segments.iter().filter_map(|s| s.adapter.as_ref()).map(|a| a.a.shape().rows()).sum()
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn contract(&self) -> Result<()> {
        let (m, k) = (self.x.shape.rows(), self.x.shape.width());
        require("linear", "segments", !self.segments.is_empty(), || "at least one weight".into(), &self.segments)?;
        for seg in &self.segments {
            let n = seg.weight.shape().rows();
            weight_shape("linear", "weight", &seg.weight, [n, k])?;
            if let Some(bias) = &seg.bias {
                weight_shape("linear", "bias", bias, [n])?;
            }
            if let Some(adapter) = &seg.adapter {
                let r = adapter.a.shape().rows();
                weight_shape("linear", "A", &adapter.a, [r, k])?;
                weight_shape("linear", "B", &adapter.b, [n, r])?;
            }
        }
        shape("linear", "y", &self.y, [m, Linear::width(&self.segments)])?;
        let rank = Linear::rank(&self.segments);
        require("linear", "s", self.s.is_some() == (rank > 0), || "s where there is an adapter".into(), &self.s)?;
        if let Some(s) = &self.s {
            shape("linear", "s", s, [m, rank])?;
        }
        self.residual.iter().try_for_each(|r| {
            require("linear", "residual", r.dtype == self.y.dtype, || format!("{}", self.y.dtype), &r.dtype)?;
            shape("linear", "residual", r, self.y.shape)
        })
    }

    fn inputs(&self) -> Vec<Tensor> {
        std::iter::once(self.x).chain(self.residual).collect()
    }

    fn outputs(&self) -> Vec<Tensor> {
        std::iter::once(self.y).chain(self.s).collect()
    }

    fn in_place(&self) -> Option<(Tensor, Tensor)> {
        self.residual.map(|r| (r, self.y))
    }

    fn weights(&self) -> Vec<&Weight> {
        self.segments
            .iter()
            .flat_map(|seg| {
                let adapter = seg.adapter.iter().flat_map(|a| [&a.a, &a.b]);
                std::iter::once(&seg.weight).chain(&seg.bias).chain(adapter)
            })
            .collect()
    }

    fn flops(&self) -> u64 {
        let (m, k) = (self.x.shape.rows() as u64, self.x.shape.width() as u64);
        let pair = |seg: &Segment| {
            let n = seg.weight.shape().rows() as u64;
            let r = seg.adapter.as_ref().map_or(0, |a| a.a.shape().rows() as u64);
            n * k + r * (n + k)
        };
        2 * m * self.segments.iter().map(pair).sum::<u64>()
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let residual = match &self.residual {
                    Some(r) if !memory.same_place(r, &self.y)? => Some(*r),
                    _ => None,
                };
                let inputs: Vec<_> = std::iter::once(self.x).chain(residual).collect();
                let mut lent = memory.borrow(&inputs, &self.weights(), &self.outputs())?;
                let x = lent.f32(self.x)?;
                let residual = residual.map(|r| lent.f32(r)).transpose()?;
                let segments = lent_segments(&lent, &self.segments, self.precision)?;
                let rank = Linear::rank(&self.segments);
                let k = self.x.shape.width();
                let mut s_values = Vec::new();
                let y = lent.output(self.y)?;
                let mut run = |y: &mut [f32], add| {
                    s_values = vec![0.0; self.s.map_or(0, |s| s.shape.elements())];
                    linear_tuned::linear(&x, k, &segments, &mut s_values, rank.max(1), self.activation, y, add);
                };
                match residual {
                    Some(residual) => y.fill(|y| {
                        y.copy_from_slice(&residual);
                        run(y, true);
                    })?,
                    None if self.residual.is_some() => y.update(|y| run(y, true))?,
                    None => y.fill(|y| run(y, false))?,
                }
                match self.s {
                    Some(s) => lent.output(s)?.fill(|s| s.copy_from_slice(&s_values)),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The segments as the host's products read them; adapters side by side in s, in order.
fn lent_segments<'w, 'a: 'w>(
    lent: &Borrowed<'a>,
    segments: &'w [Segment],
    precision: Precision,
) -> Result<Vec<linear_tuned::Segment<'w>>> {
    let mut s_column = 0;
    let mut segment = |seg: &'w Segment| {
        let low_rank = match &seg.adapter {
            Some(adapter) => {
                let (a, b) = (matrix(lent, &adapter.a, precision)?, matrix(lent, &adapter.b, precision)?);
                s_column += a.rows;
                Some(LowRank { a, b, scale: adapter.scale, s_column: s_column - a.rows })
            }
            None => None,
        };
        let bias = seg.bias.as_ref().map(|b| lent.values(b, precision)).transpose()?;
        Ok(linear_tuned::Segment { weight: matrix(lent, &seg.weight, precision)?, bias, low_rank })
    };
    segments.iter().map(&mut segment).collect()
}

/// A weight as the host's products read it.
pub(super) fn matrix<'w, 'a: 'w>(lent: &Borrowed<'a>, weight: &'w Weight, precision: Precision) -> Result<Matrix<'w>> {
    let (rows, columns) = (weight.shape().rows(), weight.shape().width());
    Ok(Matrix { dtype: weight.dtype(), bytes: lent.stored(weight)?, rows, columns, precision })
}
