//! Embedding: a row of the table for each token, or a row of the image features in its place; the specification.

/// y[t] = features[rows[t]] where rows[t] >= 0, else table(ids[t]). `table` writes one row of the table, so that the
/// table itself may stay in a mapped file.
pub fn embed(
    ids: &[i32],
    image: Option<(&[f32], &[i32])>,
    width: usize,
    mut table: impl FnMut(usize, &mut [f32]),
    y: &mut [f32],
) {
    for (t, y) in y.chunks_exact_mut(width).enumerate() {
        match image {
            Some((features, rows)) if rows[t] >= 0 => y.copy_from_slice(&features[rows[t] as usize * width..][..width]),
            _ => table(ids[t] as usize, y),
        }
    }
}
