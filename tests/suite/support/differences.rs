//! Gradients by differences, in f64: what a derivative is, whatever the program thinks that it is.

use super::close::assert_within;

/// Panics unless `gradient` is that of `f` at `at`, by the five-point formula
/// (f(x-2h) - 8 f(x-h) + 8 f(x+h) - f(x+2h)) / 12h in each coordinate.
///
/// With h = 1e-3 it is off by h^4 f'''''/30, about 1e-13, plus rounding of f over h, about 1e-13 of the largest value
/// that f sums: 1e-9 of the largest gradient leaves room for functions as steep as a softmax of large scores.
#[track_caller]
pub fn assert_gradient(what: &str, f: impl Fn(&[f64]) -> f64, at: &[f64], gradient: &[f64]) {
    const H: f64 = 1e-3;
    let mut x = at.to_vec();
    let mut value = |i: usize, d: f64| {
        x[i] = at[i] + d;
        let y = f(&x);
        x[i] = at[i];
        y
    };
    let slope = |i| {
        let (near, far) = (value(i, H) - value(i, -H), value(i, 2.0 * H) - value(i, -2.0 * H));
        (8.0 * near - far) / (12.0 * H)
    };
    let want: Vec<f64> = (0..at.len()).map(slope).collect();
    let largest = want.iter().fold(1.0f64, |m, w| m.max(w.abs()));
    assert_within(what, gradient, &want, |_| 1e-9 * largest);
}

/// The sum of dy y: the scalar whose gradient a backward from dy gives.
pub fn dot(dy: &[f64], y: &[f64]) -> f64 {
    dy.iter().zip(y).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_gradient_passes() {
        assert_gradient("x", |x| x[0].powi(3) * x[1].sin(), &[1.5, 0.3], &[6.75 * 0.3f64.sin(), 3.375 * 0.3f64.cos()]);
    }

    #[test]
    #[should_panic(expected = "x[1]")]
    fn a_wrong_one_does_not() {
        assert_gradient("x", |x| x[0] + x[1].exp(), &[1.0, 0.0], &[1.0, 1.0 + 1e-7]);
    }
}
