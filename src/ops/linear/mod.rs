//! `linear`: y = act(x W^T + b + scale (x A^T) B^T) + residual, for several weights that share x.
//!
//! Specification: `host/linear.rs`; what the host device runs: `host/linear_tuned.rs`; kernels: `cuda/linear.cu`,
//! `cuda/linear_backward.cu` and, on Hopper, `cuda/linear_sm90.cu`, `cuda/linear_gradient_sm90.cu` and
//! `cuda/linear_few_sm90.cu`, which [`plan`] chooses among and [`run`] launches; [`following`] has the words that a product does as well. Rounding points: s = x A^T, and y once at the end;
//! backward, dz of an activation and ds. Sums are f32. Behind a dropout A reads x times the factors of
//! `host/dropout.rs`, whose words each kernel draws for itself (`cuda/linear_dropout.cuh`).

pub mod arguments;
pub mod following;
mod launch;
pub mod plan;
mod plan_few;
mod plan_gradient;
mod plan_narrow;
mod plan_sm90;
pub(super) mod run;

use super::{Gradient, Op, indices, open_trained, require, shape, trained, weight_shape, whole};
use crate::base::{Precision, Result};
use crate::device::{Borrowed, Device, Facts, Memory};
use crate::host::linear_tuned::{self, LowRank, Matrix};
use crate::host::{self, linear_tuned_backward};
use crate::tensor::{Tensor, Weight};
use rayon::prelude::*;
use std::borrow::Cow;

pub use crate::host::dropout::Dropout;
pub use crate::host::linear::Activation;

/// Columns of y that come from one weight [N, K], with its bias [N] and its adapter.
#[derive(Debug, Clone)]
pub struct Segment {
    pub weight: Weight,
    pub bias: Option<Weight>,
    pub adapter: Option<Adapter>,
}

impl Segment {
    /// The weight, its bias, A and B.
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        let adapter = self.adapter.iter().flat_map(|a| [&a.a, &a.b]);
        std::iter::once(&self.weight).chain(&self.bias).chain(adapter)
    }
}

/// A LoRA pair: A [R, K], B [N, R]; where noise is given, A reads x after its dropout.
#[derive(Debug, Clone)]
pub struct Adapter {
    pub a: Weight,
    pub b: Weight,
    pub scale: f32,
    pub dropout: Option<Dropout>,
}

/// x [M, K] becomes y [M, sum of N]. `s` [M, sum of R] keeps x A^T where a segment has an adapter. With `rows` [M]
/// (i32) only those rows of x and of the residual are read, in that order; a row at most once. With `noise` [rows of x,
/// 2] (i32), the keys of its rows, adapters drop out; without, as in evaluation, they do not.
#[derive(Debug, Clone)]
pub struct Linear {
    pub x: Tensor,
    pub rows: Option<Tensor>,
    pub segments: Vec<Segment>,
    pub activation: Activation,
    pub residual: Option<Tensor>,
    pub noise: Option<Tensor>,
    pub s: Option<Tensor>,
    /// Keeps the sum before the activation, for its gradient.
    pub z: Option<Tensor>,
    pub precision: Precision,
    pub y: Tensor,
}

/// Kernels read 8 numbers of bf16 at a time, so the fast ones take ranks that are multiples of this; where one rank of
/// those that share x is none, the whole product runs number by number.
const RANKS: usize = 8;

/// The rank that a pair of `rank` is held with: rows of zeros below A and columns of zeros right of B change no result, and
/// have no gradients.
pub fn held_rank(rank: usize) -> usize {
    rank.next_multiple_of(RANKS)
}

impl Linear {
    /// Sum of the segments' output widths.
    pub fn width(segments: &[Segment]) -> usize {
        segments.iter().map(|s| s.weight.shape().rows()).sum()
    }

