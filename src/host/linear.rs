//! Linear: y = act(x W^T + b + scale (x A^T) B^T), the specification.

use super::Real;
use crate::base::Precision;

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

    /// The derivative at x. Tanh form, with u as above: (1 + tanh u) / 2 + x (1 - tanh^2 u) u' / 2; erf form: the normal
    /// distribution's function plus x times its density.
    pub fn derivative<T: Real>(self, x: T) -> T {
        let (one, half) = (T::one(), T::of(0.5));
        match self {
            Activation::None => one,
            Activation::GeluTanh => {
                let (c, a) = (T::of((2.0 / std::f64::consts::PI).sqrt()), T::of(0.044715));
                let t = (c * (x + a * x * x * x)).tanh();
                half * (one + t) + half * x * (one - t * t) * c * (one + T::of(3.0) * a * x * x)
            }
            Activation::GeluErf => {
                let below = half * (one + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
                below + x * (-half * x * x).exp() * T::of((std::f64::consts::TAU).sqrt().recip())
            }
        }
    }
}

/// dz = act'(z) dy, where z is the sum that the activation was applied to; stored in `precision`, as PyTorch's gradient
/// of it is.
pub fn activation_backward<T: Real>(activation: Activation, z: &[T], dy: &[T], precision: Precision, dz: &mut [T]) {
    for ((dz, dy), z) in dz.iter_mut().zip(dy).zip(z) {
        *dz = (activation.derivative(*z) * *dy).stored(precision);
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

/// Where the gradients of one segment are added; None for what is frozen. The shapes are those of x [m, k], w [n, k],
/// bias [n], A [rank, k], B [n, rank].
pub struct Gradients<'a, T> {
    pub dx: Option<&'a mut [T]>,
    pub dw: Option<&'a mut [T]>,
    pub dbias: Option<&'a mut [T]>,
    pub da: Option<&'a mut [T]>,
    pub db: Option<&'a mut [T]>,
}

impl<T> Default for Gradients<'_, T> {
    fn default() -> Self {
        Gradients { dx: None, dw: None, dbias: None, da: None, db: None }
    }
}

/// From dz, the gradient of the sum before the activation, rows of `dz_stride` from `dz_column` (a residual's gradient
/// is dy itself): ds = scale dz B, stored in `precision`; dx += dz W + ds A, dw += dz^T x, dbias += sum of dz,
/// da += ds^T x, db += scale dz^T s. `low_rank` holds the adapter and its A.
#[allow(clippy::too_many_arguments, reason = "the specification names each of its inputs")]
pub fn linear_backward<T: Real>(
    dz: &[T],
    dz_stride: usize,
    dz_column: usize,
    x: &[T],
    k: usize,
    w: &[T],
    low_rank: Option<(LowRank<T>, &[T])>,
    precision: Precision,
    mut gradients: Gradients<T>,
) {
    let n = w.len() / k;
    for (i, (x, dz)) in x.chunks_exact(k).zip(dz.chunks_exact(dz_stride)).enumerate() {
        let dz = &dz[dz_column..][..n];
        for (j, dz) in dz.iter().enumerate() {
            add(gradients.dx.as_deref_mut(), i, *dz, &w[j * k..][..k]);
            add(gradients.dw.as_deref_mut(), j, *dz, x);
            add(gradients.dbias.as_deref_mut(), j, *dz, &[T::one()]);
        }
        let Some((l, a)) = low_rank else { continue };
        let s = &l.s[i * l.s_stride + l.s_column..][..l.rank];
        for (j, dz) in dz.iter().enumerate() {
            add(gradients.db.as_deref_mut(), j, l.scale * *dz, s);
        }
        for (r, a) in a.chunks_exact(k).enumerate() {
            let sum = dz.iter().enumerate().map(|(j, dz)| *dz * l.b[j * l.rank + r]).sum::<T>();
            let ds = (l.scale * sum).stored(precision);
            add(gradients.dx.as_deref_mut(), i, ds, a);
            add(gradients.da.as_deref_mut(), r, ds, x);
        }
    }
}

/// Row `at` of a gradient, where there is one, += factor * values.
fn add<T: Real>(gradient: Option<&mut [T]>, at: usize, factor: T, values: &[T]) {
    if let Some(gradient) = gradient {
        for (g, v) in gradient[at * values.len()..].iter_mut().zip(values) {
            *g += factor * *v;
        }
    }
}
