//! Linear: y = act(x W^T + b + scale (x A^T) B^T), the specification.

use super::Real;

/// What is applied to the sum before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    None,
    /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): PyTorch's gelu(approximate="tanh").
    GeluTanh,
    /// 0.5 x (1 + erf(x / sqrt(2))): PyTorch's gelu.
    GeluErf,
}

impl Activation {
    pub fn apply<T: Real>(self, x: T) -> T {
        let half = T::of(0.5);
        match self {
            Activation::None => x,
            Activation::GeluTanh => {
                let u = T::of((2.0 / std::f64::consts::PI).sqrt()) * (x + T::of(0.044715) * x * x * x);
                half * x * (T::one() + u.tanh())
            }
            Activation::GeluErf => half * x * (T::one() + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf()),
        }
    }
}

/// The low-rank part of one segment: s = x A^T is given (rows of `s_stride`, from `s_column`), B is [n, rank].
#[derive(Clone, Copy)]
pub struct LowRank<'a, T> {
    pub s: &'a [T],
    pub s_stride: usize,
    pub s_column: usize,
    pub b: &'a [T],
    pub rank: usize,
    pub scale: T,
}

/// x [m, k] times w [n, k]; y is written to rows of `y_stride` from `y_column`. With `add`, y held the residual.
#[allow(clippy::too_many_arguments, reason = "the specification names each of its inputs")]
pub fn linear<T: Real>(
    x: &[T],
    k: usize,
    w: &[T],
    bias: Option<&[T]>,
    low_rank: Option<LowRank<T>>,
    activation: Activation,
    y: &mut [T],
    y_stride: usize,
    y_column: usize,
    add: bool,
) {
    for (i, (x, y)) in x.chunks_exact(k).zip(y.chunks_exact_mut(y_stride)).enumerate() {
        for (j, w) in w.chunks_exact(k).enumerate() {
            let mut sum = x.iter().zip(w).map(|(x, w)| *x * *w).sum::<T>();
            if let Some(bias) = bias {
                sum += bias[j];
            }
            if let Some(l) = low_rank {
                let s = &l.s[i * l.s_stride + l.s_column..][..l.rank];
                sum += l.scale * s.iter().zip(&l.b[j * l.rank..]).map(|(s, b)| *s * *b).sum::<T>();
            }
            let y = &mut y[y_column + j];
            *y = activation.apply(sum) + if add { *y } else { T::zero() };
        }
    }
}
