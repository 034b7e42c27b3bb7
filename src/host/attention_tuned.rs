//! The attention that the host device runs: blocks of queries, scores and sums as matrix products, a vectorised
//! softmax. Tested against [`super::attention`].

use super::attention::{BlockTable, Heads, Mask, Rows, RowsMut};
use super::gemm::{View, gemm};
use super::math;
use crate::base::Precision;
use rayon::prelude::*;

/// Queries of one block: keys and values are packed once for each, and its scores against a thousand keys fit a
/// second-level cache.
const QUERIES: usize = 192;

/// One head's queries of one block of one sequence: a task.
struct Block {
    /// Tokens of the sequence: first, and one past the last.
    sequence: (usize, usize),
    /// The block's queries.
    from: usize,
    to: usize,
    head: usize,
}

/// How scores become weights: [`Precision::F32`] makes them probabilities, [`Precision::Bf16`] the specification's powers
/// of two, rounded, whose sum divides the result.
struct Softmax {
    precision: Precision,
    /// What a score is multiplied by.
    scale: f32,
}

/// What a query's sum of weighted values is multiplied by, and log2 of its sum of exponentials, which probabilities lack.
struct Weighed {
    factor: f32,
    lse: f32,
}

impl Softmax {
    fn new(scale: f32, precision: Precision) -> Softmax {
        let unit = if precision == Precision::Bf16 { std::f32::consts::LOG2_E } else { 1.0 };
        Softmax { precision, scale: scale * unit }
    }

    /// Scaled scores become weights.
    fn weigh(&self, scores: &mut [f32]) -> Weighed {
        if self.precision == Precision::F32 {
            softmax(scores);
            return Weighed { factor: 1.0, lse: f32::NAN };
        }
        let base = math::max(scores).ceil();
        let lse = base + math::exp2_minus(scores, base).log2();
        scores.iter_mut().for_each(|w| *w = self.precision.round(*w));
        Weighed { factor: scores.iter().sum::<f32>().recip(), lse }
    }
}

/// [`super::attention::attention`] in f32. `lse` [H, T], asked for in bf16 alone: log2 of each query's sum of exponentials,
/// which [`attention_backward`] wants.
#[allow(clippy::too_many_arguments, reason = "the operands of the specification")]
pub fn attention(
    q: &[f32],
    k: Rows<f32>,
    v: Rows<f32>,
    starts: &[i32],
    heads: Heads,
    mask: Mask,
    scale: f32,
    precision: Precision,
    y: &mut [f32],
    lse: Option<&mut [f32]>,
) {
    let kind = Softmax::new(scale, precision);
    let (row, width) = (heads.queries * heads.width, heads.width);
    let mut blocks = Vec::new();
    for pair in starts.windows(2) {
        let sequence = (pair[0] as usize, pair[1] as usize);
        for from in (sequence.0..sequence.1).step_by(QUERIES) {
            let to = sequence.1.min(from + QUERIES);
            blocks.extend((0..heads.queries).map(|head| Block { sequence, from, to, head }));
        }
    }
    // the longest first, so that no thread is left with one at the end
    blocks.sort_by_key(|b| std::cmp::Reverse(b.to - b.sequence.0));
    let compute = |block: &Block| {
        let n_queries = block.to - block.from;
        let (from, to) = block.sequence;
        // under a causal mask nothing after the block's last query is seen
        let n_keys = if mask == Mask::Causal { block.to - from } else { to - from };
        let view = |r: Rows<'_, f32>| r.start + from * r.stride + heads.key_of(block.head) * width;
        let mut scores = vec![0.0f32; n_queries * n_keys];
        let q = View::rows(&q[block.from * row + block.head * width..], row);
        let keys = View::transposed(&k.data[view(k)..], k.stride);
        gemm(n_queries, width, n_keys, kind.scale, q, keys, 0.0, &mut scores, n_keys);
        let mut sums = Vec::with_capacity(n_queries);
        for (i, scores) in scores.chunks_exact_mut(n_keys).enumerate() {
            let seen = if mask == Mask::Causal { block.from + i + 1 - from } else { n_keys };
            sums.push(kind.weigh(&mut scores[..seen]));
            scores[seen..].fill(0.0);
        }
        let mut y = vec![0.0f32; n_queries * width];
        let values = View::rows(&v.data[view(v)..], v.stride);
        gemm(n_queries, n_keys, width, 1.0, View::rows(&scores, n_keys), values, 0.0, &mut y, width);
        for (y, sum) in y.chunks_exact_mut(width).zip(&sums) {
            y.iter_mut().for_each(|y| *y *= sum.factor);
        }
        (y, sums)
    };
    let results: Vec<(Vec<f32>, Vec<Weighed>)> = blocks.par_iter().with_max_len(1).map(compute).collect();
    for (block, (result, _)) in blocks.iter().zip(&results) {
        for (t, result) in (block.from..).zip(result.chunks_exact(width)) {
            y[t * row + block.head * width..][..width].copy_from_slice(result);
        }
    }
    if let Some(lse) = lse {
        let tokens = q.len() / row;
        for (block, (_, sums)) in blocks.iter().zip(&results) {
            let to = &mut lse[block.head * tokens + block.from..];
            to.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum.lse);
        }
    }
}

