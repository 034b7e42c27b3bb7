//! Exponentials over whole slices, in a form that the compiler turns into vector instructions.
//!
//! exp by the reduction of Cephes (Moshier): x = n ln 2 + r, a polynomial in r, and 2^n through the exponent bits.
//! Relative error below 2e-7 on [-87, 88]; NaN stays NaN; below -87.3 the result is 0 to within 2e-38. 2^x likewise.

use multiversion::multiversion;

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// exp(x), inlined into vector loops.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // written as selects, not min and max, so that a NaN passes through
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.3 { -87.3 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    power(x - n * LN2_HIGH - n * LN2_LOW, shifted)
}

/// 2^x, inlined into vector loops. Below -126 the result is 2^-126; NaN stays NaN.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let x = if x < -126.0 { -126.0 } else { x };
    let x = if x > 127.0 { 127.0 } else { x };
    let shifted = x + ROUND;
    let n = shifted - ROUND;
    power((x - n) * std::f32::consts::LN_2, shifted)
}

/// e^r 2^n for |r| at most half of ln 2 and the n that `shifted` holds in its low bits.
#[inline(always)]
fn power(r: f32, shifted: f32) -> f32 {
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    p * scale
}

/// 1 / (1 + exp(-x)).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// x = exp(x - max) for each, and their sum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn exp_minus(x: &mut [f32], max: f32) -> f32 {
    replace_and_sum(x, |x| exp(x - max))
}

/// x = 2^(x - base) for each, and their sum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn exp2_minus(x: &mut [f32], base: f32) -> f32 {
    replace_and_sum(x, |x| exp2(x - base))
}

/// x = f(x) for each, and their sum, in sixteen lanes.
#[inline(always)]
fn replace_and_sum(x: &mut [f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; 16];
    let (chunks, rest) = x.as_chunks_mut::<16>();
    for chunk in chunks {
        for (x, sum) in chunk.iter_mut().zip(&mut sums) {
            *x = f(*x);
            *sum += *x;
        }
    }
    for (x, sum) in rest.iter_mut().zip(&mut sums) {
        *x = f(*x);
        *sum += *x;
    }
    sums.iter().sum()
}

/// The larger of two, NaN where either is: neither comparison holds of a NaN in `m`, which then stays.
#[inline(always)]
fn larger(m: f32, x: f32) -> f32 {
    if x > m || x.is_nan() { x } else { m }
}

/// The largest, NaN where any is NaN; -inf for none.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (x, m) in chunk.iter().zip(&mut lanes) {
            *m = larger(*m, *x);
        }
    }
    for (x, m) in rest.iter().zip(&mut lanes) {
        *m = larger(*m, *x);
    }
    lanes.iter().fold(f32::NEG_INFINITY, |m, x| larger(m, *x))
}

/// x = gelu(x) in its tanh form: x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), which is 0.5 x (1 + tanh(...)) without
/// the cancellation.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn gelu_tanh(x: &mut [f32]) {
    const TWICE_SQRT_2_OVER_PI: f32 = 2.0 * 0.797_884_6;
    for x in x {
        let u = TWICE_SQRT_2_OVER_PI * (*x + 0.044715 * *x * *x * *x);
        *x *= sigmoid(u);
    }
}

/// dz = gelu'(z) dy of the tanh form. With e = exp(-2 u) and sigma = 1 / (1 + e): tanh u = 2 sigma - 1 and
/// 1 - tanh^2 u = 4 sigma^2 e, where nothing cancels; the derivative is sigma + 2 z sigma^2 e u'.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn gelu_tanh_backward(z: &[f32], dy: &[f32], dz: &mut [f32]) {
    const TWICE_SQRT_2_OVER_PI: f32 = 2.0 * 0.797_884_6;
    for ((dz, dy), z) in dz.iter_mut().zip(dy).zip(z) {
        let square = 0.044715 * *z * *z;
        let e = exp(-TWICE_SQRT_2_OVER_PI * *z * (1.0 + square));
        let s = 1.0 / (1.0 + e);
        *dz = *dy * s * (1.0 + TWICE_SQRT_2_OVER_PI * *z * (s * e) * (1.0 + 3.0 * square));
    }
}

/// The gradient of a softmax of scaled scores, in place of dp: dp = scale p (dp - sum of p dp).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn softmax_backward(p: &[f32], scale: f32, dp: &mut [f32]) {
    let mut sums = [0.0f32; 16];
    let ((p_chunks, p_rest), (chunks, rest)) = (p.as_chunks::<16>(), dp.as_chunks::<16>());
    for (p, dp) in p_chunks.iter().zip(chunks) {
        for l in 0..16 {
            sums[l] += p[l] * dp[l];
        }
    }
    for ((sum, p), dp) in sums.iter_mut().zip(p_rest).zip(rest) {
        *sum += *p * *dp;
    }
    let mean: f32 = sums.iter().sum();
    for (dp, p) in dp.iter_mut().zip(p) {
        *dp = scale * *p * (*dp - mean);
    }
}

