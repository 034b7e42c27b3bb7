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
