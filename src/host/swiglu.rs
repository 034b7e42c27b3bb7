//! SwiGLU: y = silu(gate) * up, the specification.

use super::Real;

/// Rows [gate | up] of 2 `width` become rows of `width`.
pub fn swiglu<T: Real>(gate_up: &[T], width: usize, y: &mut [T]) {
    for (gu, y) in gate_up.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
        for (i, y) in y.iter_mut().enumerate() {
            let gate = gu[i];
            *y = gate / (T::one() + (-gate).exp()) * gu[width + i];
        }
    }
}