    /// Rows that are computed.
    fn m(&self) -> usize {
        self.rows.map_or(self.x.shape.rows(), |rows| rows.shape.elements())
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
        let (m, k) = (self.m(), self.x.shape.width());
        if let Some(rows) = &self.rows {
            whole("linear", "rows", rows)?;
        }
        if let Some(noise) = &self.noise {
            whole("linear", "noise", noise)?;
            shape("linear", "noise", noise, [self.x.shape.rows(), 2])?;
        }
        require("linear", "segments", !self.segments.is_empty(), || "at least one weight".into(), &self.segments)?;
        for seg in &self.segments {
            let n = seg.weight.shape().rows();
            // a tile of a kernel that sums nothing would store what its registers held
            require("linear", "weight", n > 0 && k > 0, || "rows and columns".into(), &seg.weight.shape())?;
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
        if let Some(z) = &self.z {
            shape("linear", "z", z, self.y.shape)?;
            let none = self.residual.is_none();
            require("linear", "z", none, || "no residual beside a kept sum".into(), &self.residual)?;
        }
        self.residual.iter().try_for_each(|r| {
            require("linear", "residual", r.dtype == self.y.dtype, || format!("{}", self.y.dtype), &r.dtype)?;
            shape("linear", "residual", r, [self.x.shape.rows(), self.y.shape.width()])
        })
    }

    fn inputs(&self) -> Vec<Tensor> {
        std::iter::once(self.x).chain(self.residual).chain(self.rows).chain(self.noise).collect()
    }

    fn outputs(&self) -> Vec<Tensor> {
        [Some(self.y), self.s, self.z].into_iter().flatten().collect()
    }

    fn in_place(&self) -> Option<(Tensor, Tensor)> {
        // rows that are left out, or in another order, cannot be taken over
        self.residual.filter(|_| self.rows.is_none()).map(|r| (r, self.y))
    }

    fn weights(&self) -> Vec<&Weight> {
        self.segments.iter().flat_map(Segment::weights).collect()
    }

    fn flops(&self) -> u64 {
        let (m, k) = (self.m() as u64, self.x.shape.width() as u64);
        let pair = |seg: &Segment| {
            let n = seg.weight.shape().rows() as u64;
            let r = seg.adapter.as_ref().map_or(0, |a| a.a.shape().rows() as u64);
            n * k + r * (n + k)
        };
        2 * m * self.segments.iter().map(pair).sum::<u64>()
    }

    fn scratch(&self, facts: &Facts) -> Result<Vec<usize>> {
        Ok(launch::forward_scratch(self, false, facts))
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        let check = |rows| indices("linear", "rows", memory.indices(rows)?, self.x.shape.rows(), false);
        self.rows.as_ref().map_or(Ok(()), check)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let residual = match &self.residual {
                    Some(r) if !memory.same_place(r, &self.y)? => Some(*r),
                    _ => None,
                };
                let inputs: Vec<_> =
                    std::iter::once(self.x).chain(residual).chain(self.rows).chain(self.noise).collect();
                let mut lent = memory.borrow(&inputs, &self.weights(), &self.outputs())?;
                let rows = self.rows.map(|rows| lent.i32(rows)).transpose()?;
                let x = gathered(lent.f32(self.x)?, self.x.shape.width(), rows);
                let residual = residual.map(|r| Ok(gathered(lent.f32(r)?, r.shape.width(), rows))).transpose()?;
                let segments = lent_segments(&lent, self, rows)?;
                let rank = Linear::rank(&self.segments);
                let k = self.x.shape.width();
                let mut s_values = vec![0.0; self.s.map_or(0, |s| s.shape.elements())];
                let mut z_values = Vec::new();
                let y = lent.output(self.y)?;
                let mut run = |y: &mut [f32], add| {
                    let (s, rank) = (&mut s_values, rank.max(1));
                    if self.z.is_none() {
                        return linear_tuned::linear(&x, k, &segments, s, rank, self.activation, y, add);
                    }
                    z_values = vec![0.0; y.len()];
                    linear_tuned::linear(&x, k, &segments, s, rank, Activation::None, &mut z_values, false);
                    linear_tuned::activate(self.activation, &z_values, y);
                };
                match residual {
                    Some(residual) => y.fill(|y| {
                        y.copy_from_slice(&residual);
                        run(y, true);
                    })?,
                    None if self.residual.is_some() => y.update(|y| run(y, true))?,
                    None => y.fill(|y| run(y, false))?,
                }
                for (tensor, values) in [(self.s, &s_values), (self.z, &z_values)] {
                    if let Some(tensor) = tensor {
                        lent.output(tensor)?.fill(|to| to.copy_from_slice(values))?;
                    }
                }
                Ok(())
            }
            Device::Launch(gpu) => launch::forward(self, None, gpu).map(|_| ()),
        }
    }
}

