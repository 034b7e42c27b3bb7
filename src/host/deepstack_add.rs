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
