//! Deepstack add: x[rows[i]] += features[i], the specification.

use super::Real;

/// `rows` names for each feature row of `width` the token it belongs to.
pub fn deepstack_add<T: Real>(x: &mut [T], features: &[T], width: usize, rows: &[i32]) {
    for (f, at) in features.chunks_exact(width).zip(rows) {
        for (x, f) in x[*at as usize * width..][..width].iter_mut().zip(f) {
            *x += *f;
        }
    }
}

/// dfeatures[u] += dy[rows[u]]; the gradient of x is dy itself.
pub fn deepstack_add_backward<T: Real>(dy: &[T], width: usize, rows: &[i32], dfeatures: &mut [T]) {
    for (df, at) in dfeatures.chunks_exact_mut(width).zip(rows) {
        for (df, dy) in df.iter_mut().zip(&dy[*at as usize * width..]) {
            *df += *dy;
        }
    }
}
