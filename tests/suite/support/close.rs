//! The one comparison of numbers. It is phrased positively: a value passes where it is shown to be close, so that NaN
//! fails.

/// Half the distance from 1 to the next f32: the largest relative error of one rounding.
pub const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
/// The same of bf16.
pub const UNIT_BF16: f64 = 1.0 / 256.0;

/// Whether `got` has as many elements as `want`, some, and each finite one within `bound(i)` of the wanted; where the
/// reference is infinite the same infinity, and NaN nowhere. Err names the worst element.
pub fn compare<T: Copy + Into<f64>>(got: &[T], want: &[f64], bound: impl Fn(usize) -> f64) -> Result<(), String> {
    if want.is_empty() || got.len() != want.len() {
        return Err(format!("{} values, wanted {} (and more than none)", got.len(), want.len()));
    }
    let mut worst: Option<(f64, String)> = None;
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let (g, bound): (f64, f64) = ((*g).into(), bound(i));
        let ok = if w.is_finite() { g.is_finite() && (g - w).abs() <= bound } else { g == *w };
        if !ok {
            let excess = (g - w).abs() / bound;
            let excess = if excess.is_nan() { f64::INFINITY } else { excess };
            if worst.as_ref().is_none_or(|(most, _)| excess > *most) {
                let line = format!("[{i}] is {g:e}, wanted {w:e} within {bound:e}: off by {:e}", g - w);
                worst = Some((excess, line));
            }
        }
    }
    worst.map_or(Ok(()), |(_, line)| Err(line))
}

/// Panics unless every element is within its own bound.
#[track_caller]
pub fn assert_within<T: Copy + Into<f64>>(what: &str, got: &[T], want: &[f64], bound: impl Fn(usize) -> f64) {
    if let Err(difference) = compare(got, want, bound) {
        panic!("{what}{difference}");
    }
}

/// Panics unless every element is within `relative` times the largest wanted magnitude.
#[track_caller]
pub fn assert_close<T: Copy + Into<f64>>(what: &str, got: &[T], want: &[f64], relative: f64) {
    let largest = want.iter().filter(|w| w.is_finite()).fold(0.0f64, |m, w| m.max(w.abs()));
    assert_within(what, got, want, |_| relative * largest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_pass() {
        assert_eq!(compare(&[1.0f32, -2.0], &[1.0, -2.0], |_| 0.0), Ok(()));
        assert_eq!(compare(&[f64::INFINITY, 1.0], &[f64::INFINITY, 1.5], |_| 0.5), Ok(()));
    }

    #[test]
    fn what_is_not_close_fails() {
        let fails = |got: &[f64], want: &[f64], bound: f64| assert!(compare(got, want, |_| bound).is_err(), "{got:?}");
        fails(&[1.1], &[1.0], 0.05);
        fails(&[1.0, 2.0, 3.5], &[1.0, 2.0, 3.0], 0.1);
        fails(&[f64::NAN], &[1.0], 1e9);
        fails(&[1.0], &[f64::NAN], 1e9);
        fails(&[f64::NAN], &[f64::NAN], 1e9);
        fails(&[f64::INFINITY], &[1.0], f64::INFINITY);
        fails(&[f64::NEG_INFINITY], &[f64::INFINITY], 1e9);
        fails(&[1.0], &[f64::INFINITY], 1e9);
        fails(&[1.0], &[1.0], f64::NAN);
    }

    #[test]
    fn the_wrong_number_of_values_fails() {
        assert!(compare::<f64>(&[], &[], |_| 1.0).is_err());
        assert!(compare(&[1.0], &[1.0, 1.0], |_| 1.0).is_err());
        assert!(compare(&[1.0, 1.0], &[1.0], |_| 1.0).is_err());
    }

    #[test]
    fn the_message_names_the_worst_element() {
        let message = compare(&[1.2, 5.0, f64::NAN], &[1.0, 1.0, 1.0], |_| 0.1).unwrap_err();
        assert!(message.starts_with("[2] is NaN"), "{message}");
        let message = compare(&[1.2, 5.0], &[1.0, 1.0], |_| 0.1).unwrap_err();
        assert!(message.starts_with("[1] is 5e0, wanted 1e0"), "{message}");
    }

    #[test]
    #[should_panic(expected = "y[0] is 1.1")]
    fn the_assertion_panics() {
        assert_close("y", &[1.1], &[1.0], 0.01);
    }
}
