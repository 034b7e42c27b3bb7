//! Norm of queries and keys, and their rotation: the specification.

use super::{Real, norm};
use crate::base::Precision;

/// The norm of query and key heads before the rotation: weights of one head's width, shared by all heads.
#[derive(Clone, Copy)]
pub struct HeadNorm<'a, T> {
    pub weight: &'a [T],
    pub eps: T,
}

/// One head. The rotation pairs element j with j + E/2 (rotate-half); `angles` holds cos then sin of the E/2 angles
/// of this token: y_j = x_j cos_j - x_{j+E/2} sin_j and y_{j+E/2} = x_{j+E/2} cos_j + x_j sin_j.
pub fn head<T: Real>(x: &[T], angles: &[T], norm: Option<HeadNorm<T>>, precision: Precision, y: &mut [T]) {
    let half = x.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let mut normed = vec![T::zero(); x.len()];
    let x = match norm {
        Some(n) => {
            norm::row(x, norm::Kind::Rms { weight: n.weight }, n.eps, precision, &mut normed);
            for v in &mut normed {
                *v = v.stored(precision);
            }
            &normed
        }
        None => x,
    };
    for j in 0..half {
        y[j] = x[j] * cos[j] - x[j + half] * sin[j];
        y[j + half] = x[j + half] * cos[j] + x[j] * sin[j];
    }
}

/// Rotates `heads` heads that start at `column` of each token's row of x (rows of `stride`) into rows of heads * E.
/// `angles` holds a row of E numbers for each token.
#[allow(clippy::too_many_arguments, reason = "one loop over a strided matrix")]
pub fn rotate<T: Real>(
    x: &[T],
    stride: usize,
    column: usize,
    heads: usize,
    width: usize,
    angles: &[T],
    norm: Option<HeadNorm<T>>,
    precision: Precision,
    y: &mut [T],
) {
    for ((x, angles), y) in
        x.chunks_exact(stride).zip(angles.chunks_exact(width)).zip(y.chunks_exact_mut(heads * width))
    {
        for h in 0..heads {
            head(&x[column + h * width..][..width], angles, norm, precision, &mut y[h * width..][..width]);
        }
    }
}
