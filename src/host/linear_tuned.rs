//! The linear that the host device runs: panels of weight rows through a matrix product (or dot products for a few
//! rows of x), then one pass over the rows of y for bias, activation and residual. Tested against [`super::linear`].
//!
//! A weight stays in its file; a panel of it is widened just before it is multiplied. How x or the weight is cut follows
//! from the shape alone, so that results do not depend on the number of threads.

use super::gemm::{View, gemm};
use super::linear::Activation;
use super::math;
use crate::base::dtype::{self, DType, Precision};
use multiversion::multiversion;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Parts that a product is cut into, where each is large enough: x is packed again for each panel of the weight, and the
/// weight for each block of rows, so the fewer parts the better, as long as there is one for every core.
const PARTS: usize = 4;
/// Weight rows of one panel at the most.
const PANEL: usize = 768;
/// Rows of x of one block at the most.
const ROWS: usize = 512;
/// Elements of a panel that has to be widened: they should stay in a cache.
const WIDENED: usize = 1 << 20;
/// Up to this many rows of x, dot products beat packing the weight for a matrix product.
const FEW_ROWS: usize = 6;
/// Weight rows of one panel of dot products.
const DOT_PANEL: usize = 128;
/// Elements of one piece of element-wise work.
pub(super) const ELEMENTS: usize = 1 << 13;

/// A stored matrix [rows, columns], row-major, of a floating type.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub dtype: DType,
    pub bytes: &'a [u8],
    pub rows: usize,
    pub columns: usize,
    pub precision: Precision,
}

impl<'a> Matrix<'a> {
    /// Some of its rows in f32.
    pub fn panel(&self, rows: Range<usize>) -> Cow<'a, [f32]> {
        dtype::widened(self.dtype, self.panel_bytes(rows), self.precision)
    }

    /// Some of its rows and columns in f32, and the distance between the rows of what is returned.
    pub fn block(&self, rows: Range<usize>, columns: Range<usize>) -> (Cow<'a, [f32]>, usize) {
        if (self.dtype, self.precision) == (DType::F32, Precision::F32)
            && let Ok(values) = bytemuck::try_cast_slice(self.bytes)
        {
            return (Cow::Borrowed(&values[rows.start * self.columns + columns.start..]), self.columns);
        }
        let (size, width) = (self.dtype.bytes(), columns.len());
        let mut block = vec![0.0; rows.len() * width];
        for (row, out) in rows.zip(block.chunks_exact_mut(width)) {
            let at = (row * self.columns + columns.start) * size;
            out.copy_from_slice(&dtype::widened(self.dtype, &self.bytes[at..at + width * size], self.precision));
        }
        (Cow::Owned(block), width)
    }

    /// Whether it can be read as it is stored.
    fn is_f32(&self) -> bool {
        (self.dtype, self.precision) == (DType::F32, Precision::F32)
            && bytemuck::try_cast_slice::<u8, f32>(self.bytes).is_ok()
    }

    fn panel_bytes(&self, rows: Range<usize>) -> &'a [u8] {
        let row = self.columns * self.dtype.bytes();
        &self.bytes[rows.start * row..rows.end * row]
    }
}

/// Columns of y that come from one weight.
pub struct Segment<'a> {
    pub weight: Matrix<'a>,
    pub bias: Option<Cow<'a, [f32]>>,
    pub low_rank: Option<LowRank<'a>>,
}

/// A LoRA pair: s = x A^T is kept in columns of `s`, B adds scale * s B^T. With `keep` [m, k], the factors of a dropout,
/// A reads x times them.
pub struct LowRank<'a> {
    pub a: Matrix<'a>,
    pub b: Matrix<'a>,
    pub scale: f32,
    pub s_column: usize,
    pub keep: Option<Vec<f32>>,
}

impl LowRank<'_> {
    /// What A reads.
    pub(super) fn input<'x>(&self, x: &'x [f32]) -> Cow<'x, [f32]> {
        match &self.keep {
            None => Cow::Borrowed(x),
            Some(keep) => {
                let mut kept = vec![0.0; x.len()];
                let pieces = kept.par_chunks_mut(ELEMENTS).zip(x.par_chunks(ELEMENTS)).zip(keep.par_chunks(ELEMENTS));
                pieces.for_each(|((y, x), keep)| {
                    y.iter_mut().zip(x.iter().zip(keep)).for_each(|(y, (x, keep))| *y = x * keep)
                });
                Cow::Owned(kept)
            }
        }
    }
}

