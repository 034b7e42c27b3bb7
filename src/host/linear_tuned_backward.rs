//! The gradients of [`super::linear_tuned`], as matrix products over blocks that one task each owns. Tested against
//! [`super::linear`].
//!
//! The sizes of blocks and the order within them are fixed, so that results do not depend on the number of threads.
//! A weight that stays in its file is widened once for each block of rows of dx.

use super::gemm::{View, gemm};
use super::linear::Activation;
use super::linear_tuned::{ELEMENTS, Segment};
use super::math;
use crate::base::Precision;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of one block of dx: enough that widening and packing the weight costs little.
const ROWS: usize = 512;
/// Columns of one block of dx: enough that packing dz costs little.
const COLUMNS: usize = 256;
/// Weight rows that are widened at a time.
const DEPTH: usize = 256;
/// Rows of one block of a weight's gradient, and of ds.
const GRADIENT_ROWS: usize = 192;

/// dz = act'(z) dy, stored in `precision`.
pub fn activation_backward(activation: Activation, z: &[f32], dy: &[f32], precision: Precision, dz: &mut [f32]) {
    let pieces = dz.par_chunks_mut(ELEMENTS).zip(dy.par_chunks(ELEMENTS)).zip(z.par_chunks(ELEMENTS));
    pieces.for_each(|((dz, dy), z)| match activation {
        Activation::GeluTanh => {
            math::gelu_tanh_backward(z, dy, dz);
            dz.iter_mut().for_each(|dz| *dz = precision.round(*dz));
        }
        other => super::linear::activation_backward(other, z, dy, precision, dz),
    });
}

/// Where the gradients of one segment's parameters are added: dw [n, k], dbias [n], da [rank, k], db [n, rank]; None for
/// what is frozen.
#[derive(Default)]
pub struct Gradients<'a> {
    pub dw: Option<&'a mut [f32]>,
    pub dbias: Option<&'a mut [f32]>,
    pub da: Option<&'a mut [f32]>,
    pub db: Option<&'a mut [f32]>,
}

/// dz [m, sum of n] holds the segments' columns side by side: the gradient of what [`super::linear_tuned::linear`] sums
/// before its activation (and of its residual). x [m, k] is read for dw and da, s [m, `s_stride`] is what forward
/// kept. ds = scale dz B is stored in the precision of B. dx [m, k], where it is wanted, and each gradient are added to.
#[allow(clippy::too_many_arguments, reason = "the operands of one product")]
pub fn linear_backward(
    dz: &[f32],
    x: &[f32],
    k: usize,
    segments: &[Segment],
    s: &[f32],
    s_stride: usize,
    dx: Option<&mut [f32]>,
    gradients: &mut [Gradients],
) {
    let n: usize = segments.iter().map(|seg| seg.weight.rows).sum();
    let m = dz.len() / n;
    if m == 0 {
        return;
    }
    let columns: Vec<usize> =
        segments.iter().scan(0, |at, seg| Some(std::mem::replace(at, *at + seg.weight.rows))).collect();
    let ds = low_rank_rows(dz, n, segments, &columns, s_stride, m);
    if let Some(dx) = dx {
        add_dx(dz, n, k, segments, &columns, &ds, s_stride, dx);
    }
    add_da(x, k, m, segments, &ds, s_stride, gradients);
    for ((segment, column), gradients) in segments.iter().zip(columns).zip(gradients) {
        let dz = &dz[column..];
        if let (Some(l), Some(db)) = (&segment.low_rank, &mut gradients.db) {
            let s = View::rows(&s[l.s_column..], s_stride);
            add_product(dz, n, m, s, l.b.columns, l.scale, db);
        }
        if let Some(dw) = &mut gradients.dw {
            add_product(dz, n, m, View::rows(x, k), k, 1.0, dw);
        }
        if let Some(dbias) = &mut gradients.dbias {
            dbias.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, dbias)| {
                for row in dz.chunks(n) {
                    dbias.iter_mut().zip(&row[i * COLUMNS..]).for_each(|(db, dz)| *db += *dz);
                }
            });
        }
    }
}

/// gradient [.., width] += scale dz^T right, where dz has rows of `n` and right [m, width].
fn add_product(dz: &[f32], n: usize, m: usize, right: View, width: usize, scale: f32, gradient: &mut [f32]) {
    gradient.par_chunks_mut(GRADIENT_ROWS * width).enumerate().for_each(|(i, gradient)| {
        let left = View::transposed(&dz[i * GRADIENT_ROWS..], n);
        gemm(gradient.len() / width, m, width, scale, left, right, 1.0, gradient, width);
    });
}

