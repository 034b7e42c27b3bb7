//! Head and cross-entropy as the host device runs them: chunks of rows, so that the logits of all rows never exist
//! together, through the products of [`super::linear_tuned`]. Tested against [`super::linear_loss`].

use super::linear::Activation;
use super::linear_tuned::{Matrix, Segment, linear};
use super::linear_tuned_backward::{self, linear_backward};
use super::math;
use crate::base::Precision;
use rayon::prelude::*;

/// Logits of one chunk, in elements: 64 MiB.
const LOGITS: usize = 1 << 24;
/// Rows of one chunk: no fewer, so that reading the head pays; no more, since nothing is gained.
const ROWS: (usize, usize) = (64, 512);
/// Exponentials that are summed in f32; the sums of these are summed in f64.
const SUMMED: usize = 1024;

/// What backward wants of `scale` times the sum of all losses: added to dx [R, k], and to dw [V, k] where the head is
/// trained.
pub struct Gradients<'a> {
    pub scale: f32,
    pub dx: &'a mut [f32],
    pub dw: Option<&'a mut [f32]>,
}

/// The cross-entropy of each row of x [R, k] with its label, a row of the head [V, k]; and the gradients in the same
/// pass, since the logits would have to be computed again in another. The gradient of the logits is stored in the head's
/// precision.
pub fn linear_loss(
    x: &[f32],
    k: usize,
    head: Matrix,
    labels: &[i32],
    losses: &mut [f64],
    mut gradients: Option<Gradients>,
) {
    let v = head.rows;
    let most = (LOGITS / v).clamp(ROWS.0, ROWS.1);
    // chunks of equal size, so that no last one is tiny
    let size = labels.len().div_ceil(labels.len().div_ceil(most).max(1)).max(1);
    let segments = [Segment { weight: head, bias: None, low_rank: None }];
    let mut logits = vec![0.0; size.min(labels.len()) * v];
    for (i, ((x, labels), losses)) in
        x.chunks(size * k).zip(labels.chunks(size)).zip(losses.chunks_mut(size)).enumerate()
    {
        let logits = &mut logits[..labels.len() * v];
        linear(x, k, &segments, &mut [], 1, Activation::None, logits, false);
        let wanted = gradients.as_ref().map(|g| (g.scale, head.precision));
        let rows = logits.par_chunks_exact_mut(v).zip(labels).zip(losses);
        rows.for_each(|((logits, label), loss)| *loss = row(logits, *label as usize, wanted));
        if let Some(g) = &mut gradients {
            let dx = &mut g.dx[i * size * k..][..x.len()];
            let dw = linear_tuned_backward::Gradients { dw: g.dw.as_deref_mut(), ..Default::default() };
            linear_backward(logits, x, k, &segments, &[], 1, Some(dx), &mut [dw]);
        }
    }
}

/// The cross-entropy of one row; its logits become exponentials, and with a scale their gradient, stored in a precision.
fn row(logits: &mut [f32], label: usize, wanted: Option<(f32, Precision)>) -> f64 {
    let max = math::max(logits);
    let of_label = f64::from(logits[label]);
    let sum: f64 = logits.chunks_mut(SUMMED).map(|l| f64::from(math::exp_minus(l, max))).sum();
    if let Some((scale, precision)) = wanted {
        let factor = (f64::from(scale) / sum) as f32;
        let at_label = logits[label] * factor - scale;
        logits.iter_mut().for_each(|l| *l = precision.round(*l * factor));
        logits[label] = precision.round(at_label);
    }
    sum.ln() + f64::from(max) - of_label
}
