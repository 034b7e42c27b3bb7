//! The length of all gradients together, and how much to shorten them: `torch.nn.utils.clip_grad_norm_`.

use super::Real;
use rayon::prelude::*;

/// Gradients of one partial sum: a fixed number, so that the result does not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// The square root of the sum of all squares, in f64: each chunk in order, then the chunks in order.
pub fn grad_norm<T: Real + Into<f64>>(gradients: &[&[T]]) -> f64 {
    let square = |g: &T| -> f64 {
        let g: f64 = (*g).into();
        g * g
    };
    let chunks: Vec<&[T]> = gradients.iter().flat_map(|g| g.chunks(CHUNK)).collect();
    let sums: Vec<f64> = chunks.par_iter().map(|c| c.iter().map(square).sum()).collect();
    sums.iter().sum::<f64>().sqrt()
}

/// What to multiply each gradient by, so that their norm is at most about `max_norm`: max_norm / (norm + 1e-6), at most
/// 1. NaN where the norm is.
pub fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    let coefficient = max_norm / (norm + 1e-6);
    if coefficient > 1.0 { 1.0 } else { coefficient }
}
