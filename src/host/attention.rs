//! Attention: y = softmax(scale q k^T + mask) v for each head, the specification.

use super::Real;
use crate::base::Precision;

/// Whom a token attends to within its own sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Itself and everything before it.
    Causal,
    /// Everything.
    Full,
}

/// Heads of one attention: `queries` heads share `keys` key/value heads (queries / keys each, in order), `width` wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
}

impl Heads {
    /// The key/value head that a query head reads.
    pub fn key_of(&self, query: usize) -> usize {
        query / (self.queries / self.keys)
    }
}

/// Key or value rows of all tokens that one query sees: row i, head g begins at `data[start + i * stride + g * width]`.
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    pub data: &'a [T],
    pub start: usize,
    pub stride: usize,
}

impl<'a, T> Rows<'a, T> {
    pub fn head(&self, row: usize, head: usize, width: usize) -> &'a [T] {
        &self.data[self.start + row * self.stride + head * width..][..width]
    }
}

/// One query head against rows 0..n: y = sum_i w_i v_i / sum_i w_i with w_i = 2^(s_i - base), s_i = scale q . k_i log2(e),
/// base the largest s_i rounded up to a whole number, w_i stored in `precision`. `key` and `value` give row i's head.
/// Returned: log2 of sum_i 2^(s_i), whose terms are not stored.
pub fn query<'a, T: Real>(
    q: &[T],
    n: usize,
    scale: T,
    precision: Precision,
    key: impl Fn(usize) -> &'a [T],
    value: impl Fn(usize) -> &'a [T],
    y: &mut [T],
) -> T {
    let log2_e = T::of(std::f64::consts::LOG2_E);
    let mut weights: Vec<T> = (0..n).map(|i| scale * dot(q, key(i)) * log2_e).collect();
    let base = largest(&weights).ceil();
    weights.iter_mut().for_each(|s| *s = (*s - base).exp2());
    let lse = base + weights.iter().copied().sum::<T>().log2();
    weights.iter_mut().for_each(|w| *w = w.stored(precision));
    let sum = weights.iter().copied().sum::<T>();
    y.fill(T::zero());
    for (i, w) in weights.into_iter().enumerate() {
        add(y, w, value(i));
    }
    y.iter_mut().for_each(|y| *y /= sum);
    lse
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).map(|(a, b)| *a * *b).sum()
}

fn add<T: Real>(to: &mut [T], factor: T, v: &[T]) {
    to.iter_mut().zip(v).for_each(|(t, v)| *t += factor * *v);
}

/// NaN where any is NaN.
fn largest<T: Real>(x: &[T]) -> T {
    x.iter().fold(T::neg_infinity(), |m, x| if x.is_nan() || *x > m { *x } else { m })
}

/// Softmax.
pub fn probabilities<T: Real>(mut scores: Vec<T>) -> Vec<T> {
    let max = largest(&scores);
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum = scores.iter().copied().sum::<T>();
    scores.iter_mut().for_each(|p| *p /= sum);
    scores
}

/// Packed sequences: tokens starts[b]..starts[b + 1] belong to sequence b. q and y have rows of queries * width,
/// k and v of their own strides.
#[allow(clippy::too_many_arguments, reason = "the specification names each of its inputs")]
pub fn attention<T: Real>(
    q: &[T],
    k: Rows<T>,
    v: Rows<T>,
    starts: &[i32],
    heads: Heads,
    mask: Mask,
    scale: T,
    precision: Precision,
    y: &mut [T],
) {
    let (row, width) = (heads.queries * heads.width, heads.width);
    for pair in starts.windows(2) {
        let (from, to) = (pair[0] as usize, pair[1] as usize);
        for t in from..to {
            let n = if mask == Mask::Causal { t - from + 1 } else { to - from };
            for h in 0..heads.queries {
                let at = t * row + h * width;
                let g = heads.key_of(h);
                let (key, value) = (|i| k.head(from + i, g, width), |i| v.head(from + i, g, width));
                query(&q[at..][..width], n, scale, precision, key, value, &mut y[at..][..width]);
            }
        }
    }
}

/// Where the gradients of [`Rows`] are added, in the same places.
pub struct RowsMut<'a, T> {
    pub data: &'a mut [T],
    pub start: usize,
    pub stride: usize,
}

