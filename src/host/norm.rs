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

/// Where the gradients of a norm's parameters are added, of one row's width; None where they are frozen (and for the
/// bias of an RMS norm, which has none).
#[derive(Default)]
pub struct Gradients<'a, T> {
    pub dweight: Option<&'a mut [T]>,
    pub dbias: Option<&'a mut [T]>,
}

/// The gradient of one row, added to dx. With n = (x - mean) r the normalised row (RMS: mean = 0), r = 1 / sqrt(var +
/// eps) and g = dy * weight: dx = r (g - mean(g) - n mean(g n)), without mean(g) for RMS; dweight = dy n, dbias = dy.
pub fn row_backward<T: Real>(x: &[T], kind: Kind<T>, eps: T, dy: &[T], dx: &mut [T], gradients: &mut Gradients<T>) {
    let count = T::of(x.len() as f64);
    let (weight, mean) = match kind {
        Kind::Layer { weight, .. } => (weight, x.iter().copied().sum::<T>() / count),
        Kind::Rms { weight } => (weight, T::zero()),
    };
    let r = (x.iter().map(|x| (*x - mean) * (*x - mean)).sum::<T>() / count + eps).sqrt().recip();
    let n: Vec<T> = x.iter().map(|x| (*x - mean) * r).collect();
    let g: Vec<T> = dy.iter().zip(weight).map(|(dy, w)| *dy * *w).collect();
    let mean_g = match kind {
        Kind::Layer { .. } => g.iter().copied().sum::<T>() / count,
        Kind::Rms { .. } => T::zero(),
    };
    let mean_gn = g.iter().zip(&n).map(|(g, n)| *g * *n).sum::<T>() / count;
    for ((dx, g), n) in dx.iter_mut().zip(&g).zip(&n) {
        *dx += r * (*g - mean_g - *n * mean_gn);
    }
    if let Some(dweight) = &mut gradients.dweight {
        dweight.iter_mut().zip(dy.iter().zip(&n)).for_each(|(dw, (dy, n))| *dw += *dy * *n);
    }
    if let Some(dbias) = &mut gradients.dbias {
        dbias.iter_mut().zip(dy).for_each(|(db, dy)| *db += *dy);
    }
}

/// Of all rows: dy has the rows of y, dx those of x; what `rows` does not name keeps its dx.
#[allow(clippy::too_many_arguments, reason = "the specification names each of its inputs")]
pub fn norm_backward<T: Real>(
    x: &[T],
    width: usize,
    rows: Option<&[i32]>,
    kind: Kind<T>,
    eps: T,
    dy: &[T],
    dx: &mut [T],
    mut gradients: Gradients<T>,
) {
    for (i, dy) in dy.chunks_exact(width).enumerate() {
        let at = rows.map_or(i, |r| r[i] as usize) * width;
        row_backward(&x[at..][..width], kind, eps, dy, &mut dx[at..][..width], &mut gradients);
    }
}
