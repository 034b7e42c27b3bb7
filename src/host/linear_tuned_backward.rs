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
                let Some(keep) = &l.keep else {
                    gemm(m, l.a.rows, width, 1.0, left, View::rows(&a, stride), 1.0, &mut block, width);
                    continue;
                };
                let mut behind = vec![0.0; m * width];
                gemm(m, l.a.rows, width, 1.0, left, View::rows(&a, stride), 0.0, &mut behind, width);
                let rows = block.chunks_exact_mut(width).zip(behind.chunks_exact(width)).zip(rows.start..);
                for ((block, behind), i) in rows {
                    let keep = &keep[i * k + wanted.start..][..width];
                    block.iter_mut().zip(behind.iter().zip(keep)).for_each(|(dx, (v, keep))| *dx += v * keep);
                }
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

/// da += ds^T x: the adapters that read x itself in one product of a block of columns, each behind a dropout in one of
/// its own.
fn add_da(
    x: &[f32],
    k: usize,
    m: usize,
    segments: &[Segment],
    ds: &[f32],
    s_stride: usize,
    gradients: &mut [Gradients],
) {
    let low_rank = |seg: usize| segments[seg].low_rank.as_ref();
    let wanted = (0..segments.len()).filter(|i| gradients[*i].da.is_some() && low_rank(*i).is_some());
    let (apart, together): (Vec<_>, Vec<_>) = wanted.partition(|i| low_rank(*i).is_some_and(|l| l.keep.is_some()));
    if !together.is_empty() {
        let sums = column_blocks(x, k, m, ds, s_stride, s_stride);
        for i in together {
            let (Some(l), Some(da)) = (low_rank(i), &mut gradients[i].da) else { continue };
            add_rows(&sums, l.s_column, k, da);
        }
    }
    for i in apart {
        let (Some(l), Some(da)) = (low_rank(i), &mut gradients[i].da) else { continue };
        let sums = column_blocks(&l.input(x), k, m, &ds[l.s_column..], s_stride, l.a.rows);
        add_rows(&sums, 0, k, da);
    }
}

/// ds^T x [rank, k], in blocks of columns; ds has rows of `s_stride`.
fn column_blocks(
    x: &[f32],
    k: usize,
    m: usize,
    ds: &[f32],
    s_stride: usize,
    rank: usize,
) -> Vec<(Range<usize>, Vec<f32>)> {
    let compute = |columns: Range<usize>| {
        let width = columns.len();
        let mut block = vec![0.0; rank * width];
        let (left, right) = (View::transposed(ds, s_stride), View::rows(&x[columns.start..], k));
        gemm(rank, m, width, 1.0, left, right, 0.0, &mut block, width);
        (columns, block)
    };
    cut(k, COLUMNS).into_par_iter().with_max_len(1).map(compute).collect()
}

/// da [rank, k] += the rows of the blocks that begin at `from`.
fn add_rows(blocks: &[(Range<usize>, Vec<f32>)], from: usize, k: usize, da: &mut [f32]) {
    for (r, row) in da.chunks_exact_mut(k).enumerate() {
        for (columns, block) in blocks {
            let sum = &block[(from + r) * columns.len()..];
            row[columns.clone()].iter_mut().zip(sum).for_each(|(da, v)| *da += *v);
        }
    }
}

/// 0..n in equal pieces of at most `most`.
fn cut(n: usize, most: usize) -> Vec<Range<usize>> {
    let pieces = n.div_ceil(most);
    (0..pieces).map(|i| n * i / pieces..n * (i + 1) / pieces).collect()
}