impl<T> RowsMut<'_, T> {
    pub fn head(&mut self, row: usize, head: usize, width: usize) -> &mut [T] {
        &mut self.data[self.start + row * self.stride + head * width..][..width]
    }
}

/// Of [`attention`], with the probabilities p_i = 2^(s_i - lse) computed again: dv_i += p_i dy; dp_i = dy . v_i;
/// ds_i = p_i (dp_i - dy . y), where dy . y = sum_j p_j dp_j; dq += scale ds_i k_i, dk_i += scale ds_i q. Stored in
/// `precision`: y; p where it multiplies dy; ds. Query heads that share a key/value head add to the same rows, in order.
#[allow(clippy::too_many_arguments, reason = "the specification names each of its inputs")]
pub fn attention_backward<T: Real>(
    q: &[T],
    k: Rows<T>,
    v: Rows<T>,
    starts: &[i32],
    heads: Heads,
    mask: Mask,
    scale: T,
    precision: Precision,
    dy: &[T],
    dq: &mut [T],
    mut dk: RowsMut<T>,
    mut dv: RowsMut<T>,
) {
    let (row, width) = (heads.queries * heads.width, heads.width);
    let log2_e = T::of(std::f64::consts::LOG2_E);
    let mut y = vec![T::zero(); width];
    for pair in starts.windows(2) {
        let (from, to) = (pair[0] as usize, pair[1] as usize);
        for t in from..to {
            let last = if mask == Mask::Causal { t + 1 } else { to };
            for h in 0..heads.queries {
                let (at, g) = (t * row + h * width, heads.key_of(h));
                let (q, dy) = (&q[at..][..width], &dy[at..][..width]);
                let (key, value) = (|i| k.head(from + i, g, width), |i| v.head(from + i, g, width));
                let lse = query(q, last - from, scale, precision, key, value, &mut y);
                y.iter_mut().for_each(|y| *y = y.stored(precision));
                let mean = dot(dy, &y);
                for i in from..last {
                    let p = (scale * dot(q, k.head(i, g, width)) * log2_e - lse).exp2();
                    let ds = (p * (dot(dy, v.head(i, g, width)) - mean)).stored(precision);
                    add(dv.head(i, g, width), p.stored(precision), dy);
                    add(&mut dq[at..][..width], scale * ds, k.head(i, g, width));
                    add(dk.head(i, g, width), scale * ds, q);
                }
            }
        }
    }
}

/// How the rows of a cache are found: token i of sequence b lies in row
/// blocks[b * max_blocks + i / block] * block + i % block of the pools.
#[derive(Clone, Copy)]
pub struct BlockTable<'a> {
    pub blocks: &'a [i32],
    pub max_blocks: usize,
    pub block: usize,
}

impl BlockTable<'_> {
    pub fn row(&self, sequence: usize, token: usize) -> usize {
        self.blocks[sequence * self.max_blocks + token / self.block] as usize * self.block + token % self.block
    }
}

/// Queries starts[b]..starts[b + 1] are the last tokens of sequence b, which has lengths[b] tokens in the cache, these
/// included; each sees itself and everything before it.
#[allow(clippy::too_many_arguments, reason = "the specification names each of its inputs")]
pub fn attention_cached<T: Real>(
    q: &[T],
    keys: &[T],
    values: &[T],
    starts: &[i32],
    lengths: &[i32],
    table: BlockTable,
    heads: Heads,
    scale: T,
    precision: Precision,
    y: &mut [T],
) {
    let (row, width, stride) = (heads.queries * heads.width, heads.width, heads.keys * heads.width);
    for (b, pair) in starts.windows(2).enumerate() {
        for t in pair[0]..pair[1] {
            let n = (lengths[b] - (pair[1] - t) + 1) as usize;
            for h in 0..heads.queries {
                let at = t as usize * row + h * width;
                let g = heads.key_of(h) * width;
                let key = |i| &keys[table.row(b, i) * stride + g..][..width];
                let value = |i| &values[table.row(b, i) * stride + g..][..width];
                query(&q[at..][..width], n, scale, precision, key, value, &mut y[at..][..width]);
            }
        }
    }
}