/// What [`attention`] in bf16 leaves for its gradients: y as it was stored, and lse.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub y: &'a [f32],
    pub lse: &'a [f32],
}

/// [`super::attention::attention_backward`] in f32. A task owns one key/value head of one sequence, and with it the
/// query heads that share it: it computes their gradients apart, in blocks of queries in order, and they are then added
/// to dq, dk and dv. `left`: in bf16; without it the statistics are computed again, and nothing is rounded.
#[allow(clippy::too_many_arguments, reason = "the operands of the specification")]
pub fn attention_backward(
    q: &[f32],
    k: Rows<f32>,
    v: Rows<f32>,
    starts: &[i32],
    heads: Heads,
    mask: Mask,
    scale: f32,
    left: Option<Left>,
    dy: &[f32],
    dq: &mut [f32],
    mut dk: RowsMut<f32>,
    mut dv: RowsMut<f32>,
) {
    let (row, width, group) = (heads.queries * heads.width, heads.width, heads.queries / heads.keys);
    let tokens = q.len() / row;
    let kind = Softmax::new(scale, if left.is_some() { Precision::Bf16 } else { Precision::F32 });
    // what ds lacks of the scores' own scale
    let rest = if left.is_some() { scale } else { 1.0 };
    let sequences = starts.windows(2).map(|pair| (pair[0] as usize, pair[1] as usize)).filter(|(from, to)| from < to);
    let tasks: Vec<_> = sequences.flat_map(|s| (0..heads.keys).map(move |g| (s, g))).collect();
    let compute = |&((from, to), g): &((usize, usize), usize)| {
        let n = to - from;
        let mut own = [vec![0.0; n * group * width], vec![0.0; n * width], vec![0.0; n * width]];
        let [dq, dk, dv] = &mut own;
        let of = |r: Rows<'_, f32>| r.start + from * r.stride + g * width;
        let (k, v) = ((&k.data[of(k)..], k.stride), (&v.data[of(v)..], v.stride));
        let (mut p, mut dp) = (Vec::new(), Vec::new());
        for h in 0..group {
            for start in (0..n).step_by(QUERIES) {
                let n_queries = QUERIES.min(n - start);
                let n_keys = if mask == Mask::Causal { start + n_queries } else { n };
                let at = (from + start) * row + (g * group + h) * width;
                let (q, dy_rows) = (View::rows(&q[at..], row), View::rows(&dy[at..], row));
                p.resize(n_queries * n_keys, 0.0);
                dp.resize(n_queries * n_keys, 0.0);
                gemm(n_queries, width, n_keys, kind.scale, q, View::transposed(k.0, k.1), 0.0, &mut p, n_keys);
                gemm(n_queries, width, n_keys, 1.0, dy_rows, View::transposed(v.0, v.1), 0.0, &mut dp, n_keys);
                for (i, (p, dp)) in p.chunks_exact_mut(n_keys).zip(dp.chunks_exact_mut(n_keys)).enumerate() {
                    let seen = if mask == Mask::Causal { start + i + 1 } else { n_keys };
                    match left {
                        Some(left) => {
                            let lse = left.lse[(g * group + h) * tokens + from + start + i];
                            let [y, dy] = [left.y, dy].map(|t| &t[at + i * row..][..width]);
                            let mean = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
                            rounded_gradient(&mut p[..seen], lse, mean, &mut dp[..seen]);
                        }
                        None => {
                            softmax(&mut p[..seen]);
                            math::softmax_backward(&p[..seen], scale, &mut dp[..seen]);
                        }
                    }
                    p[seen..].fill(0.0);
                    dp[seen..].fill(0.0);
                }
                let dq = &mut dq[start * group * width + h * width..];
                gemm(
                    n_queries,
                    n_keys,
                    width,
                    rest,
                    View::rows(&dp, n_keys),
                    View::rows(k.0, k.1),
                    0.0,
                    dq,
                    group * width,
                );
                gemm(n_keys, n_queries, width, rest, View::transposed(&dp, n_keys), q, 1.0, dk, width);
                gemm(n_keys, n_queries, width, 1.0, View::transposed(&p, n_keys), dy_rows, 1.0, dv, width);
            }
        }
        own
    };
    let parts: Vec<[Vec<f32>; 3]> = tasks.par_iter().with_max_len(1).map(compute).collect();
    let add = |to: &mut [f32], v: &[f32]| to.iter_mut().zip(v).for_each(|(t, v)| *t += *v);
    for (((from, to), g), [own_q, own_k, own_v]) in tasks.into_iter().zip(&parts) {
        for (t, (i, own)) in (from..to).zip(own_q.chunks_exact(group * width).enumerate()) {
            add(&mut dq[t * row + g * group * width..][..group * width], own);
            add(dk.head(t, g, width), &own_k[i * width..]);
            add(dv.head(t, g, width), &own_v[i * width..]);
        }
    }
}

