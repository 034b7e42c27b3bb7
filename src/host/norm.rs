//! Layer norm and RMS norm: the specification.

use super::Real;
use crate::base::Precision;

/// Which norm, with its parameters of one row's width.
#[derive(Clone, Copy)]
pub enum Kind<'a, T> {
    Layer { weight: &'a [T], bias: &'a [T] },
    Rms { weight: &'a [T] },
}

/// One row. Layer: (x - mean) / sqrt(var + eps) * weight + bias, the variance over the width (PyTorch's LayerNorm).
/// RMS: x / sqrt(mean(x^2) + eps), stored, then times weight (Qwen3VLTextRMSNorm).
pub fn row<T: Real>(x: &[T], kind: Kind<T>, eps: T, precision: Precision, y: &mut [T]) {
    let n = T::of(x.len() as f64);
    match kind {
        Kind::Layer { weight, bias } => {
            let mean = x.iter().copied().sum::<T>() / n;
            let var = x.iter().map(|x| (*x - mean) * (*x - mean)).sum::<T>() / n;
            let r = (var + eps).sqrt().recip();
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (*x - mean) * r * *w + *b;
            }
        }
        Kind::Rms { weight } => {
            let r = (x.iter().map(|x| *x * *x).sum::<T>() / n + eps).sqrt().recip();
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = (*x * r).stored(precision) * *w;
            }
        }
    }
}

/// Rows of `width`; with `rows` only those rows of x, in that order.
pub fn norm<T: Real>(
    x: &[T],
    width: usize,
    rows: Option<&[i32]>,
    kind: Kind<T>,
    eps: T,
    precision: Precision,
    y: &mut [T],
) {
    for (i, y) in y.chunks_exact_mut(width).enumerate() {
        let at = rows.map_or(i, |r| r[i] as usize);
        row(&x[at * width..][..width], kind, eps, precision, y);
    }
}