/// The gradients of [`Linear`]: dy [M, sum of N] adds to dx (of x's shape) and to those of trained weights. The
/// residual's gradient is dy itself; where only some rows were read, dy adds to those of `dresidual`.
#[derive(Debug, Clone)]
pub struct LinearBackward {
    pub forward: Linear,
    pub dy: Tensor,
    pub dx: Option<Gradient>,
    pub dresidual: Option<Gradient>,
}

impl Op for LinearBackward {
    fn name(&self) -> &'static str {
        "linear_backward"
    }

    fn contract(&self) -> Result<()> {
        let f = &self.forward;
        shape("linear_backward", "dy", &self.dy, f.y.shape)?;
        let kept = f.activation == Activation::None || f.z.is_some();
        require("linear_backward", "z", kept, || "the sum before the activation".into(), &f.z)?;
        if let Some(d) = &self.dresidual {
            let wanted = f.residual.filter(|_| f.rows.is_some()).map(|r| r.shape);
            let got = d.tensor.shape;
            require("linear_backward", "dresidual", wanted == Some(got), || format!("shape {wanted:?}"), &got)?;
        }
        self.dx.iter().try_for_each(|dx| shape("linear_backward", "dx", &dx.tensor, f.x.shape))
    }

    fn inputs(&self) -> Vec<Tensor> {
        let f = &self.forward;
        [f.x, self.dy].into_iter().chain(f.s).chain(f.z).chain(f.rows).chain(f.noise).collect()
    }

    fn outputs(&self) -> Vec<Tensor> {
        let gradients = self.dx.iter().chain(&self.dresidual).map(|g| g.tensor);
        gradients.chain(trained(self.forward.weights())).collect()
    }

    fn weights(&self) -> Vec<&Weight> {
        self.forward.weights()
    }

    fn flops(&self) -> u64 {
        let (m, k) = (self.dy.shape.rows() as u64, self.forward.x.shape.width() as u64);
        let wanted = |w: &Weight| w.as_trained().is_some() as u64;
        let of = |seg: &Segment| {
            let n = seg.weight.shape().rows() as u64;
            let dx = self.dx.is_some() as u64;
            // ds, its share of dx, dA and dB
            let pair = seg.adapter.as_ref().map_or(0, |a| a.a.shape().rows() as u64 * (n + dx * k + k + n));
            (dx + wanted(&seg.weight)) * n * k + pair
        };
        2 * m * self.forward.segments.iter().map(of).sum::<u64>()
    }

    fn scratch(&self, facts: &Facts) -> Result<Vec<usize>> {
        launch::backward_scratch(self, facts)
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        self.forward.check(memory)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let f = &self.forward;
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let rows = f.rows.map(|rows| lent.i32(rows)).transpose()?;
                let (x, dy) = (gathered(lent.f32(f.x)?, f.x.shape.width(), rows), lent.f32(self.dy)?);
                if let Some(d) = &self.dresidual {
                    let mut d = d.open(&mut lent)?;
                    scatter(&dy, self.dy.shape.width(), rows, d.values());
                    d.close();
                }
                let s = f.s.map(|s| lent.f32(s)).transpose()?.unwrap_or_default();
                let dz = match f.z {
                    Some(z) => {
                        let (z, mut dz) = (lent.f32(z)?, vec![0.0; dy.len()]);
                        linear_tuned_backward::activation_backward(f.activation, &z, &dy, f.precision, &mut dz);
                        dz.into()
                    }
                    None => dy,
                };
                let segments = lent_segments(&lent, f, rows)?;
                let mut dx = self.dx.map(|dx| dx.open(&mut lent)).transpose()?;
                let mut opened = Vec::new();
                for seg in &f.segments {
                    let (a, b) = seg.adapter.as_ref().map(|p| (&p.a, &p.b)).unzip();
                    for weight in [Some(&seg.weight), seg.bias.as_ref(), a, b] {
                        opened.push(open_trained(&mut lent, weight)?);
                    }
                }
                let mut gradients: Vec<_> = opened
                    .as_chunks_mut::<4>()
                    .0
                    .iter_mut()
                    .map(|four| {
                        let [dw, dbias, da, db] = four.each_mut().map(|g| g.as_mut().map(|g| g.values()));
                        linear_tuned_backward::Gradients { dw, dbias, da, db }
                    })
                    .collect();
                let (k, rank) = (f.x.shape.width(), Linear::rank(&f.segments).max(1));
                let mut apart = rows.filter(|_| dx.is_some()).map(|_| vec![0.0; x.len()]);
                let to = match &mut apart {
                    Some(apart) => Some(&mut apart[..]),
                    None => dx.as_mut().map(|g| g.values()),
                };
                linear_tuned_backward::linear_backward(&dz, &x, k, &segments, &s, rank, to, &mut gradients);
                if let (Some(apart), Some(dx)) = (&apart, &mut dx) {
                    scatter(apart, k, rows, dx.values());
                }
                opened.into_iter().chain([dx]).flatten().for_each(|g| g.close());
                Ok(())
            }
            Device::Launch(gpu) => launch::backward(self, gpu),
        }
    }
}