/// One query in bf16: scores become p = 2^(scores - lse), and dp becomes ds = p (dp - mean); both rounded, each from the
/// other unrounded.
fn rounded_gradient(p: &mut [f32], lse: f32, mean: f32, dp: &mut [f32]) {
    math::exp2_minus(p, lse);
    for (p, dp) in p.iter_mut().zip(dp) {
        *dp = Precision::Bf16.round(*p * (*dp - mean));
        *p = Precision::Bf16.round(*p);
    }
}

fn softmax(x: &mut [f32]) {
    let max = math::max(x);
    let scale = math::exp_minus(x, max).recip();
    x.iter_mut().for_each(|p| *p *= scale);
}

/// [`super::attention::attention_cached`] in f32: a new token at a time, its key/value heads one after the other, each
/// row of the pools read once for all query heads that share it.
#[allow(clippy::too_many_arguments, reason = "the operands of the specification")]
pub fn attention_cached(
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    starts: &[i32],
    lengths: &[i32],
    table: BlockTable,
    heads: Heads,
    scale: f32,
    precision: Precision,
    y: &mut [f32],
) {
    let kind = Softmax::new(scale, precision);
    let (row, width, stride) = (heads.queries * heads.width, heads.width, heads.keys * heads.width);
    let group = heads.queries / heads.keys;
    let tokens: Vec<(usize, usize)> = starts
        .windows(2)
        .enumerate()
        .flat_map(|(b, pair)| (pair[0]..pair[1]).map(move |t| (b, (lengths[b] - (pair[1] - t) + 1) as usize)))
        .collect();
    let token = |((b, n), (t, y)): (&(usize, usize), (usize, &mut [f32]))| {
        let mut scores = vec![0.0f32; group * n];
        let runs = runs(table, *b, *n);
        for g in 0..heads.keys {
            let q = &q[t * row + g * group * width..][..group * width];
            for (from, at, len) in &runs {
                let keys = &keys[at * stride + g * width..];
                math::strided_dots(q, keys, stride, width, *len, kind.scale, &mut scores[*from..], *n);
            }
            let sums: Vec<Weighed> = scores.chunks_exact_mut(*n).map(|scores| kind.weigh(scores)).collect();
            let y = &mut y[g * group * width..][..group * width];
            y.fill(0.0);
            for (from, at, len) in &runs {
                let values = &values[at * stride + g * width..];
                math::add_weighted(&scores[*from..], *n, values, stride, width, *len, y);
            }
            for (y, sum) in y.chunks_exact_mut(width).zip(&sums) {
                y.iter_mut().for_each(|y| *y *= sum.factor);
            }
        }
    };
    let work: usize = tokens.iter().map(|(_, n)| n * row).sum();
    if work < 1 << 17 {
        tokens.iter().zip(y.chunks_exact_mut(row).enumerate()).for_each(token);
    } else {
        tokens.par_iter().zip(y.par_chunks_exact_mut(row).enumerate()).for_each(token);
    }
}

/// The first `n` tokens of a sequence as runs of pool rows: (first token, first row, how many). Blocks that follow each
/// other in the pool are one run.
fn runs(table: BlockTable, sequence: usize, n: usize) -> Vec<(usize, usize, usize)> {
    let mut runs: Vec<(usize, usize, usize)> = Vec::new();
    for from in (0..n).step_by(table.block) {
        let (at, len) = (table.row(sequence, from), table.block.min(n - from));
        match runs.last_mut() {
            Some((_, start, length)) if *start + *length == at => *length += len,
            _ => runs.push((from, at, len)),
        }
    }
    runs
}