/// ds [m, `s_stride`]: scale dz B in the columns of each adapter.
fn low_rank_rows(dz: &[f32], n: usize, segments: &[Segment], columns: &[usize], s_stride: usize, m: usize) -> Vec<f32> {
    let mut ds = vec![0.0; m * s_stride];
    if segments.iter().all(|seg| seg.low_rank.is_none()) {
        return ds;
    }
    ds.par_chunks_mut(GRADIENT_ROWS * s_stride).zip(dz.par_chunks(GRADIENT_ROWS * n)).for_each(|(ds, dz)| {
        for (segment, column) in segments.iter().zip(columns) {
            let Some(l) = &segment.low_rank else { continue };
            let (b, rank) = (l.b.panel(0..l.b.rows), l.b.columns);
            let (left, right) = (View::rows(&dz[*column..], n), View::rows(&b, rank));
            gemm(dz.len() / n, l.b.rows, rank, l.scale, left, right, 0.0, &mut ds[l.s_column..], s_stride);
            for row in ds.chunks_exact_mut(s_stride) {
                row[l.s_column..][..rank].iter_mut().for_each(|v| *v = l.b.precision.round(*v));
            }
        }
    });
    ds
}

/// dx += dz W + ds A: each task computes a block of rows and columns, then the rows are put together.
#[allow(clippy::too_many_arguments, reason = "the operands of one product")]
fn add_dx(
    dz: &[f32],
    n: usize,
    k: usize,
    segments: &[Segment],
    columns: &[usize],
    ds: &[f32],
    s_stride: usize,
    dx: &mut [f32],
) {
    let (row_blocks, column_blocks) = (cut(dx.len() / k, ROWS), cut(k, COLUMNS));
    let tasks: Vec<_> = row_blocks.iter().flat_map(|r| column_blocks.iter().map(move |c| (r, c))).collect();
    let compute = |(rows, wanted): &(&Range<usize>, &Range<usize>)| {
        let (m, width) = (rows.len(), wanted.len());
        let mut block = vec![0.0; m * width];
        for (segment, column) in segments.iter().zip(columns) {
            for depth in cut(segment.weight.rows, DEPTH) {
                let left = View::rows(&dz[rows.start * n + column + depth.start..], n);
                let (w, stride) = segment.weight.block(depth.clone(), (*wanted).clone());
                gemm(m, depth.len(), width, 1.0, left, View::rows(&w, stride), 1.0, &mut block, width);
            }
            if let Some(l) = &segment.low_rank {
                let left = View::rows(&ds[rows.start * s_stride + l.s_column..], s_stride);
                let (a, stride) = l.a.block(0..l.a.rows, (*wanted).clone());
                gemm(m, l.a.rows, width, 1.0, left, View::rows(&a, stride), 1.0, &mut block, width);
            }
        }
        block
    };
    let blocks: Vec<Vec<f32>> = tasks.par_iter().with_max_len(1).map(compute).collect();
    let mut rest = dx;
    let mut pieces = Vec::new();
    for (rows, blocks) in row_blocks.iter().zip(blocks.chunks(column_blocks.len())) {
        let (rows, tail) = rest.split_at_mut(rows.len() * k);
        rest = tail;
        pieces.extend(rows.chunks_exact_mut(k).enumerate().map(|(i, row)| (i, row, blocks)));
    }
    pieces.into_par_iter().with_min_len(64).for_each(|(i, row, blocks)| {
        for (wanted, block) in column_blocks.iter().zip(blocks) {
            let sum = &block[i * wanted.len()..];
            row[wanted.clone()].iter_mut().zip(sum).for_each(|(dx, v)| *dx += *v);
        }
    });
}

/// da += ds^T x, all adapters in one product of a block of columns.
fn add_da(
    x: &[f32],
    k: usize,
    m: usize,
    segments: &[Segment],
    ds: &[f32],
    s_stride: usize,
    gradients: &mut [Gradients],
) {
    if gradients.iter().all(|g| g.da.is_none()) {
        return;
    }
    let blocks = cut(k, COLUMNS);
    let sums: Vec<Vec<f32>> = blocks
        .par_iter()
        .with_max_len(1)
        .map(|columns| {
            let width = columns.len();
            let mut block = vec![0.0; s_stride * width];
            let (left, right) = (View::transposed(ds, s_stride), View::rows(&x[columns.start..], k));
            gemm(s_stride, m, width, 1.0, left, right, 0.0, &mut block, width);
            block
        })
        .collect();
    for (segment, gradients) in segments.iter().zip(gradients) {
        let (Some(l), Some(da)) = (&segment.low_rank, &mut gradients.da) else { continue };
        for (r, row) in da.chunks_exact_mut(k).enumerate() {
            for (columns, block) in blocks.iter().zip(&sums) {
                let sum = &block[(l.s_column + r) * columns.len()..];
                row[columns.clone()].iter_mut().zip(sum).for_each(|(da, v)| *da += *v);
            }
        }
    }
}

/// 0..n in equal pieces of at most `most`.
fn cut(n: usize, most: usize) -> Vec<Range<usize>> {
    let pieces = n.div_ceil(most);
    (0..pieces).map(|i| n * i / pieces..n * (i + 1) / pieces).collect()
}
