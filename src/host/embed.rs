//! Embedding: a row of the table for each token, or a row of the image features in its place; the specification.

use super::Real;

/// y[t] = features[rows[t]] where rows[t] >= 0, else table(ids[t]). `table` writes one row of the table, so that the
/// table itself may stay in a mapped file.
pub fn embed<T: Real>(
    ids: &[i32],
    image: Option<(&[T], &[i32])>,
    width: usize,
    mut table: impl FnMut(usize, &mut [T]),
    y: &mut [T],
) {
    for (t, y) in y.chunks_exact_mut(width).enumerate() {
        match image {
            Some((features, rows)) if rows[t] >= 0 => y.copy_from_slice(&features[rows[t] as usize * width..][..width]),
            _ => table(ids[t] as usize, y),
        }
    }
}

/// dtable[ids[t]] += dy[t], or dfeatures[rows[t]] += dy[t] where rows[t] >= 0; None where it is frozen.
pub fn embed_backward<T: Real>(
    ids: &[i32],
    rows: Option<&[i32]>,
    width: usize,
    dy: &[T],
    mut dtable: Option<&mut [T]>,
    mut dfeatures: Option<&mut [T]>,
) {
    for (t, dy) in dy.chunks_exact(width).enumerate() {
        let (gradient, row) = match rows {
            Some(rows) if rows[t] >= 0 => (dfeatures.as_deref_mut(), rows[t]),
            _ => (dtable.as_deref_mut(), ids[t]),
        };
        if let Some(gradient) = gradient {
            for (d, dy) in gradient[row as usize * width..][..width].iter_mut().zip(dy) {
                *d += *dy;
            }
        }
    }
}
