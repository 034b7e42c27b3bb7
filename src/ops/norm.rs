//! `norm`: y_i = (x_i - mean) / sqrt(var + eps) * w + b (layer), or x_i / sqrt(mean(x^2) + eps) * w (RMS).
//!
//! Specification: `host/norm.rs`; kernels: `cuda/norm.cu`. Rounding points: the normalised row before the weight (RMS
//! only, as Qwen3VLTextRMSNorm does), and y.

use super::{Gradient, Op, bf16, indices, open_trained, require, shape, trained, weight_shape, whole};
use crate::base::{DType, Precision, Result};
use crate::device::{Accumulate, Addresses, Device, Facts, Launch, Memory};
use crate::host;
use crate::tensor::{Tensor, Weight};
use rayon::prelude::*;

crate::arguments! {
    /// `NormArgs` of `cuda/norm.cu`.
    #[derive(Default)]
    pub struct NormArgs {
        x: u64,
        rows: u64,
        weight: u64,
        bias: u64,
        y: u64,
        n_rows: i64,
        d: i32,
        eps: f32,
    }
}

crate::arguments! {
    /// `NormBackwardArgs` of `cuda/norm.cu`.
    pub struct NormBackwardArgs {
        x: u64,
        rows: u64,
        weight: u64,
        dy: u64,
        dx: u64,
        stats: u64,
        partial: u64,
        dweight: u64,
        dbias: u64,
        n_rows: i64,
        n_chunks: i32,
        d: i32,
        layer: i32,
        add: i32,
        eps: f32,
        pad: i32,
    }
}

/// Rows of a block: a warp each.
const ROWS: usize = 4;
/// Rows of one partial sum of the parameters' gradients, and columns of a block there.
const CHUNK: usize = 64;
const COLUMNS: usize = 128;

/// A kernel that gives each row a warp.
fn plan_rows(kernel: &'static str, n_rows: usize) -> Launch {
    Launch::of(kernel, n_rows.div_ceil(ROWS) as u32, 32 * ROWS as u32)
}

/// The two stages of the parameters' gradients: columns times chunks of rows, then columns.
fn plan_parameters(n_rows: usize, d: usize) -> [Launch; 2] {
    let (columns, chunks) = (d.div_ceil(COLUMNS) as u32, n_rows.div_ceil(CHUNK) as u32);
    let first = Launch { grid: [columns, chunks, 1], ..Launch::of("norm_bwd_dw_bf16", 1, COLUMNS as u32) };
    [first, Launch::of("norm_bwd_dw_sum_f32", columns, COLUMNS as u32)]
}

/// Which norm, with its parameters [D].
#[derive(Debug, Clone)]
pub enum Kind {
    Layer { weight: Weight, bias: Weight },
    Rms { weight: Weight },
}

impl Kind {
    /// Weight, and bias where there is one.
    fn parameters(&self) -> (&Weight, Option<&Weight>) {
        match self {
            Kind::Layer { weight, bias } => (weight, Some(bias)),
            Kind::Rms { weight } => (weight, None),
        }
    }
}

/// x [T, D] becomes y [R, D]; R = T, or the rows that `rows` [R] (i32) names, in that order, a row at most once.
#[derive(Debug, Clone)]
pub struct Norm {
    pub x: Tensor,
    pub rows: Option<Tensor>,
    pub kind: Kind,
    pub eps: f32,
    pub precision: Precision,
    pub y: Tensor,
}

impl Norm {
    pub(super) fn arguments(&self, at: &Addresses) -> Result<NormArgs> {
        let (weight, bias) = self.kind.parameters();
        Ok(NormArgs {
            x: at.of(&self.x)?,
            rows: at.of_optional(self.rows.as_ref())?,
            weight: at.weight(weight)?,
            bias: bias.map_or(Ok(0), |b| at.weight(b))?,
            y: at.of(&self.y)?,
            n_rows: self.y.shape.rows() as i64,
            d: self.x.shape.width() as i32,
            eps: self.eps,
        })
    }
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