/// out = silu(gate) * up.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn silu_times(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
        *o = *g * sigmoid(*g) * *u;
    }
}

/// dgate += dy up silu'(gate), dup += dy silu(gate). 1 - sigma is sigma exp(-gate), where nothing cancels.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn silu_times_backward(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    for ((((dg, du), g), u), dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
        let e = exp(-*g);
        let s = 1.0 / (1.0 + e);
        *dg += *dy * *u * s * (1.0 + *g * (s * e));
        *du += *dy * *g * s;
    }
}

/// scores[h * n + i] = scale * q_h . key_i for the heads q [_, width] and `len` keys in rows of `stride`.
#[allow(clippy::too_many_arguments, reason = "the operands of one strided product")]
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn strided_dots(
    q: &[f32],
    keys: &[f32],
    stride: usize,
    width: usize,
    len: usize,
    scale: f32,
    scores: &mut [f32],
    n: usize,
) {
    for i in 0..len {
        let key = &keys[i * stride..][..width];
        for (h, q) in q.chunks_exact(width).enumerate() {
            let mut sums = [0.0f32; 16];
            let ((q, q_rest), (k, k_rest)) = (q.as_chunks::<16>(), key.as_chunks::<16>());
            for (q, k) in q.iter().zip(k) {
                for l in 0..16 {
                    sums[l] += q[l] * k[l];
                }
            }
            let rest: f32 = q_rest.iter().zip(k_rest).map(|(q, k)| q * k).sum();
            scores[h * n + i] = scale * (sums.iter().sum::<f32>() + rest);
        }
    }
}

/// y_h += sum over i of weights[h * n + i] * value_i, for heads y [_, width] and `len` values in rows of `stride`.
#[allow(clippy::too_many_arguments, reason = "the operands of one strided product")]
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn add_weighted(weights: &[f32], n: usize, values: &[f32], stride: usize, width: usize, len: usize, y: &mut [f32]) {
    for i in 0..len {
        let value = &values[i * stride..][..width];
        for (h, y) in y.chunks_exact_mut(width).enumerate() {
            let weight = weights[h * n + i];
            for (y, v) in y.iter_mut().zip(value) {
                *y += weight * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_few_units() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let want = (x as f64).exp();
            assert!(((exp(x) as f64 - want) / want).abs() <= 2e-7, "exp({x}) = {}, wanted {want}", exp(x));
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) <= 2e-38);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn a_nan_is_not_lost() {
        for at in 0..40 {
            let mut x = vec![0.5; 40];
            x[at] = f32::NAN;
            assert!(max(&x).is_nan(), "max lost the NaN at {at}");
            assert!(exp_minus(&mut x, 1.0).is_nan(), "exp_minus lost the NaN at {at}");
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert_eq!(max(&[-3.0, -1.0, -2.0]), -1.0);
    }

    #[test]
    fn activations_follow_their_formulas() {
        for i in -600..600 {
            let x = i as f64 / 50.0;
            let tanh = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            let want = 0.5 * x * (1.0 + tanh.tanh());
            let mut got = [x as f32];
            gelu_tanh(&mut got);
            assert!((got[0] as f64 - want).abs() <= 3e-7 * (1.0 + x.abs()), "gelu({x}) = {}, wanted {want}", got[0]);
            let mut out = [0.0];
            silu_times(&[x as f32], &[3.0], &mut out);
            let want = 3.0 * x / (1.0 + (-x).exp());
            assert!((out[0] as f64 - want).abs() <= 6e-7 * (1.0 + x.abs()), "silu({x})");
            let (mut dgate, mut dup) = ([0.5], [0.25]);
            silu_times_backward(&[x as f32], &[3.0], &[2.0], &mut dgate, &mut dup);
            let s = 1.0 / (1.0 + (-x).exp());
            let (want_gate, want_up) = (0.5 + 6.0 * s * (1.0 + x * (1.0 - s)), 0.25 + 2.0 * x * s);
            assert!((dgate[0] as f64 - want_gate).abs() <= 3e-6, "dgate({x}) = {}, wanted {want_gate}", dgate[0]);
            assert!((dup[0] as f64 - want_up).abs() <= 6e-7 * (1.0 + x.abs()), "dup({x}) = {}", dup[0]);
        }
    }

    #[test]
    fn a_softmax_gradient_sums_to_nothing() {
        // 37 equal probabilities: dp = scale (dp - mean) / 37
        let (p, mut dp) = ([1.0 / 37.0; 37], [0.0; 37]);
        dp.iter_mut().enumerate().for_each(|(i, d)| *d = i as f32);
        softmax_backward(&p, 2.0, &mut dp);
        for (i, d) in dp.iter().enumerate() {
            let want = 2.0 * (i as f64 - 18.0) / 37.0;
            assert!((*d as f64 - want).abs() <= 1e-6, "{d}, wanted {want}");
        }
        let mut dp = [f32::NAN, 1.0];
        softmax_backward(&[0.5, 0.5], 1.0, &mut dp);
        assert!(dp.iter().all(|d| d.is_nan()), "a NaN was lost: {dp:?}");
    }
}