/// Some rows of x, or all as they are.
fn gathered<'a>(x: Cow<'a, [f32]>, width: usize, rows: Option<&[i32]>) -> Cow<'a, [f32]> {
    match rows {
        Some(rows) => rows.iter().flat_map(|r| &x[*r as usize * width..][..width]).copied().collect::<Vec<_>>().into(),
        None => x,
    }
}

/// Adds each row of `from` to its own of `to`.
fn scatter(from: &[f32], width: usize, rows: Option<&[i32]>, to: &mut [f32]) {
    for (from, row) in from.chunks_exact(width).zip(rows.unwrap_or_default()) {
        to[*row as usize * width..][..width].iter_mut().zip(from).for_each(|(to, from)| *to += *from);
    }
}

/// The factors of a dropout for every row that is read [M, K]; None where nothing drops out.
fn lent_factors(
    lent: &Borrowed,
    op: &Linear,
    rows: Option<&[i32]>,
    dropout: Option<Dropout>,
) -> Result<Option<Vec<f32>>> {
    let (Some(noise), Some(dropout)) = (op.noise, dropout) else { return Ok(None) };
    let (keys, k) = (lent.i32(noise)?.as_chunks::<2>().0, op.x.shape.width());
    let mut factors = vec![0.0; op.m() * k];
    factors.par_chunks_exact_mut(k).enumerate().for_each(|(i, row)| {
        let key = keys[rows.map_or(i, |rows| rows[i] as usize)];
        host::dropout::factors(dropout, key.map(|word| word as u32), row)
    });
    Ok(Some(factors))
}

/// The segments as the host's products read them; adapters side by side in s, in order.
fn lent_segments<'w, 'a: 'w>(
    lent: &Borrowed<'a>,
    op: &'w Linear,
    rows: Option<&[i32]>,
) -> Result<Vec<linear_tuned::Segment<'w>>> {
    let precision = op.precision;
    let mut s_column = 0;
    let mut segment = |seg: &'w Segment| {
        let low_rank = match &seg.adapter {
            Some(adapter) => {
                let (a, b) = (matrix(lent, &adapter.a, precision)?, matrix(lent, &adapter.b, precision)?);
                s_column += a.rows;
                let keep = lent_factors(lent, op, rows, adapter.dropout)?;
                Some(LowRank { a, b, scale: adapter.scale, s_column: s_column - a.rows, keep })
            }
            None => None,
        };
        let bias = seg.bias.as_ref().map(|b| lent.values(b, precision)).transpose()?;
        Ok(linear_tuned::Segment { weight: matrix(lent, &seg.weight, precision)?, bias, low_rank })
    };
    op.segments.iter().map(&mut segment).collect()
}

/// A weight as the host's products read it.
pub(super) fn matrix<'w, 'a: 'w>(lent: &Borrowed<'a>, weight: &'w Weight, precision: Precision) -> Result<Matrix<'w>> {
    let (rows, columns) = (weight.shape().rows(), weight.shape().width());
    Ok(Matrix { dtype: weight.dtype(), bytes: lent.stored(weight)?, rows, columns, precision })
}