/// x [m, k]; the segments' columns side by side in rows of y; s [m, `s_stride`] receives x A^T of every adapter, stored
/// in the precision of A. With `add`, y holds the residual.
#[allow(clippy::too_many_arguments, reason = "the operands of one product")]
pub fn linear(
    x: &[f32],
    k: usize,
    segments: &[Segment],
    s: &mut [f32],
    s_stride: usize,
    activation: Activation,
    y: &mut [f32],
    add: bool,
) {
    let m = x.len().checked_div(k).unwrap_or(0);
    if m == 0 {
        return;
    }
    for l in segments.iter().filter_map(|seg| seg.low_rank.as_ref()) {
        for panel in products(&l.input(x), m, &[(&l.a, None)]) {
            for (s, block) in s.chunks_exact_mut(s_stride).zip(panel.block.chunks_exact(panel.rows.len())) {
                for (s, v) in s[l.s_column + panel.rows.start..].iter_mut().zip(block) {
                    *s = l.a.precision.round(*v);
                }
            }
        }
    }
    let n: usize = segments.iter().map(|seg| seg.weight.rows).sum();
    let packs_less = pays_by_rows(m, k, n) && segments.iter().all(|seg| seg.weight.is_f32());
    if packs_less && !(add && activation != Activation::None) {
        return by_rows(x, k, segments, s, s_stride, activation, y, add);
    }
    let parts: Vec<_> =
        segments.iter().map(|seg| (&seg.weight, seg.low_rank.as_ref().map(|l| (l, &*s, s_stride)))).collect();
    let panels = products(x, m, &parts);
    let row = |(i, y): (usize, &mut [f32])| {
        let mut column = 0;
        for panel in &panels {
            let width = panel.rows.len();
            let block = &panel.block[i * width..][..width];
            let bias = segments[panel.part].bias.as_ref().map(|b| &b[panel.rows.clone()]);
            finish(block, bias, activation, &mut y[column..column + width], add);
            column += width;
        }
    };
    if m * n < 1 << 16 {
        y.chunks_exact_mut(n).enumerate().for_each(row);
    } else {
        y.par_chunks_exact_mut(n).enumerate().for_each(row);
    }
}

/// Whether cutting x into rows costs less than cutting the weight into panels, in elements that are packed (and, for
/// panels, put together again), for two threads. A rule of the shape alone, so that the number of threads changes no
/// result.
fn pays_by_rows(m: usize, k: usize, n: usize) -> bool {
    m > 64 && (m + 2 * n) * k < (2 * m + n) * k + m * n
}

/// [`linear`] where each task owns some rows of y and reads all weights, which are stored in f32.
#[allow(clippy::too_many_arguments, reason = "the operands of one product")]
fn by_rows(
    x: &[f32],
    k: usize,
    segments: &[Segment],
    s: &[f32],
    s_stride: usize,
    activation: Activation,
    y: &mut [f32],
    add: bool,
) {
    let n: usize = segments.iter().map(|seg| seg.weight.rows).sum();
    let rows = (x.len() / k).div_ceil(PARTS).clamp(32, ROWS);
    y.par_chunks_mut(rows * n).enumerate().for_each(|(i, y)| {
        let m = y.len() / n;
        let x = View::rows(&x[i * rows * k..], k);
        let mut column = 0;
        for seg in segments {
            let (w, width) = (seg.weight.panel(0..seg.weight.rows), seg.weight.rows);
            let beta = if add { 1.0 } else { 0.0 };
            gemm(m, k, width, 1.0, x, View::transposed(&w, k), beta, &mut y[column..], n);
            if let Some(l) = &seg.low_rank {
                let (b, rank) = (l.b.panel(0..width), l.b.columns);
                let s = View::rows(&s[i * rows * s_stride + l.s_column..], s_stride);
                gemm(m, rank, width, l.scale, s, View::transposed(&b, rank), 1.0, &mut y[column..], n);
            }
            if let Some(bias) = &seg.bias {
                for y in y.chunks_exact_mut(n) {
                    y[column..column + width].iter_mut().zip(&bias[..]).for_each(|(y, b)| *y += *b);
                }
            }
            column += width;
        }
        apply(activation, y);
    });
}

/// y = act(block + bias) (+ y).
fn finish(block: &[f32], bias: Option<&[f32]>, activation: Activation, y: &mut [f32], add: bool) {
    if activation == Activation::None {
        match (bias, add) {
            (None, false) => y.copy_from_slice(block),
            (None, true) => y.iter_mut().zip(block).for_each(|(y, v)| *y += *v),
            (Some(bias), false) => y.iter_mut().zip(block.iter().zip(bias)).for_each(|(y, (v, b))| *y = *v + *b),
            (Some(bias), true) => y.iter_mut().zip(block.iter().zip(bias)).for_each(|(y, (v, b))| *y += *v + *b),
        }
        return;
    }
    let mut sum = block.to_vec();
    if let Some(bias) = bias {
        sum.iter_mut().zip(bias).for_each(|(v, b)| *v += *b);
    }
    apply(activation, &mut sum);
    if add {
        y.iter_mut().zip(&sum).for_each(|(y, v)| *y += *v);
    } else {
        y.copy_from_slice(&sum);
    }
}

fn apply(activation: Activation, z: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::GeluTanh => math::gelu_tanh(z),
        other => z.iter_mut().for_each(|z| *z = other.apply(*z)),
    }
}

