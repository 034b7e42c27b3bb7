//! Head and cross-entropy: logits = x W^T and, for each row, -ln softmax(logits)[label]; the specification.

use super::Real;
use super::attention::probabilities;
use crate::base::Precision;

/// The cross-entropy of each row of x [R, k] with its label, a row of w [V, k].
pub fn linear_loss<T: Real>(x: &[T], k: usize, w: &[T], labels: &[i32], losses: &mut [T]) {
    for ((x, label), loss) in x.chunks_exact(k).zip(labels).zip(losses) {
        let logits = logits(x, w);
        let max = logits.iter().fold(T::neg_infinity(), |m, l| if l.is_nan() || *l > m { *l } else { m });
        let sum = logits.iter().map(|l| (*l - max).exp()).sum::<T>();
        *loss = sum.ln() + max - logits[*label as usize];
    }
}

/// Of `scale` times the sum of all losses: dl = scale (softmax(logits) - 1 at the label), stored in `precision`;
/// dx += dl W, dw += dl^T x where the head is trained.
#[allow(clippy::too_many_arguments, reason = "the specification names each of its inputs")]
pub fn linear_loss_backward<T: Real>(
    x: &[T],
    k: usize,
    w: &[T],
    labels: &[i32],
    scale: T,
    precision: Precision,
    dx: &mut [T],
    mut dw: Option<&mut [T]>,
) {
    for ((x, label), dx) in x.chunks_exact(k).zip(labels).zip(dx.chunks_exact_mut(k)) {
        let mut dl = probabilities(logits(x, w));
        dl[*label as usize] -= T::one();
        for (j, dl) in dl.iter().enumerate() {
            let dl = (scale * *dl).stored(precision);
            let row = j * k..(j + 1) * k;
            dx.iter_mut().zip(&w[row.clone()]).for_each(|(dx, w)| *dx += dl * *w);
            if let Some(dw) = &mut dw {
                dw[row].iter_mut().zip(x).for_each(|(dw, x)| *dw += dl * *x);
            }
        }
    }
}

fn logits<T: Real>(x: &[T], w: &[T]) -> Vec<T> {
    w.chunks_exact(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| *w * *x).sum()).collect()
}
