//! AdamW as PyTorch's `torch.optim.AdamW` (not amsgrad): the specification, and what the host device runs.

use super::Real;

/// What one step is told; numbers that are the same for all parameters are f64, as Python's are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// 1 for the first.
    pub number: u32,
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Multiplies each gradient first: the clipping of [`super::grad_norm`].
    pub gradient_scale: f64,
}

/// With step t and g the scaled gradient: p *= 1 - lr decay; m += (1 - beta1) (g - m);
/// v = beta2 v + (1 - beta2) g^2; p -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
pub fn adamw<T: Real>(step: &Step, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T]) {
    let t = f64::from(step.number);
    let keep = T::of(1.0 - step.learning_rate * step.weight_decay);
    let (beta2, rest1, rest2) = (T::of(step.beta2), T::of(1.0 - step.beta1), T::of(1.0 - step.beta2));
    let rate = T::of(step.learning_rate / (1.0 - step.beta1.powf(t)));
    let root = T::of((1.0 - step.beta2.powf(t)).sqrt());
    let (eps, scale) = (T::of(step.eps), T::of(step.gradient_scale));
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = *g * scale;
        *m += rest1 * (g - *m);
        *v = beta2 * *v + rest2 * g * g;
        *p = *p * keep - rate * (*m / (v.sqrt() / root + eps));
    }
}
