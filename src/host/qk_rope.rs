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

/// The gradient of one head, added to dx (and dweight): the rotation turned back,
/// dn_j = dy_j cos_j + dy_{j+E/2} sin_j and dn_{j+E/2} = dy_{j+E/2} cos_j - dy_j sin_j, then through the norm.
pub fn head_backward<T: Real>(
    x: &[T],
    angles: &[T],
    norm: Option<HeadNorm<T>>,
    dy: &[T],
    dx: &mut [T],
    dweight: Option<&mut [T]>,
) {
    let half = x.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let mut dn = vec![T::zero(); x.len()];
    for j in 0..half {
        dn[j] = dy[j] * cos[j] + dy[j + half] * sin[j];
        dn[j + half] = dy[j + half] * cos[j] - dy[j] * sin[j];
    }
    match norm {
        Some(n) => {
            let mut gradients = norm::Gradients { dweight, dbias: None };
            norm::row_backward(x, norm::Kind::Rms { weight: n.weight }, n.eps, &dn, dx, &mut gradients);
        }
        None => dx.iter_mut().zip(&dn).for_each(|(dx, dn)| *dx += *dn),
    }
}

/// Of [`rotate`]: x and dx have rows of `stride`, their heads from `column`; dy rows of heads * E; dweight [E].
#[allow(clippy::too_many_arguments, reason = "one loop over a strided matrix")]
pub fn rotate_backward<T: Real>(
    x: &[T],
    stride: usize,
    column: usize,
    heads: usize,
    width: usize,
    angles: &[T],
    norm: Option<HeadNorm<T>>,
    dy: &[T],
    dx: &mut [T],
    mut dweight: Option<&mut [T]>,
) {
    let rows = x.chunks_exact(stride).zip(dx.chunks_exact_mut(stride));
    for (((x, dx), angles), dy) in rows.zip(angles.chunks_exact(width)).zip(dy.chunks_exact(heads * width)) {
        for h in 0..heads {
            let at = column + h * width;
            let (x, dx) = (&x[at..][..width], &mut dx[at..][..width]);
            head_backward(x, angles, norm, &dy[h * width..][..width], dx, dweight.as_deref_mut());
        }
    }
}