    fn check(&self, memory: &Memory) -> Result<()> {
        let check = |rows| indices("norm", "rows", memory.indices(rows)?, self.x.shape.rows(), false);
        self.rows.as_ref().map_or(Ok(()), check)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &[self.y])?;
                let x = lent.f32(self.x)?;
                let rows = self.rows.map(|r| lent.i32(r)).transpose()?;
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
            Device::Launch(gpu) => {
                bf16("norm", &[&self.x, &self.y])?;
                let at = gpu.addresses(&self.inputs(), &self.weights(), &self.outputs())?;
                let arguments = self.arguments(&at)?;
                // SAFETY: y has n_rows rows of d, `check` found each row that is read in x, and the parameters have
                // d numbers: the contract.
                unsafe { gpu.launch("norm", &plan_rows("norm_fwd_bf16", self.y.shape.rows()), &arguments) }
            }
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

    fn scratch(&self, _facts: &Facts) -> Result<Vec<usize>> {
        // each row's statistics, and partial sums for each chunk of rows
        let trains = self.weights().iter().any(|w| w.as_trained().is_some());
        let (n_rows, d) = (self.dy.shape.rows(), self.forward.x.shape.width());
        let f32s = |n: usize| if trains { n * DType::F32.bytes() } else { 0 };
        Ok(vec![f32s(2 * n_rows), f32s(2 * n_rows.div_ceil(CHUNK) * d)])
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        self.forward.check(memory)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
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
            Device::Launch(gpu) => {
                let f = &self.forward;
                let dx = self.dx.iter().map(|dx| &dx.tensor);
                bf16("norm_backward", &[&f.x, &self.dy].into_iter().chain(dx).collect::<Vec<_>>())?;
                let at = gpu.addresses(&self.inputs(), &self.weights(), &self.outputs())?;
                let (weight, bias) = f.kind.parameters();
                let (n_rows, d) = (self.dy.shape.rows(), f.x.shape.width());
                let mut add = Accumulate::Overwrite;
                if let Some(dx) = &self.dx {
                    add = dx.accumulate;
                    // rows that are not named have no gradient
                    if add == Accumulate::Overwrite && f.rows.is_some() {
                        gpu.memory.zero(dx.tensor)?;
                    }
                }
                let (dweight, dbias) = (at.gradient(weight)?, bias.map_or(Ok(0), |b| at.gradient(b))?);
                let trains = dweight != 0 || dbias != 0;
                let chunks = n_rows.div_ceil(CHUNK);
                let [stats, partial] = gpu.scratch(&self.scratch(gpu.facts())?)?;
                let arguments = NormBackwardArgs {
                    x: at.of(&f.x)?,
                    rows: at.of_optional(f.rows.as_ref())?,
                    weight: at.weight(weight)?,
                    dy: at.of(&self.dy)?,
                    dx: at.of_optional(self.dx.as_ref().map(|dx| &dx.tensor))?,
                    stats: if trains { stats } else { 0 },
                    partial: if trains { partial } else { 0 },
                    dweight,
                    dbias,
                    n_rows: n_rows as i64,
                    n_chunks: chunks as i32,
                    d: d as i32,
                    layer: bias.is_some() as i32,
                    add: (add == Accumulate::Add) as i32,
                    eps: f.eps,
                    pad: 0,
                };
                // SAFETY: as in the forward; dx has x's shape, the gradients d numbers, and the scratch memory 2 numbers a
                // row and 2 d a chunk.
                unsafe {
                    gpu.launch("norm_backward", &plan_rows("norm_bwd_dx_bf16", n_rows), &arguments)?;
                    for launch in plan_parameters(n_rows, d).iter().filter(|_| trains) {
                        gpu.launch("norm_backward", launch, &arguments)?;
                    }
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_cover_all_rows_and_columns() {
        assert!(plan_rows("k", 0).is_empty());
        for (n, blocks) in [(1, 1), (4, 1), (5, 2), (8448, 2112)] {
            assert_eq!(plan_rows("k", n), Launch { kernel: "k", grid: [blocks, 1, 1], block: 128, shared_bytes: 0 });
        }
        for (n, d, grid) in [(1, 1, [1, 1, 1]), (64, 128, [1, 1, 1]), (65, 129, [2, 2, 1]), (8448, 4096, [32, 132, 1])]
        {
            let [first, second] = plan_parameters(n, d);
            assert_eq!((first.grid, second.grid), (grid, [grid[0], 1, 1]), "{n} {d}");
        }
    }
}