/// y = act(z), where z was kept for backward: z is what [`linear`] gives without the activation.
pub fn activate(activation: Activation, z: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(ELEMENTS).zip(z.par_chunks(ELEMENTS)).for_each(|(y, z)| {
        y.copy_from_slice(z);
        apply(activation, y);
    });
}

struct Panel {
    part: usize,
    rows: Range<usize>,
    /// [m, rows.len()]
    block: Vec<f32>,
}

type Part<'a> = (&'a Matrix<'a>, Option<(&'a LowRank<'a>, &'a [f32], usize)>);

/// x W^T + scale s B^T for the rows of every weight, in panels, in order.
fn products(x: &[f32], m: usize, parts: &[Part]) -> Vec<Panel> {
    let n: usize = parts.iter().map(|(weight, _)| weight.rows).sum();
    let fair = n.div_ceil(PARTS).clamp(64, PANEL);
    let mut panels = Vec::new();
    for (part, (weight, _)) in parts.iter().enumerate() {
        let size = match weight.is_f32() {
            _ if m <= FEW_ROWS => DOT_PANEL,
            true => fair,
            false => fair.min((WIDENED / weight.columns.max(1)).max(64)),
        };
        // panels of equal size, so that no last one is tiny
        let n = weight.rows.div_ceil(size).max(1);
        let cut = |i: usize| weight.rows * i / n;
        panels.extend((0..n).map(|i| Panel { part, rows: cut(i)..cut(i + 1), block: Vec::new() }));
    }
    let compute = |panel: &mut Panel| {
        let (weight, low_rank) = &parts[panel.part];
        panel.block = vec![0.0; m * panel.rows.len()];
        multiply(x, m, weight, panel.rows.clone(), &mut panel.block);
        if let Some((l, s, s_stride)) = low_rank {
            let b = l.b.panel(panel.rows.clone());
            let (rank, n) = (l.b.columns, panel.rows.len());
            let s = View::rows(&s[l.s_column..], *s_stride);
            gemm(m, rank, n, l.scale, s, View::transposed(&b, rank), 1.0, &mut panel.block, n);
        }
    };
    let work: usize = parts.iter().map(|(w, _)| m * w.rows * w.columns).sum();
    if work < 1 << 15 {
        panels.iter_mut().for_each(compute);
    } else {
        panels.par_iter_mut().with_max_len(1).for_each(compute);
    }
    panels
}

fn multiply(x: &[f32], m: usize, weight: &Matrix, rows: Range<usize>, block: &mut [f32]) {
    let (k, n) = (weight.columns, rows.len());
    if m > FEW_ROWS {
        let panel = weight.panel(rows);
        return gemm(m, k, n, 1.0, View::rows(x, k), View::transposed(&panel, k), 0.0, block, n);
    }
    if weight.dtype == DType::Bf16
        && let Ok(panel) = bytemuck::try_cast_slice(weight.panel_bytes(rows.clone()))
    {
        return dots_bf16(x, panel, k, n, block);
    }
    if weight.is_f32() {
        return dots(x, &weight.panel(rows), k, n, block);
    }
    for (j, row) in rows.enumerate() {
        let w = weight.panel(row..row + 1);
        for (i, x) in x.chunks_exact(k).enumerate() {
            dots(x, &w, k, 1, &mut block[i * n + j..][..1]);
        }
    }
}

/// block[i, j] = x_i . w_j, in 64 partial sums.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn dots(x: &[f32], w: &[f32], k: usize, n: usize, block: &mut [f32]) {
    for (j, w) in w.chunks_exact(k).enumerate() {
        for (i, x) in x.chunks_exact(k).enumerate() {
            let mut sums = [0.0f32; 64];
            let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<64>(), x.as_chunks::<64>());
            for (w, x) in w.iter().zip(x) {
                for l in 0..64 {
                    sums[l] += w[l] * x[l];
                }
            }
            let rest: f32 = w_rest.iter().zip(x_rest).map(|(w, x)| w * x).sum();
            block[i * n + j] = fold(&sums) + rest;
        }
    }
}

/// [`dots`] with the weight in bf16, widened on the way.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn dots_bf16(x: &[f32], w: &[u16], k: usize, n: usize, block: &mut [f32]) {
    for (j, w) in w.chunks_exact(k).enumerate() {
        for (i, x) in x.chunks_exact(k).enumerate() {
            let mut sums = [0.0f32; 64];
            let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<64>(), x.as_chunks::<64>());
            for (w, x) in w.iter().zip(x) {
                for l in 0..64 {
                    sums[l] += f32::from_bits((w[l] as u32) << 16) * x[l];
                }
            }
            let rest: f32 = w_rest.iter().zip(x_rest).map(|(w, x)| f32::from_bits((*w as u32) << 16) * x).sum();
            block[i * n + j] = fold(&sums) + rest;
        }
    }
}

#[inline(always)]
fn fold(sums: &[f32; 64]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for quarter in sums.as_chunks::<16>().0 {
        for (l, s) in lanes.iter_mut().zip(quarter) {
            *l += *s;
        }
    }
    lanes.iter().sum()
}
