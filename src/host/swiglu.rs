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

/// With sigma = 1 / (1 + exp(-gate)): dgate += dy up sigma (1 + gate (1 - sigma)), dup += dy gate sigma; rows
/// [dgate | dup].
pub fn swiglu_backward<T: Real>(gate_up: &[T], width: usize, dy: &[T], dgate_up: &mut [T]) {
    let rows = gate_up.chunks_exact(2 * width).zip(dgate_up.chunks_exact_mut(2 * width));
    for ((gu, dgu), dy) in rows.zip(dy.chunks_exact(width)) {
        for (i, dy) in dy.iter().enumerate() {
            let (gate, up) = (gu[i], gu[width + i]);
            let sigma = (T::one() + (-gate).exp()).recip();
            dgu[i] += *dy * up * sigma * (T::one() + gate * (T::one() - sigma));
            dgu[width + i] += *dy * gate * sigma;
        }
    }
}
