//! The specification: for every word the shortest correct loop over slices, written from the formula.
//!
//! Generic over [`Real`], so that tests can run it in f64, but for what is drawn ([`sample`], [`dropout`]). `linear`,
//! `attention` and `linear_loss` have beside the loop one tuned function ([`linear_tuned`], [`linear_tuned_backward`],
//! [`attention_tuned`], [`linear_loss_tuned`]) that is tested against it and is what the host device runs. A `_backward`
//! takes the gradient of the output and *adds* to the gradients of the inputs: who wants to overwrite passes zeros
//! (`activation_backward` alone writes: its dz is what `linear_backward` then reads). It rounds what PyTorch stores between
//! two products (dz of an activation, ds of an adapter, the gradient of logits) and nothing else, and takes values as
//! forward stored them.
//! Floor 1: uses `base`. Start at [`linear`].

pub mod adamw;
pub mod attention;
pub mod attention_tuned;
pub mod deepstack_add;
pub mod dropout;
pub mod embed;
pub mod gemm;
pub mod grad_norm;
pub mod linear;
pub mod linear_loss;
pub mod linear_loss_tuned;
pub mod linear_tuned;
pub mod linear_tuned_backward;
pub mod math;
pub mod norm;
pub mod patch_embed;
pub mod qk_rope;
pub mod sample;
pub mod swiglu;

use crate::base::Precision;

/// f32 where the program computes, f64 where a test wants to know what is right.
pub trait Real: num_traits::Float + num_traits::NumAssign + std::iter::Sum + Send + Sync + 'static {
    /// The value after being stored in `precision`; f64 is never rounded.
    fn stored(self, precision: Precision) -> Self;
    fn of(x: f64) -> Self;
    fn erf(self) -> Self;
}

impl Real for f32 {
    fn stored(self, precision: Precision) -> f32 {
        precision.round(self)
    }
    fn of(x: f64) -> f32 {
        x as f32
    }
    fn erf(self) -> f32 {
        libm::erff(self)
    }
}

impl Real for f64 {
    fn stored(self, _: Precision) -> f64 {
        self
    }
    fn of(x: f64) -> f64 {
        x
    }
    fn erf(self) -> f64 {
        libm::erf(self)
    }
}
