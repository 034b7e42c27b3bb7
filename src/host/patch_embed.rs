//! Position rows of the patch embedding: the specification. The product itself is `linear`.

use super::Real;
use crate::base::Precision;

/// y[p] += sum over four corners of share * table[corner]: the bilinear interpolation of the position table
/// (Qwen3VLVisionModel.fast_pos_embed_interpolate), corners and shares [P, 4].
pub fn add_positions<T: Real>(
    table: &[T],
    width: usize,
    corners: &[i32],
    shares: &[T],
    precision: Precision,
    y: &mut [T],
) {
    let corners = corners.chunks_exact(4).zip(shares.chunks_exact(4));
    for ((corners, shares), y) in corners.zip(y.chunks_exact_mut(width)) {
        for (j, y) in y.iter_mut().enumerate() {
            let mut position = T::zero();
            for (c, s) in corners.iter().zip(shares) {
                position += *s * table[*c as usize * width + j];
            }
            *y = y.stored(precision) + position.stored(precision);
        }
    }
}

/// dtable[corner] += share * dy[p] for each of the four; the gradients of the product are [`super::linear`]'s.
pub fn add_positions_backward<T: Real>(corners: &[i32], shares: &[T], width: usize, dy: &[T], dtable: &mut [T]) {
    let corners = corners.chunks_exact(4).zip(shares.chunks_exact(4));
    for ((corners, shares), dy) in corners.zip(dy.chunks_exact(width)) {
        for (c, s) in corners.iter().zip(shares) {
            for (d, dy) in dtable[*c as usize * width..][..width].iter_mut().zip(dy) {
                *d += *s * *dy;
            }
        }
    }
}
