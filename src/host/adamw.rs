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

/// The numbers of a step that all elements share, rounded to the type that it is computed in.
#[derive(Debug, Clone, Copy)]
pub struct Constants<T> {
    pub keep: T,
    pub beta2: T,
    pub rest1: T,
    pub rest2: T,
    pub rate: T,
    pub root: T,
    pub eps: T,
    pub scale: T,
}

impl<T: Real> Constants<T> {
    /// See [`adamw`].
    pub fn of(step: &Step) -> Constants<T> {
        let t = f64::from(step.number);
        Constants {
            keep: T::of(1.0 - step.learning_rate * step.weight_decay),
            beta2: T::of(step.beta2),
            rest1: T::of(1.0 - step.beta1),
            rest2: T::of(1.0 - step.beta2),
            rate: T::of(step.learning_rate / (1.0 - step.beta1.powf(t))),
            root: T::of((1.0 - step.beta2.powf(t)).sqrt()),
            eps: T::of(step.eps),
            scale: T::of(step.gradient_scale),
        }
    }
}

/// With step t and g the scaled gradient: p *= 1 - lr decay; m += (1 - beta1) (g - m);
/// v = beta2 v + (1 - beta2) g^2; p -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
pub fn adamw<T: Real>(step: &Step, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T]) {
    let Constants { keep, beta2, rest1, rest2, rate, root, eps, scale } = Constants::<T>::of(step);
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = *g * scale;
        *m += rest1 * (g - *m);
        *v = beta2 * *v + rest2 * g * g;
        *p = *p * keep - rate * (*m / (v.sqrt() / root + eps));
    }
}
